// The form that composes a new run and starts it.
export function install() {}

// What the page does to runs: stop, resume, copy the command.
export function install() {}

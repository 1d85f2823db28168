"""Options of the user, in conf/ of the current folder."""

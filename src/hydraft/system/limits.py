"""Limits that the shell sets for a process (``ulimit``). No torch."""

import resource

from hydraft.errors import ConfigError

WANTED_FILES = 4096
"""Open files that are allowed if the hard limit lets us: far from what select() and old libraries cannot take."""
BASE_FILES = 48
"""Open files that any command needs."""
FILES_PER_RANK = 8
"""Pipes and sockets that a launcher keeps for each of its ranks."""


def raise_open_files(ranks: int = 0) -> None:
    """Raise the soft limit of open files, for this process and those it starts, as far as the hard limit allows and is useful.

    Raises:
        ConfigError: the hard limit is too low for a command with so many ranks on this machine.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    needed = BASE_FILES + FILES_PER_RANK * ranks
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"ulimit -n: at most {hard} open files are allowed here, and {needed} are needed: start it from a shell with a higher "
            f"hard limit (ulimit -Hn prints it; its default is in /etc/security/limits.conf, or LimitNOFILE= of the service)"
        )
    raise_soft_limit(max(WANTED_FILES, needed))


def raise_soft_limit(wanted: int) -> int:
    """Raise the soft limit of open files to ``wanted``, or to the hard limit if that is lower.

    Returns:
        How many files may be open; ``wanted`` if there is no limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return max(soft, allowed)

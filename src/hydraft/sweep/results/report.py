"""``hydraft report [multirun/…]``: the ranked table, summary.csv and report.html of a sweep, the newest by default."""

import sys

from hydraft.errors import EXIT_REFUSED, ConfigError
from hydraft.sweep.results import write


def main(arguments: list[str]) -> int:
    """The exit code: 0, or 2 if there is no such sweep."""
    try:
        if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
            raise ConfigError("takes a sweep's folder or name, or nothing for the newest: hydraft report multirun/…")
        write.report(write.find(arguments[0] if arguments else None))
    except ConfigError as error:
        print(f"hydraft report: {error}", file=sys.stderr)
        return EXIT_REFUSED
    return 0

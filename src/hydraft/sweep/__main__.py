"""``python -m hydraft.sweep [multirun/…]``: the ranked table, summary.csv and report.html of a sweep, the newest by default."""

import sys

from hydraft.cli import EXIT_REFUSED
from hydraft.config import ConfigError
from hydraft.sweep import answer


def main(arguments: list[str]) -> int:
    """The exit code: 0, or 2 where there is no such sweep."""
    try:
        if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
            raise ConfigError(
                "takes a sweep's folder or name, or nothing for the newest: python -m hydraft.sweep multirun/…"
            )
        answer.give(answer.find(arguments[0] if arguments else None))
    except ConfigError as error:
        print(f"hydraft.sweep: {error}", file=sys.stderr)
        return EXIT_REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

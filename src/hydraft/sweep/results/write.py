"""What a sweep answers with: the ranked table, ``summary.csv`` and ``report.html``. No torch."""

import sys
from pathlib import Path

from rich.console import Console

from hydraft.errors import ConfigError
from hydraft.sweep.results import html, ledger, outcome, table


def give(folder: Path, console: Console | None = None) -> None:
    """Write both files for the sweep in ``folder`` and print the table; any sweep will do, whole or not.

    Raises:
        ConfigError: no sweep is in it.
    """
    console = console or Console(file=sys.stdout, soft_wrap=not sys.stdout.isatty())
    found = outcome.read(folder)
    table.show(found, console)
    for write in (table.write, html.write):
        try:
            console.print(str(write(found)), highlight=False, soft_wrap=True, markup=False)
        except OSError as error:  # a full disk takes nothing from what the terminal has shown
            print(f"{folder}: cannot be written to: {error.strerror}", file=sys.stderr)


def at_the_end(folder: Path) -> None:
    """``give``, for a sweep whose jobs are done: nothing that is wrong with a report makes a sweep one that failed."""
    try:
        give(folder)
    except Exception as error:
        print(f"{folder}: its report could not be made: {type(error).__name__}: {error}", file=sys.stderr)


def find(name: str | None, below: Path = Path("multirun")) -> Path:
    """A sweep's folder by its path or its name, or the one that was begun last.

    Raises:
        ConfigError: there is none.
    """
    if name is not None:
        return below / name if not Path(name).exists() and (below / name).exists() else Path(name)
    found = [file for mark in (ledger.ABOUT, "multirun.yaml") for file in below.glob(f"**/{mark}")]
    if not found:
        raise ConfigError(f"no sweep below {below}/; begin one with python train.py -m …, or name a folder")
    return max(found, key=lambda file: file.stat().st_mtime).parent

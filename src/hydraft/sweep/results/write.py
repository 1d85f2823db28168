"""Writes the results of a sweep: the ranked table, ``summary.csv`` and ``report.html``. No torch."""

import sys
from pathlib import Path

from rich.console import Console

from hydraft.errors import ConfigError
from hydraft.sweep.results import html, ledger, reading, table
from hydraft.system import program
from hydraft.system.plain_console import PlainConsole


def report(folder: Path, console: Console | None = None) -> None:
    """Print the table of the sweep in ``folder`` and write both files; the sweep may still be running.

    Raises:
        ConfigError: there is no sweep in it.
    """
    console = console or PlainConsole(file=sys.stdout, soft_wrap=not sys.stdout.isatty())
    found = reading.read(folder)
    table.show(found, console)
    for write in (table.write, html.write):
        try:
            console.print(str(write(found)), highlight=False, soft_wrap=True, markup=False)
        except OSError as error:  # a full disk: the table has been printed
            print(f"{folder}: cannot be written to: {error.strerror}", file=sys.stderr)


def report_after_sweep(folder: Path) -> None:
    """``report`` at the end of a sweep: an error in it does not fail the sweep."""
    try:
        report(folder)
    except Exception as error:
        print(f"{folder}: the report could not be written: {type(error).__name__}: {error}", file=sys.stderr)


def find(name: str | None, below: Path = Path("multirun")) -> Path:
    """A sweep's folder by its path or its name; by default the newest.

    Raises:
        ConfigError: there is no sweep.
    """
    if name is not None:
        return below / name if not Path(name).exists() and (below / name).exists() else Path(name)
    found = [file for mark in (ledger.ABOUT, "multirun.yaml") for file in below.glob(f"**/{mark}")]
    if not found:
        raise ConfigError(f"no sweep below {below}/; start one with {program.typed('train')} -m …, or give a folder")
    return max(found, key=lambda file: file.stat().st_mtime).parent

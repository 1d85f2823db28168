"""Terminal output of a run: progress bars, lines and tables, printed by rank 0 only. No torch."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from hydraft.system import streams
from hydraft.system.heartbeat import Heartbeat
from hydraft.system.plain_console import PlainConsole

WIDE = 72
"""Columns of a terminal below which there is no room for the bar itself, only for its numbers."""


class Screen:
    """Progress bar and lines on the terminal of rank 0; the other ranks print nothing.

    If the output is not a terminal (a file, a pipe), plain lines are printed instead of the bar.
    """

    def __init__(self, terminal: int, visible: bool, heartbeat: Heartbeat | None = None) -> None:
        """Create the screen.

        Args:
            terminal: the file descriptor to write to.
            visible: whether to print anything.
            heartbeat: of this rank; each phase and each advance of the bar counts as progress.
        """
        self.heartbeat = heartbeat or Heartbeat()
        stream = streams.writer(terminal, "stdout", closefd=True)
        self.console = PlainConsole(file=stream, quiet=not visible, soft_wrap=not stream.isatty())
        wide = self.console.width >= WIDE
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            *([BarColumn()] if wide else []),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn("{task.fields[note]}", markup=False),
            *([TimeElapsedColumn()] if wide else []),
            TextColumn("{task.fields[left]}", markup=False),
            TimeRemainingColumn(),
            console=self.console,
            get_time=lambda: time.monotonic() - self.skipped,
            disable=not visible or not self.console.is_terminal,
            redirect_stdout=False,  # what libraries print is for the rank's log
            redirect_stderr=False,
        )
        self.task: Any = None
        self.name = ""
        self.skipped = 0.0
        """Seconds that are not counted in the elapsed time of the bar."""

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.say(text)

    def phase(self, name: str, total: int | None = None) -> None:
        """Replace the bar by a new one with ``total`` units."""
        self.heartbeat.beat()
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(name, total=total, note="", count="", left="left" if total else "")
        self.name = name
        if not self.console.is_terminal:
            self.say(f"{name} …")

    @contextmanager
    def aside(self, name: str, total: int) -> Iterator[None]:
        """Show a bar with ``total`` units for an interruption; its time is not counted in the bar that was there before."""
        began, task, before = time.monotonic(), self.task, self.name
        self.progress.update(task, visible=False)
        self.task = None
        self.phase(name, total)
        try:
            yield
        finally:
            self.progress.remove_task(self.task)
            self.skipped += time.monotonic() - began
            self.task, self.name = task, before
            self.progress.update(task, visible=True)

    def advance(self, count: int = 1, note: str | None = None, line: bool = False) -> None:
        """Advance the bar by ``count`` units; ``line``: print a line if the output is not a terminal."""
        self.heartbeat.beat()
        if self.task is None:
            return
        self.progress.advance(self.task, count)
        bar = self.progress.tasks[-1]
        self.progress.update(self.task, count=f"{bar.completed:.0f}/{bar.total:.0f}")
        if note is not None:
            self.progress.update(self.task, note=note)
            if line and not self.console.is_terminal:
                self.say(f"{self.name} {bar.fields['count']}  {note}")

    @property
    def completed(self) -> int:
        """Units of this phase that are done."""
        return int(self.progress.tasks[-1].completed)

    def table(self, title: str, head: list[str], rows: list[list[str]]) -> None:
        """Print a table."""
        table = Table(title=title, title_justify="left")
        for index, name in enumerate(head):
            table.add_column(name, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)


class Bytes:
    """A bar with bytes read and written, speed and time left; if the output is not a terminal, one line per shard."""

    def __init__(self, console: Console, name: str, total: int) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TextColumn("left", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(name, total=total)

    def advance(self, count: int) -> None:
        self.progress.advance(self.task, count)

    def say(self, text: str) -> None:
        self.progress.update(self.task, description=text)
        if not self.console.is_terminal:
            self.console.print(text, highlight=False, soft_wrap=True)

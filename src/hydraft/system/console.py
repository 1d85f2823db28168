"""What a person sees of a run: one bar with loss, speed and time left, on rank 0, a table at its end, and a bar of bytes."""

import os
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

from hydraft.system import heartbeat


class Screen:
    """The terminal of rank 0; on every other rank, nothing.

    Where it is no terminal (a file, a pipe), a plain line stands for each update of the bar.
    """

    def __init__(self, terminal: int, visible: bool) -> None:
        """``terminal``: a file descriptor to write to."""
        stream = os.fdopen(terminal, "w", encoding="utf-8")
        self.console = Console(file=stream, quiet=not visible, soft_wrap=not stream.isatty())
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TimeRemainingColumn(),
            console=self.console,
            get_time=lambda: time.monotonic() - self.skipped,
            disable=not visible or not self.console.is_terminal,
        )
        self.task: Any = None
        self.name = ""
        self.skipped = 0.0
        """Seconds that the bars' clock leaves out."""

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, highlight=False)

    def phase(self, name: str, total: int | None = None) -> None:
        """Begin a new bar of ``total`` parts in place of the last."""
        heartbeat.beat()
        if self.task is not None:
            self.progress.remove_task(self.task)
        self.task = self.progress.add_task(name, total=total, note="", count="", left="left" if total else "")
        self.name = name
        if not self.console.is_terminal:
            self.say(f"{name} …")

    @contextmanager
    def aside(self, name: str, total: int) -> Iterator[None]:
        """A bar of ``total`` parts for something in between; the bar before it then goes on as if no time had passed."""
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
        """``count`` more parts are done; ``line`` asks for a line of its own where there is no bar."""
        heartbeat.beat()
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
        """Parts of this phase that are done."""
        return int(self.progress.tasks[-1].completed)

    def table(self, title: str, head: list[str], rows: list[list[str]]) -> None:
        """The closing table."""
        drawn = Table(title=title, title_justify="left")
        for index, name in enumerate(head):
            drawn.add_column(name, justify="left" if index == 0 else "right")
        for row in rows:
            drawn.add_row(*row)
        self.console.print(drawn)


class Bytes:
    """Bytes read and written, speed and time left; where there is no terminal, a line a shard."""

    def __init__(self, console: Console, name: str, total: int) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TextColumn("left"),
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

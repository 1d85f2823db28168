"""Shows a running sweep: one table on a terminal, otherwise a line for each change of state. No torch."""

import contextlib
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hydraft.sweep.results.axes import number
from hydraft.sweep.results.ledger import OVER, Job, State
from hydraft.sweep.results.progress import Follower
from hydraft.sweep.results.table import LOOKS, duration
from hydraft.system.plain_console import PlainConsole
from hydraft.system.redaction import redact_text

EVERY_SECONDS = 0.5
"""Between two reads of the files."""

AROUND = 7
"""Lines of the table that are not jobs."""


class Live:
    """Shows the sweep in ``folder`` from a thread until the block ends; ``refresh`` updates it at once."""

    def __init__(
        self, folder: Path, side_by_side: int | None = None, lines: bool = False, console: Console | None = None
    ) -> None:
        """``side_by_side``: how many jobs run at the same time, if that is known; ``lines``: print no table in any case."""
        self.follower = Follower(folder)
        self.side_by_side = side_by_side
        self.console = console or PlainConsole(file=sys.stdout, soft_wrap=not sys.stdout.isatty())
        self.lines = lines or not self.console.is_terminal
        self.live: RichLive | None = None
        self.printed: dict[str, tuple[State, int]] = {}
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._refresh_until_over, name="sweep table", daemon=True)

    def __enter__(self) -> Self:
        self.follower.read()
        if not self.lines:
            self.live = RichLive(self.draw(), console=self.console, auto_refresh=False, vertical_overflow="crop")
            self.live.start()
        else:
            self.printed = {job.key: (job.state, job.attempt) for job in self.follower.jobs.values()}
            self._print(f"{self.follower.folder}: {self._counts()}")
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self.thread.join()
        self.refresh()
        if self.live is not None:
            self.live.transient = kind is None  # the ranked table replaces it
            self.live.stop()

    def refresh(self) -> None:
        """Read what is new and show it."""
        with self.lock, contextlib.suppress(OSError):  # a table that cannot be shown must not end a sweep
            self.follower.read()
            if self.live is not None:
                self.live.update(self.draw(), refresh=True)
            else:
                self._print_changes()

    def draw(self) -> RenderableType:
        """The table, no higher than the terminal: running jobs, then those that ended last."""
        room = max(3, self.console.height - AROUND)
        jobs = self.follower.jobs.values()
        running = sorted((job for job in jobs if job.state is State.running), key=lambda job: job.started or job.time)
        ended = self.follower.ended()
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("job", ratio=1, overflow="ellipsis", no_wrap=True, min_width=12)
        for name in ("state", "step", "loss", "objective", "tokens/s", "time", "left"):
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        shown = running[:room]
        shown += list(ended[: room - len(shown)])
        for job in shown:
            table.add_row(*self._row(job), style=LOOKS[job.state] if job.state is not State.done else "")
        hidden = [f"{len(running) - room} more running"] if len(running) > room else []
        before = len(ended) - (len(shown) - min(len(running), room))
        hidden += [f"{before} that ended earlier"] if before > 0 else []
        over = sum(job.state in OVER for job in jobs)
        head = Table.grid(padding=(0, 2, 0, 0))
        head.add_row(
            Text(self.follower.folder.name, style="bold"),
            ProgressBar(max(1, len(jobs)), over, width=30),
            self._counts(),
        )
        if not shown:
            return Group(head, "", Text("starting …", style="dim"))
        return Group(head, "", table, Text("… " + ", ".join(hidden), style="dim") if hidden else "")

    def _row(self, job: Job) -> list[str | Text]:
        now, progress = time.time(), self.follower.running.get(job.key)
        step, loss, speed, left = "", "", "", ""
        seconds = job.time - job.started if job.started else None
        if progress is not None:
            step = f"{progress.step:,}/{progress.total:,}" if progress.total else ""
            loss = f"{progress.loss:.3f}" if progress.loss is not None else ""
            speed = f"{progress.speed:,.0f}" if progress.speed else ""
            seconds = now - (job.started or job.time)
            ahead = self.follower.left(job, now)
            left = duration(ahead) if ahead is not None else ""
        if job.error and job.state in (State.failed, State.refused):
            return [Text(f"{job.name}: {redact_text(job.error)}"), job.state.value, "", "", "", "", _time(seconds), ""]
        return [Text(job.name), job.state.value, step, loss, _objective(job), speed, _time(seconds), left]

    def _counts(self) -> str:
        """``5 of 18 done, 2 running, about 3:20 left``."""
        jobs = list(self.follower.jobs.values())
        counts = {state: sum(job.state is state for job in jobs) for state in State}
        parts = [f"{counts[State.done]} of {len(jobs)} done"]
        parts += [f"{count} {state.value}" for state, count in counts.items() if count and state is not State.done]
        left = self.follower.all_left(self.side_by_side)
        return ", ".join(parts) + (f", about {duration(left)} left" if left is not None else "")

    def _print_changes(self) -> None:
        """Print a line for each job whose state has changed."""
        jobs = self.follower.jobs
        new = [job for job in jobs.values() if self.printed.get(job.key) != (job.state, job.attempt)]
        for job in sorted(new, key=lambda job: job.time):
            known = self.printed.get(job.key)
            self.printed[job.key] = (job.state, job.attempt)
            if known is None and job.state is State.pending:
                continue
            over = sum(one.state in OVER for one in jobs.values())
            self._print(f"[{over}/{len(jobs)}] {job.name}: {_description(job)}")

    def _print(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)
        self.console.file.flush()

    def _refresh_until_over(self) -> None:
        while not self.over.wait(EVERY_SECONDS):
            with contextlib.suppress(Exception):  # a file that cannot be read must not end a sweep
                self.refresh()


def _description(job: Job) -> str:
    """The state of a job as text: ``done in 24 s, objective 0.5252``."""
    if job.state is State.running:
        return "running" if job.attempt == 1 else f"running, attempt {job.attempt}"
    seconds = f" in {duration(job.time - job.started)}" if job.started and job.state is State.done else ""
    objective = f", objective {_objective(job)}" if job.objective is not None else ""
    return f"{job.state.value}{seconds}{objective}{f': {redact_text(job.error)}' if job.error else ''}"


def _objective(job: Job) -> str:
    found: Any = job.objective
    if found is None:
        return ""
    return ", ".join(number(float(value)) for value in (found if isinstance(found, list) else [found]))


def _time(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)

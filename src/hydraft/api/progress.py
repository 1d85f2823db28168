"""Progress bars of runs and sweeps that another process trains: widgets in a notebook, lines in a terminal. No torch."""

import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from hydraft.sweep.results.ledger import OVER, State
from hydraft.sweep.results.progress import Follower, Progress
from hydraft.sweep.results.table import duration

PHASE = re.compile(r"(.+) …")
"""A line that names what a run does now (``Screen.phase``)."""

STEP = re.compile(r".+ \d+/\d+  .+")
"""A line about a step, which the bar shows (``Screen.advance``)."""

UNKNOWN = "{desc} [{elapsed}]"
KNOWN = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
"""The form of a bar, before its total is known and after."""


class Bar:
    """A bar of tqdm, which nobody sees with ``visible=False``. What a command prints is printed above it."""

    def __init__(self, visible: bool, unit: str, name: str) -> None:
        from tqdm import TqdmWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmWarning)  # without ipywidgets, a notebook has a bar of text
            from tqdm.auto import tqdm
        self.visible = visible
        self.tqdm: Any = tqdm
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmWarning)
            self.bar: Any = tqdm(total=1, unit=unit, desc=name, disable=not visible, bar_format=UNKNOWN, leave=True)
        self._shown: object = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.visible:
            ended = "completed" if error is None else "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            self.bar.set_description_str(ended)
        self.bar.close()

    def show(self, done: int, total: int | None, name: str, notes: Sequence[str]) -> None:
        """``done`` of ``total``, what is being done, and figures."""
        shown = done, total, name, notes, int(time.monotonic())
        if not self.visible or shown == self._shown:
            return
        self._shown = shown
        if total:
            self.bar.bar_format = KNOWN
        self.bar.total = max(total or 1, done)
        self.bar.n = done
        self.bar.set_description_str(name, refresh=False)
        self.bar.set_postfix_str(", ".join(notes), refresh=False)
        self.bar.refresh()

    def say(self, lines: Sequence[str]) -> None:
        """Print lines above the bar."""
        if self.visible and lines:
            self.tqdm.write("\n".join(lines))


class RunBar(Bar):
    """Steps, loss, tokens per second and time left of a run."""

    def __init__(self, folder: Path, visible: bool) -> None:
        super().__init__(visible, "step", "starting")
        self.progress = Progress(folder)
        self.phase = "starting"

    def follow(self, lines: Sequence[str]) -> None:
        """Show what the run has done since the last call; ``lines`` are those that it has printed."""
        said = []
        for line in lines:
            if phase := PHASE.fullmatch(line):
                self.phase = phase[1]
            elif not STEP.fullmatch(line):
                said.append(line)
        self.say(said)
        now = self.progress
        now.read()
        notes = [] if now.loss is None else [f"loss {now.loss:.3f}"]
        notes += [f"{now.speed:,.0f} tokens/s"] if now.speed else []
        left = now.training_left if self.phase == "training" else None
        notes += [f"{duration(left)} left"] if left else []
        self.show(now.step, now.total, self.phase, notes)


class SweepBar(Bar):
    """Jobs of a sweep that are over, the best of them, and the time left."""

    def __init__(self, folder: Path, visible: bool) -> None:
        super().__init__(visible, "job", "composing the jobs")
        self.follower = Follower(folder)

    def follow(self, lines: Sequence[str]) -> None:
        """Show what has become of the jobs since the last call; ``lines`` are those that the sweep has printed."""
        self.say(lines)
        self.follower.read()
        jobs = list(self.follower.jobs.values())
        if not jobs:
            return
        over = sum(job.state in OVER for job in jobs)
        running = sum(job.state is State.running for job in jobs)
        failed = sum(job.state in (State.failed, State.refused) for job in jobs)
        notes = [f"{running} running"] if running else []
        notes += [f"{failed} failed"] if failed else []
        losses = [one.loss for one in self.follower.running.values() if one.loss is not None]
        notes += [f"loss {min(losses):.3f}"] if losses else []
        left = self.follower.all_left()
        notes += [f"{duration(left)} left"] if left else []
        self.show(over, len(jobs), "jobs", notes)

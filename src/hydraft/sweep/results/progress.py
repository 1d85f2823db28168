"""Progress of a sweep's jobs and the time left, read from its ledger and the files of running jobs. No torch.

Reading is cheap: only the new bytes of each file are read.
"""

import heapq
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydraft.sweep.results.ledger import OVER, Job, Ledger, State

AGE = 20
"""Number of the newest finished jobs whose durations are averaged."""


@dataclass
class Progress:
    """Progress of a running job."""

    folder: Path
    attempt: int = 0
    offset: int = 0
    """Bytes of metrics.jsonl that have been read."""
    rest: bytes = b""
    """The beginning of a line that is not complete yet."""
    total: int | None = None
    """Optimizer steps in all; None until the job has been planned."""
    step: int = 0
    loss: float | None = None
    """Of the last logged step."""
    tokens: int = 0
    speed: float | None = None
    """Tokens a second, of the last logged step."""

    def read(self) -> None:
        """Read what the job has written since the last call."""
        if self.total is None:
            try:
                self.total = int(json.loads((self.folder / "plan.json").read_text(encoding="utf-8"))["steps"])
            except (OSError, ValueError, KeyError, TypeError):
                return
        try:
            with (self.folder / "metrics.jsonl").open("rb") as file:
                if os.fstat(file.fileno()).st_size < self.offset:  # written anew
                    self.offset, self.rest = 0, b""
                file.seek(self.offset)
                found = file.read()
        except OSError:
            return
        self.offset += len(found)
        *lines, self.rest = (self.rest + found).split(b"\n")
        for line in lines:
            try:
                values = json.loads(line)
                self.step = int(values["step"])
                self.loss = values.get("loss", self.loss)
                self.tokens, self.speed = values.get("tokens", self.tokens), values.get("tokens_per_second", self.speed)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    @property
    def training_left(self) -> float | None:
        """Seconds until its last step, at its current speed."""
        if not (self.total and self.step and self.tokens and self.speed):
            return None
        return max(0, self.total - self.step) * (self.tokens / self.step) / self.speed


@dataclass
class Follower:
    """All jobs of a sweep."""

    folder: Path
    jobs: dict[str, Job] = field(default_factory=dict)
    running: dict[str, Progress] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds that finished jobs took, in the order in which they ended."""
    seen: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.folder)

    def read(self) -> None:
        """Read what has happened since the last call."""
        book = self.ledger
        try:
            about = book.file.stat()
        except OSError:
            return
        if (about.st_size, about.st_mtime_ns) != self.seen:
            self.seen = about.st_size, about.st_mtime_ns
            self.jobs = book.jobs()
        for key, job in self.jobs.items():
            if job.state is State.running:
                if key not in self.running or self.running[key].attempt != job.attempt:
                    self.running[key] = Progress(self.folder / job.name, job.attempt)
                self.running[key].read()
            else:
                self.running.pop(key, None)
                if job.state is State.done and job.started and key not in self.spent:
                    self.spent[key] = job.time - job.started

    def left(self, job: Job, now: float | None = None) -> float | None:
        """Seconds until a running job is done, evaluation included; None if unknown.

        The longer of two estimates: its remaining steps at its current speed, and the mean duration of finished jobs.
        """
        progress = self.running.get(job.key)
        training = progress.training_left if progress else None
        usual = self.usual()
        elapsed = (time.time() if now is None else now) - (job.started or job.time)
        known = [left for left in (training, None if usual is None else usual - elapsed) if left is not None]
        return max([1.0, *known]) if known else None

    def usual(self) -> float | None:
        """Mean duration of the newest finished jobs, in seconds."""
        return statistics.fmean(list(self.spent.values())[-AGE:]) if self.spent else None

    def all_left(self, side_by_side: int | None = None, now: float | None = None) -> float | None:
        """Seconds until the last job is done, if each waiting job starts when a running one ends; None if unknown."""
        running = [job for job in self.jobs.values() if job.state is State.running]
        waiting = sum(job.state in (State.pending, State.interrupted) for job in self.jobs.values())
        lefts = [self.left(job, now) for job in running]
        known = [left for left in lefts if left is not None]
        if len(known) < len(lefts) or not (running or waiting):
            return None
        a_job = self.usual()
        if a_job is None and waiting:
            elapsed = [(time.time() if now is None else now) - (job.started or job.time) for job in running]
            a_job = statistics.fmean(a + b for a, b in zip(elapsed, known, strict=True)) if known else None
            if a_job is None:
                return None
        ends = known + [0.0] * max(0, (side_by_side or len(running) or 1) - len(known))
        heapq.heapify(ends)
        for _ in range(waiting):
            heapq.heappush(ends, heapq.heappop(ends) + (a_job or 0))
        return max(ends)

    def ended(self) -> Sequence[Job]:
        """Jobs that have ended, the latest first."""
        over = (*OVER, State.interrupted)
        return sorted((job for job in self.jobs.values() if job.state in over), key=lambda job: -job.time)

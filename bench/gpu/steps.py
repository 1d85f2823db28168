"""Runs commands with a time limit each, some concurrently, within a total time limit. Standard library only."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SHORTEST = 12
"""Seconds; with less time left, no step is started."""
GRACE = 3.0
"""Seconds from SIGTERM to SIGKILL for a step that exceeded its limit."""
OK = "ok"
NO_TIME = "no time left"


@dataclass(frozen=True)
class Step:
    """One command."""

    name: str
    limit: int
    """Time limit in seconds."""
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    """Steps of the same part that must have ended before this one starts, whether they succeeded or not."""
    skip: str | None = None
    """Why it cannot run here; None where it can."""
    replaces: Path | None = None
    """A folder of an earlier call to remove first: otherwise train.py would resume the run in it."""
    reserve: int = 0
    """Seconds that must be left for it to start, so that more valuable steps after it can run."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables in addition to the common ones."""


@dataclass(frozen=True)
class Part:
    """A group of steps."""

    name: str
    steps: tuple[Step, ...]
    at_once: int = 1
    """How many steps run concurrently, in the order they are listed."""


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    name: str
    part: str
    status: str
    """``ok``, ``failed (code 2)``, ``out of time``, ``no time left``, or ``skipped: …``."""
    seconds: float = 0.0
    limit: float = 0.0
    """Time limit that it got, in seconds."""
    said: str = ""
    """The last line of its output."""


class Budget:
    """The time that all steps share."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.now, self.began = seconds, now, now()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self.now() - self.began

    @property
    def left(self) -> float:
        """Seconds left; negative once the limit is exceeded."""
        return self.seconds - self.spent

    def grant(self, step: Step) -> float | None:
        """Time limit of ``step`` if it starts now: at most the time left; None if too little is left."""
        granted = min(step.limit, self.left)
        return None if granted < SHORTEST or self.left < step.reserve else granted


class Running:
    """A step that is running, in its own process group."""

    def __init__(self, step: Step, seconds: float, log: Path, environment: Mapping[str, str]) -> None:
        self.step, self.limit, self.log = step, seconds, log
        self.began = time.monotonic()
        if step.replaces is not None:
            shutil.rmtree(step.replaces, ignore_errors=True)
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                step.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**environment, **step.environment},
                start_new_session=True,
            )

    @property
    def seconds(self) -> float:
        """Seconds since it started."""
        return time.monotonic() - self.began

    def end(self) -> None:
        """Stop its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
            os.killpg(self.process.pid, signal.SIGKILL)  # including processes that the command left behind
        self.process.wait()

    def outcome(self, part: str) -> Outcome | None:
        """How it ended; None while it is running within its time limit."""
        code = self.process.poll()
        if code is None and self.seconds < self.limit:
            return None
        status = "out of time" if code is None else OK if code == 0 else f"failed (code {code})"
        self.end()
        return Outcome(self.step.name, part, status, round(self.seconds, 1), round(self.limit, 1), last_line(self.log))


def last_line(log: Path) -> str:
    """The last line that is not blank, at most 200 characters."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4000))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip()[-200:] for line in reversed(lines) if line.strip()), "")


def run(part: Part, budget: Budget, logs: Path, environment: Mapping[str, str]) -> Iterator[Outcome]:
    """Run the steps of a part, up to ``at_once`` concurrently, and yield each outcome as it becomes available.

    If the caller stops early or is interrupted, no process is left behind.
    """
    waiting, running, ended = list(part.steps), list[Running](), set[str]()
    try:
        while waiting or running:
            for step in [step for step in waiting if ended.issuperset(step.after)]:
                if len(running) >= part.at_once and step.skip is None:
                    continue
                waiting.remove(step)
                step_or_outcome = _begin(step, part, budget, logs, environment)
                if isinstance(step_or_outcome, Running):
                    running.append(step_or_outcome)
                else:
                    ended.add(step.name)
                    yield step_or_outcome
            for one in list(running):
                outcome = one.outcome(part.name)
                if outcome is not None:
                    running.remove(one)
                    ended.add(one.step.name)
                    yield outcome
            if running:
                time.sleep(0.05)
    finally:
        for one in running:
            one.end()


def _begin(step: Step, part: Part, budget: Budget, logs: Path, environment: Mapping[str, str]) -> Running | Outcome:
    """Start ``step``, or return why it was not started."""
    if step.skip is not None:
        return Outcome(step.name, part.name, f"skipped: {step.skip}")
    granted = budget.grant(step)
    if granted is None:
        return Outcome(step.name, part.name, NO_TIME)
    try:
        return Running(step, granted, logs / f"{step.name}.log", environment)
    except OSError as error:
        return Outcome(step.name, part.name, f"failed ({error})")

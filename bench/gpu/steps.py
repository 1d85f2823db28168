"""Steps: commands with a limit each, run one after another or side by side until a common time is up. Standard library alone."""

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
"""Seconds; with less left a step is not begun."""
GRACE = 3.0
"""Seconds from SIGTERM to SIGKILL for a step whose time is up."""
OK = "ok"
NO_TIME = "no time left"


@dataclass(frozen=True)
class Step:
    """One command."""

    name: str
    limit: int
    """Seconds that it may take."""
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    """Steps of the same part that have to be over before it begins, however they ended."""
    skip: str | None = None
    """Why it cannot run here; None where it can."""
    replaces: Path | None = None
    """A folder of an earlier call that has to be gone first: train.py would continue the run in it."""
    reserve: int = 0
    """Seconds that have to be left for it to begin; what follows is worth more."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Set for it beside the environment of all."""


@dataclass(frozen=True)
class Part:
    """Steps that belong together."""

    name: str
    steps: tuple[Step, ...]
    at_once: int = 1
    """How many run side by side, in the order they are listed."""


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    name: str
    part: str
    status: str
    """``ok``, ``failed (code 2)``, ``out of time``, ``no time left``, or ``skipped: …``."""
    seconds: float = 0.0
    limit: float = 0.0
    """Seconds it was given."""
    said: str = ""
    """The last line it printed."""


class Budget:
    """The seconds that all steps share."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.now, self.began = seconds, now, now()

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return self.now() - self.began

    @property
    def left(self) -> float:
        """Seconds; below 0 once it is overdrawn."""
        return self.seconds - self.spent

    def grant(self, step: Step) -> float | None:
        """Seconds that ``step`` may take now: its limit, or what is left; None where too little is."""
        granted = min(step.limit, self.left)
        return None if granted < SHORTEST or self.left < step.reserve else granted


class Running:
    """A step whose process runs, in a process group of its own."""

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
        """Since it began."""
        return time.monotonic() - self.began

    def end(self) -> None:
        """Stop its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
            os.killpg(self.process.pid, signal.SIGKILL)  # what the command itself left behind, too
        self.process.wait()

    def outcome(self, part: str) -> Outcome | None:
        """How it ended; None while it runs within its time limit."""
        code = self.process.poll()
        if code is None and self.seconds < self.limit:
            return None
        status = "out of time" if code is None else OK if code == 0 else f"failed (code {code})"
        self.end()
        return Outcome(self.step.name, part, status, round(self.seconds, 1), round(self.limit, 1), last_line(self.log))


def last_line(log: Path) -> str:
    """The last line with anything in it, at most 200 characters."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4000))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip()[-200:] for line in reversed(lines) if line.strip()), "")


def run(part: Part, budget: Budget, logs: Path, environment: Mapping[str, str]) -> Iterator[Outcome]:
    """Run a part's steps, ``at_once`` side by side; each outcome as it comes.

    A caller that stops early, or is stopped, leaves no process behind.
    """
    waiting, running, over = list(part.steps), list[Running](), set[str]()
    try:
        while waiting or running:
            for step in [step for step in waiting if over.issuperset(step.after)]:
                if len(running) >= part.at_once and step.skip is None:
                    continue
                waiting.remove(step)
                begun = _begin(step, part, budget, logs, environment)
                if isinstance(begun, Running):
                    running.append(begun)
                else:
                    over.add(step.name)
                    yield begun
            for one in list(running):
                outcome = one.outcome(part.name)
                if outcome is not None:
                    running.remove(one)
                    over.add(one.step.name)
                    yield outcome
            if running:
                time.sleep(0.05)
    finally:
        for one in running:
            one.end()


def _begin(step: Step, part: Part, budget: Budget, logs: Path, environment: Mapping[str, str]) -> Running | Outcome:
    """Start ``step``, or say why it is not started."""
    if step.skip is not None:
        return Outcome(step.name, part.name, f"skipped: {step.skip}")
    granted = budget.grant(step)
    if granted is None:
        return Outcome(step.name, part.name, NO_TIME)
    try:
        return Running(step, granted, logs / f"{step.name}.log", environment)
    except OSError as error:
        return Outcome(step.name, part.name, f"failed ({error})")

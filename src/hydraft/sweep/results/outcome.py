"""The result of a sweep: each job with its settings, scores, cost and state, best first. No torch.

A sweep is read from its ledger and its jobs' folders. One that Hydra's own launcher made has no ledger; it is read from the
folders and the command that is saved in each.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hydraft.config import moved, printed
from hydraft.errors import ConfigError
from hydraft.sweep.results import axes as axes_of
from hydraft.sweep.results import config_text, ledger
from hydraft.sweep.results.axes import Axis
from hydraft.sweep.results.command import of_job
from hydraft.sweep.results.ledger import Job, Ledger, State
from hydraft.system import files, line_file, program
from hydraft.system.redaction import redact, redact_command, redact_line, redact_text

ENDS = {"completed": State.done, "failed": State.failed}
"""States by the ``status`` in a run's result.json."""

ORDER = [State.running, State.pending, State.pruned, State.interrupted, State.failed, State.refused]
"""Order of the jobs without an objective, which come after those with one."""


@dataclass
class Outcome:
    """A job and its result."""

    job: Job
    folder: Path
    values: dict[str, Any] = field(default_factory=dict)
    """By the keys of the sweep's axes."""
    rank: int | None = None
    """1 for the best; None for a job without an objective."""
    on_front: bool = False
    """With several objectives: whether it is on the Pareto front."""
    intervals: list[tuple[float, float] | None] = field(default_factory=list)
    """With several seeds: the 95 % interval of each objective."""
    seeds: int = 1
    """The runs that its objectives are means of."""
    difference: tuple[float, float, float] | None = None
    """With several seeds: its objective minus that of the best, and the ends of the 95 % interval of that."""
    p: float | None = None
    """Of no difference from the best, adjusted for several comparisons."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """Every setting by its dotted name; empty for a job that never started."""
        try:
            return dict(redact(config_text.settings((self.folder / "config.yaml").read_text(encoding="utf-8"))))
        except (OSError, ValueError):  # missing, or cut off
            return {}

    @cached_property
    def result(self) -> dict[str, Any]:
        """``result.json``."""
        return files.read_object(self.folder / "result.json")

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The complete lines of ``metrics.jsonl``."""
        try:
            return line_file.read(self.folder / "metrics.jsonl").values
        except OSError:
            return []

    @cached_property
    def objectives(self) -> list[float]:
        """Its objectives; empty if it has none yet."""
        if self.job.state not in (State.done, State.pruned):
            return []
        found = self.job.objective if self.job.objective is not None else self.result.get("objective")
        return [float(value) for value in (found if isinstance(found, list) else [found]) if value is not None]

    @property
    def seconds(self) -> float | None:
        """From its start to its end, or to its last event."""
        started, ended = self.result.get("started"), self.result.get("ended")
        if started and ended:
            return float(ended) - float(started)
        return self.job.time - self.job.started if self.job.started and self.job.time > self.job.started else None

    @property
    def speed(self) -> float | None:
        """Tokens per second of training, without evaluation."""
        tokens, seconds = self.result.get("tokens"), self.result.get("train_seconds")
        return tokens / seconds if tokens and seconds else None

    @property
    def peak(self) -> int | None:
        """Peak memory in bytes, of the rank with the highest."""
        found = self.result.get("peak_memory_bytes")
        return None if found is None else int(found)

    @property
    def zero(self) -> str | None:
        """Its ZeRO stage, and whether anything is offloaded."""
        if "zero.stage" not in self.config:
            return None
        offloaded = any(self.config.get(f"zero.offload_{part}") == "cpu" for part in ("optimizer", "param"))
        return f"ZeRO-{self.config['zero.stage']}{' offload' if offloaded else ''}"

    @property
    def error(self) -> str:
        """Why it failed, in one line."""
        found = self.job.error or (self.result.get("error") or {}).get("cause") or ""
        return redact_text(" ".join(str(found).split()))

    @cached_property
    def command(self) -> str:
        """The command that repeats it as a single run."""
        own = [
            override for override in self.job.overrides if not override.lstrip("+~").startswith(("sweep.", "hydra."))
        ]
        return shlex.join([*program.typed("train").split(), *redact_command(own)])

    @property
    def uses(self) -> list[tuple[str, str]]:
        """Commands that use what it has trained, each with what it does."""
        if not any((self.folder / name).is_dir() for name in ("adapter", "model")):
            return []
        run = printed.override("run", printed.short_path(self.folder))
        asked = printed.command("infer", run, 'prompt="…"')
        return [("to ask it", asked), ("to serve it", printed.command("infer", run, "mode=serve"))]


@dataclass
class Sweep:
    """A sweep and its jobs."""

    folder: Path
    name: str
    command: str
    objectives: list[str]
    """Their names."""
    minimize: list[bool]
    axes: list[Axis]
    outcomes: list[Outcome]
    """Best first; with several seeds the points, whose results are means."""
    runs: list[Outcome] = field(default_factory=list)
    """With several seeds: the jobs of all points; else empty."""
    findings: list[str] = field(default_factory=list)
    """With several seeds: sentences on what can be told apart."""

    @property
    def jobs(self) -> list[Outcome]:
        """Every job."""
        return self.runs or self.outcomes

    @property
    def best(self) -> Outcome | None:
        """The best job; None if no job has an objective."""
        return self.outcomes[0] if self.outcomes and self.outcomes[0].rank == 1 else None

    def count(self, *states: State) -> int:
        """Jobs in one of ``states``."""
        return sum(outcome.job.state in states for outcome in self.jobs)

    @property
    def counts(self) -> str:
        """Number of jobs in each state, as text: ``16 done, 2 failed``."""
        states = [State.done, *(state for state in State if state is not State.done)]
        return ", ".join(f"{self.count(state)} {state.value}" for state in states if self.count(state)) or "no jobs"


def read(folder: Path) -> Sweep:
    """The sweep in ``folder``.

    Raises:
        ConfigError: there is no sweep in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    about: dict[str, Any] = {}
    if (folder / ledger.ABOUT).exists():
        about = ledger.read_about(folder)
        book = Ledger(folder)
        outcomes = [Outcome(_with_true_state(book, job), folder / job.name) for job in book.jobs().values()]
    else:
        outcomes = [Outcome(_job_of(run), run) for run in _runs(folder)]
        if not outcomes:
            raise ConfigError(f"{folder}: no sweep and no run is in it")
    chosen = [redact(dict(map(axes_of.split, outcome.job.overrides))) for outcome in outcomes]
    keys = list(dict.fromkeys(map(moved.name, about.get("axes") or [key for job in chosen for key in job])))
    axes = axes_of.of_overrides([key for key in keys if not key.startswith(("hydra.", "sweep."))], chosen)
    if not axes and any(outcome.config for outcome in outcomes):
        chosen = [outcome.config for outcome in outcomes]
        axes = axes_of.of_configs([config for config in chosen if config])
    for outcome, values in zip(outcomes, chosen, strict=True):
        outcome.values = {
            axis.key: values[axis.key] if axis.key in values else outcome.config.get(axis.key) for axis in axes
        }
    count = max((len(outcome.objectives) for outcome in outcomes), default=0) or 1
    names, minimize = _objectives(about, outcomes, count)
    command = about.get("command") or _recorded_command(outcomes)
    return Sweep(
        folder,
        str(about.get("name") or folder.name),
        _as_text(command),
        names,
        minimize,
        axes,
        rank(outcomes, minimize),
    )


def rank(outcomes: Sequence[Outcome], minimize: Sequence[bool]) -> list[Outcome]:
    """Sort jobs by the objective, best first; with several, those on the Pareto front first, then by the first objective."""

    def costs(outcome: Outcome) -> list[float]:
        signed = zip(outcome.objectives, minimize, strict=False)
        return [(value if least else -value) if math.isfinite(value) else math.inf for value, least in signed]

    scored = sorted((outcome for outcome in outcomes if outcome.objectives), key=costs)
    front: list[list[float]] = []
    for outcome in (
        scored if len(minimize) > 1 else []
    ):  # a job is only dominated by one before it, and then by one of the front
        mine = costs(outcome)
        if mine in front[-1:]:
            outcome.on_front = True
        elif not any(all(a <= b for a, b in zip(other, mine, strict=False)) for other in reversed(front)):
            outcome.on_front = True
            front.append(mine)
    scored.sort(key=lambda outcome: not outcome.on_front)
    for position, outcome in enumerate(scored, 1):
        outcome.rank = position
    rest = [outcome for outcome in outcomes if not outcome.objectives]
    order = {state: position for position, state in enumerate([State.done, *ORDER])}
    return scored + sorted(rest, key=lambda outcome: order[outcome.job.state])


def _with_true_state(book: Ledger, job: Job) -> Job:
    """``job``; its state is ``interrupted`` if it was running and its process has ended."""
    if job.state is State.running and not book.is_claimed(job.key):
        job.state = State.interrupted
    return job


def _runs(folder: Path) -> list[Path]:
    """The folders of runs below a sweep's, in the order of their numbers."""
    found = [file.parent for file in folder.glob("*/config.yaml")]
    return sorted(found, key=lambda run: (not run.name.isdigit(), int(run.name) if run.name.isdigit() else 0, run.name))


def _job_of(run: Path) -> Job:
    """A job from its run's folder alone, without a ledger."""
    result = files.read_object(run / "result.json")
    command = files.read_object(run / "environment.json").get("command") or []
    overrides = of_job(program.arguments([str(part) for part in command]), run.name)
    state = ENDS.get(str(result.get("status")), State.interrupted)
    return Job(run.name, run.name, overrides, state)


def _objectives(about: dict[str, Any], outcomes: Sequence[Outcome], count: int) -> tuple[list[str], list[bool]]:
    """Names and directions of the objectives; by default the held-out loss, or the training loss without held-out records."""
    names = about.get("objective") or []
    names = [names] if isinstance(names, str) else [str(name) for name in names]
    if names in ([], ["loss"]):
        scored = any("loss" in outcome.result.get("after", {}) for outcome in outcomes)
        names = ["held-out loss" if scored or not outcomes else "training loss"]
    names = [names[i] if i < len(names) else f"objective {i + 1}" for i in range(count)]
    directions = about.get("direction") or about.get("directions") or []
    directions = [directions] if isinstance(directions, str) else list(directions)
    return names, [not (i < len(directions) and str(directions[i]).startswith("max")) for i in range(count)]


def _recorded_command(outcomes: Sequence[Outcome]) -> list[str]:
    """The command of a sweep without a ledger, from a job's environment.json."""
    for outcome in outcomes:
        if command := files.read_object(outcome.folder / "environment.json").get("command"):
            return [str(part) for part in command]
    return []


def _as_text(command: Any) -> str:
    if isinstance(command, str):
        return redact_line(command)
    return shlex.join(redact_command(program.as_line(command))) if command else ""

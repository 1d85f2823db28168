"""Measures how fast the jobs of a sweep train, and keeps it for the next sweep of the same settings on this machine. No torch."""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from hydraft.config.schema import Config, saved
from hydraft.config.sweep import SweepConfig
from hydraft.sweep.budget import Pace
from hydraft.system import files
from hydraft.system.hardware import Hardware

NO_MATTER = (
    "seed", "tracker", "train.max_steps", "train.epochs", "train.eval_every", "train.learning_rate", "train.scheduler",
    "train.warmup_ratio", "train.weight_decay", "train.betas", "train.eps", "train.log_every",
)  # fmt: skip
"""Settings on which the time of a step does not depend, or hardly."""

RECENT = 64
"""Intervals between two logged steps that count, for each number of jobs at once: a machine that others use changes its speed."""
MIN_JOBS = 4
"""Ended jobs that count, at least; otherwise the last two groups."""


@dataclass
class _Job:
    """A job that runs."""

    began: float
    at: float
    """When its last step was seen."""
    first: int
    step: int
    seen: bool = False
    """Whether a step has been seen, from which intervals are measured."""


@dataclass
class Meter:
    """Times of running jobs, as a sweep sees their steps."""

    known: Pace | None = None
    """What an earlier sweep has measured, until this one has."""
    now: Callable[[], float] = time.monotonic
    jobs: dict[int, _Job] = field(default_factory=dict)
    samples: dict[int, deque[tuple[int, float]]] = field(default_factory=dict)
    """By the number of jobs that ran at once: steps of a job, and their seconds; the newest ``RECENT``."""
    ended_jobs: list[tuple[int, int, float]] = field(default_factory=list)
    """Of each job that has ended: how many ran at once, its steps, its seconds."""
    places: int = 0
    """The most jobs that have run at once."""

    def start(self, number: int, step: int = 0) -> None:
        """A job starts after ``step`` steps of an earlier attempt."""
        now = self.now()
        self.jobs[number] = _Job(now, now, step, step)
        self.places = max(self.places, len(self.jobs))

    def saw(self, number: int, step: int) -> None:
        """A job has logged ``step``."""
        job, now = self.jobs[number], self.now()
        if step <= job.step:
            return
        if job.seen and now > job.at:
            seen = self.samples.setdefault(len(self.jobs), deque(maxlen=RECENT))
            seen.append((step - job.step, now - job.at))
        elif job.seen:  # both in one look: their time is that of the next interval
            return
        job.step, job.at, job.seen = step, now, True

    def end(self, number: int, step: int) -> None:
        """A job has ended after ``step``."""
        job = self.jobs.pop(number)
        if step > job.first:
            self.ended_jobs.append((len(self.jobs) + 1, step - job.first, self.now() - job.began))

    def steps_left(self, ends: dict[int, int]) -> list[int]:
        """Of each running job, the steps until it ends or stops, from ``ends``; one that starts counts its start as steps."""
        pace = self.pace()
        extra = round(pace.start / pace.step) if pace is not None and pace.step > 0 else 0
        return [max(0, ends[number] - job.step) + (0 if job.seen else extra) for number, job in self.jobs.items()]

    def pace(self) -> Pace | None:
        """The measured times, once a job has ended; until then those that are known, or None."""
        if not self.ended_jobs:
            return self.known
        sums = {jobs: (sum(one[0] for one in seen), sum(one[1] for one in seen)) for jobs, seen in self.samples.items()}
        rates = {jobs: seconds / steps for jobs, (steps, seconds) in sums.items()}
        recent = self.ended_jobs[-max(MIN_JOBS, 2 * self.places) :]
        if not rates:  # no two steps of a job were seen: all its time counts as that of its steps
            return Pace(self.places, sum(job[2] for job in recent) / sum(job[1] for job in recent))
        fixed, each = _line(rates, {jobs: sums[jobs][0] for jobs in rates})
        if len(rates) == 1 and self.known is not None:
            (jobs, rate), known = next(iter(rates.items())), self.known
            step = rate / known.share(min(jobs, known.places))
            shared, places = known.shared, max(self.places, known.places)
        else:
            places = self.places
            step = fixed + each * places
            shared = fixed / step if step > 0 else 1.0
        pace = Pace(places, step, 0.0, shared)
        starts = [max(0.0, seconds / pace.share(jobs) - steps * pace.step) for jobs, steps, seconds in recent]
        return Pace(places, step, sum(starts) / len(starts), shared)

    @property
    def measured(self) -> bool:
        """Whether this sweep has measured its jobs."""
        return bool(self.ended_jobs)


def _line(rates: dict[int, float], weights: dict[int, float]) -> tuple[float, float]:
    """Least squares of a + b · jobs through ``rates`` by the number of jobs, with a, b ≥ 0: a and b."""
    whole = sum(weights.values())
    mean_x = sum(weights[x] * x for x in rates) / whole
    mean_y = sum(weights[x] * rates[x] for x in rates) / whole
    spread = sum(weights[x] * (x - mean_x) ** 2 for x in rates)
    if spread == 0:
        return mean_y, 0.0
    slope = sum(weights[x] * (x - mean_x) * (rates[x] - mean_y) for x in rates) / spread
    if slope <= 0:
        return mean_y, 0.0
    if mean_y - slope * mean_x >= 0:
        return mean_y - slope * mean_x, slope
    return 0.0, sum(weights[x] * x * rates[x] for x in rates) / sum(weights[x] * x * x for x in rates)


def file_of(config: Config, axes: Collection[str], machine: Hardware | None, launcher: str) -> Path:
    """Where the times of such jobs are kept.

    Args:
        config: of one of them.
        axes: settings and groups that differ between them.
        machine: that they run on.
        launcher: its settings, as text.
    """
    config = replace(config, sweep=SweepConfig(), resume=None)
    names = {item.name for item in fields(Config)}
    sections = {axis for axis in (*axes, *NO_MATTER) if axis in names}
    single = {axis for axis in (*axes, *NO_MATTER) if axis.count(".") == 1 and axis.split(".")[0] not in sections}
    text = saved(config, leave_out=sorted(sections | {name for name in single if _is_setting(config, name)}))
    found = f"{text}\n{machine}\n{launcher}"
    return files.cache_folder("pace") / f"{hashlib.sha256(found.encode()).hexdigest()[:16]}.json"


def _is_setting(config: Config, name: str) -> bool:
    section, _, own = name.partition(".")
    return hasattr(getattr(config, section, None), own)


def load(file: Path) -> Pace | None:
    """The times in a file of the cache; None if there are none."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        found = Pace(int(values["places"]), float(values["step"]), float(values["start"]), float(values["shared"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    valid = found.places >= 1 and found.step > 0 and found.start >= 0 and 0 <= found.shared <= 1
    return found if valid else None


def save(file: Path, pace: Pace) -> None:
    """Keep the times for later sweeps; a cache that cannot be written is no reason to fail."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(file, asdict(pace))

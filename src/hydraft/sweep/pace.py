"""Measures how fast the jobs of a sweep train, and keeps it for the next sweep of the same settings on this machine. No torch."""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from statistics import median

from hydraft.config.schema import Config, saved
from hydraft.config.sweep import SweepConfig
from hydraft.sweep.budget import Pace
from hydraft.system import files
from hydraft.system.hardware import Hardware

NO_MATTER = (
    "seed", "tracker", "train.max_steps", "train.epochs", "train.eval_every", "train.learning_rate", "train.scheduler",
    "train.warmup_ratio", "train.warmup_steps", "train.min_learning_rate", "train.decay_ratio", "train.decay_power", "optimizer.weight_decay", "optimizer.betas", "optimizer.eps", "optimizer.momentum", "optimizer.lora_plus",
    "train.log_every",
)  # fmt: skip
"""Settings on which the time of a step does not depend, or hardly."""

RECENT = 64
"""Intervals between two logged steps that count, for each number of jobs at once: a machine that others use changes its speed."""
MIN_JOBS = 4
"""Jobs whose start or end counts, at least; otherwise those of the last two groups."""
SPREAD = 2.0
"""The largest number of jobs at once, divided by the smallest one, from which both show how a step's time depends on it."""


@dataclass
class _Job:
    """A job that runs."""

    began: "_Moment"
    at: "_Moment"
    """When its last step was seen."""
    first: int
    step: int
    seen: bool = False
    """Whether a step has been seen, from which intervals are measured."""


@dataclass(frozen=True)
class _Moment:
    """The meter at some time."""

    seconds: float = 0.0
    job_seconds: float = 0.0
    """Seconds until then, times the jobs that ran in them: how many ran at once on average is the rate at which it grows."""


@dataclass(frozen=True)
class _Time:
    """A time of a job."""

    jobs: float
    """How many ran at once in it, on average."""
    steps: int
    """Steps in it."""
    seconds: float


@dataclass
class Meter:
    """Times of running jobs, as a sweep sees their steps."""

    known: list[Pace] = field(default_factory=list)
    """What fits what an earlier sweep has measured, until this one has; empty if nothing is known."""
    now: Callable[[], float] = time.monotonic
    jobs: dict[int, _Job] = field(default_factory=dict)
    intervals: dict[int, deque[_Time]] = field(default_factory=dict)
    """By the number of jobs that ran at once: intervals between two logged steps of a job; the newest ``RECENT``."""
    starts: list[_Time] = field(default_factory=list)
    """Of each job: until its first logged step."""
    ends: list[_Time] = field(default_factory=list)
    """Of each job: from its last logged step; its evaluation after training, and saving."""
    whole: list[_Time] = field(default_factory=list)
    """Each job that has ended."""
    places: int = 0
    """The most jobs that have run at once."""
    last: _Moment = _Moment()
    """Until when the running jobs have been counted."""
    changed: float = 0.0
    """When the last job has started or ended."""
    _paces: list[Pace] | None = None

    def start(self, number: int, step: int = 0) -> None:
        """A job starts after ``step`` steps of an earlier attempt. Called again if it had to wait."""
        now = self._tick()
        self.changed = now.seconds
        self.jobs[number] = _Job(now, now, step, step)
        self.places = max(self.places, len(self.jobs))

    def withdraw(self, number: int) -> None:
        """A job does not start."""
        self.changed = self._tick().seconds
        self.jobs.pop(number)

    def saw(self, number: int, step: int) -> None:
        """A job has logged ``step``."""
        job, now = self.jobs[number], self._tick()
        if step <= job.step:
            return
        if job.seen and now.seconds <= job.at.seconds:  # both in one look: their time is that of the next interval
            return
        if job.seen:
            found = self._since(job.at, step - job.step)
            self.intervals.setdefault(round(found.jobs), deque(maxlen=RECENT)).append(found)
        else:
            self.starts.append(self._since(job.began, step - job.first))
        job.step, job.at, job.seen = step, now, True

    def end(self, number: int, step: int) -> None:
        """A job has ended after ``step``."""
        self.changed = self._tick().seconds
        job = self.jobs.pop(number)
        if job.seen:
            self.ends.append(self._since(job.at, step - job.step))
        if step > job.first:
            self.whole.append(self._since(job.began, step - job.first))

    def _tick(self) -> _Moment:
        """Count the running jobs until now."""
        now, self._paces = self.now(), None
        self.last = _Moment(now, self.last.job_seconds + len(self.jobs) * (now - self.last.seconds))
        return self.last

    def _since(self, then: _Moment, steps: int) -> _Time:
        seconds, job_seconds = self.last.seconds - then.seconds, self.last.job_seconds - then.job_seconds
        return _Time(job_seconds / seconds if seconds > 0 else len(self.jobs) or 1, steps, seconds)

    def steps_left(self, ends: Mapping[int, int]) -> list[int]:
        """Of the running jobs in ``ends``, the steps until they stop there; their start and end count as steps.

        Of the steps since a job's last log line as many are taken as done as there was time for.
        """
        pace, now, found = self.pace(), self.now(), list[int]()
        for number, end in ends.items():
            job, left = self.jobs[number], float(end - self.jobs[number].step)
            if pace is not None:
                left += (pace.end if job.seen else pace.start) / pace.step
                left -= (now - job.at.seconds) / (pace.step * pace.share(len(self.jobs)))
            found.append(max(0, round(left)))
        return found

    def pace(self) -> Pace | None:
        """The measured times; those that are known until there are any, or None."""
        found = self.paces()
        return found[0] if found else None

    def paces(self) -> list[Pace]:
        """Times that fit what was measured: two, as long as it is not seen how a step's time depends on the number of jobs at once.

        By the first one it does not, by the second one it is proportional to that number.
        """
        if self._paces is None:
            self._paces = self._measured()
        return self._paces

    @property
    def reached(self) -> int:
        """The most jobs at once that have been measured: each of them once, on average."""
        seen = [jobs for jobs, times in self.intervals.items() if len(times) >= min(jobs, RECENT)]
        return max([*seen, *(round(one.jobs) for one in self.whole)], default=0)

    @property
    def measured(self) -> bool:
        """Whether this sweep has measured its jobs, as many at once as have run."""
        return self.reached >= self.places > 0

    @property
    def settled(self) -> bool:
        """Whether every job has logged a step since the number of jobs has changed."""
        return all(job.seen and job.at.seconds > self.changed for job in self.jobs.values())

    def _measured(self) -> list[Pace]:
        times = [one for seen in self.intervals.values() for one in seen]
        if not times and not self.whole:
            return self.known
        # the start and the end of whole jobs count as steps: only where there is nothing better
        with_whole = times + self.whole[-RECENT:]
        if not times or _spread(times) < SPREAD <= _spread(with_whole):
            times = with_whole
        places = max(self.places, *(one.places for one in self.known), 0)
        return [self._with_ends(places, *line) for line in self._lines(times)]

    def _lines(self, times: list[_Time]) -> list[tuple[float, float]]:
        """Seconds of a step as a + b · jobs at once: a and b, or those that are possible."""
        if _spread(times) >= SPREAD:
            return [_line(times)]
        steps = sum(one.steps for one in times)
        at, rate = sum(one.jobs * one.steps for one in times) / steps, sum(one.seconds for one in times) / steps
        possible = self.known or [Pace(1, rate, shared=1.0), Pace(1, rate, shared=0.0)]
        scaled = [(one, rate / one.share(at)) for one in possible]
        return [(one.shared * step, (1 - one.shared) * step / one.places) for one, step in scaled]

    def _with_ends(self, places: int, fixed: float, each: float) -> Pace:
        step = fixed + each * places
        pace = Pace(places, step, 0.0, 0.0, fixed / step)

        def beyond(times: list[_Time]) -> float:
            if not self.intervals:  # it is part of the steps
                return 0.0
            recent = times[-max(MIN_JOBS, 2 * self.places) :]
            # the first start on a machine may compile an extension, the first one in a process imports libraries: no job after it does
            return median(max(0.0, one.seconds / pace.share(one.jobs) - one.steps * step) for one in recent)

        start = beyond(self.starts)
        # until a job has ended, its end is taken to last as long as its start: both evaluate
        end = beyond(self.ends) if self.ends else self.known[0].end if self.known else start
        return Pace(places, step, start + end, end, pace.shared)


def _spread(times: list[_Time]) -> float:
    """The largest number of jobs at once, relative to the smallest one."""
    return max(one.jobs for one in times) / min(one.jobs for one in times) if times else 0.0


def _line(times: list[_Time]) -> tuple[float, float]:
    """Least squares of a + b · jobs through the seconds of a step, weighted by steps, with a, b ≥ 0: a and b."""
    whole = sum(one.steps for one in times)
    mean_x, mean_y = sum(one.jobs * one.steps for one in times) / whole, sum(one.seconds for one in times) / whole
    spread = sum(one.steps * (one.jobs - mean_x) ** 2 for one in times)
    slope = sum((one.jobs - mean_x) * (one.seconds - one.steps * mean_y) for one in times) / spread
    if slope <= 0:
        return mean_y, 0.0
    if mean_y - slope * mean_x >= 0:
        return mean_y - slope * mean_x, slope
    return 0.0, sum(one.jobs * one.seconds for one in times) / sum(one.steps * one.jobs**2 for one in times)


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


def load(file: Path) -> list[Pace]:
    """The times in a file of the cache; none if there is no such file."""
    try:
        found = [Pace(**values) for values in json.loads(file.read_text(encoding="utf-8"))]
        valid = [
            one.places >= 1 and one.step > 0 and one.start >= one.end >= 0 and 0 <= one.shared <= 1 for one in found
        ]
    except (OSError, ValueError, TypeError):
        return []
    return found if all(valid) else []


def save(file: Path, paces: list[Pace]) -> None:
    """Keep the times for later sweeps; a cache that cannot be written is no reason to fail."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(file, [asdict(one) for one in paces])

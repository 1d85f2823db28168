"""What fits into a sweep's budget of time: the number of candidates, and how many of them train on at each rung. No torch.

Model of the time: jobs run in groups of at most ``Pace.places`` at once. A group of p jobs takes a share s + (1 - s) · p / places of
what a full one takes, since a part s of a step does not depend on how many share it (the base's weights are read once a pass;
with a process each, s is 1). A job takes ``start`` seconds beyond its steps: its start, evaluations before and after, and saving.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hydraft.config.duration import shown

MOST = 100_000
"""Candidates, at most."""


@dataclass(frozen=True)
class Pace:
    """Measured times."""

    places: int
    """Jobs that run at once."""
    step: float
    """Seconds of an optimizer step while all places are taken, evaluations during training included."""
    start: float = 0.0
    """Seconds of a job beyond its steps while all places are taken."""
    end: float = 0.0
    """Those of them after its last step."""
    shared: float = 1.0
    """Share of the time that does not depend on how many jobs run at once."""

    def share(self, jobs: float) -> float:
        """The time of ``jobs`` at once, relative to that of all places."""
        return self.shared + (1 - self.shared) * jobs / self.places

    def seconds(self, jobs: int, steps: int) -> float:
        """Seconds of ``jobs`` of ``steps`` each."""
        groups, rest = divmod(jobs, self.places)
        full = self.start + steps * self.step
        return full * (groups + (self.share(rest) if rest else 0.0))


def counts(candidates: int, levels: int, factor: int) -> list[int]:
    """How many candidates train to each of ``levels`` rungs (the end is one), if 1/η train on at each, and at least one."""
    found = [candidates]
    for _ in range(levels - 1):
        found.append(max(1, found[-1] // factor))
    return found


def seconds(pace: Pace, candidates: int, segments: Sequence[int], factor: int) -> float:
    """Seconds of ``candidates`` over ``segments``, the steps from each rung to the next and from the last one to the end."""
    halved = counts(candidates, len(segments), factor)
    return sum(pace.seconds(count, steps) for count, steps in zip(halved, segments, strict=True))


def largest(pace: Pace, left: float, segments: Sequence[int], factor: int, at_most: int = MOST) -> int:
    """The most candidates, up to ``at_most``, that end within ``left`` seconds; 0 if not even one does."""
    low, high = 0, at_most
    while low < high:
        middle = (low + high + 1) // 2
        if seconds(pace, middle, segments, factor) <= left:
            low = middle
        else:
            high = middle - 1
    return low


def running(pace: Pace, steps_left: Sequence[int]) -> float:
    """Seconds until jobs with ``steps_left``, which run at once, have ended: a pass as long as one runs, and all their own steps."""
    longest, whole = max(steps_left, default=0), sum(steps_left)
    return pace.step * (pace.shared * longest + (1 - pace.shared) * whole / pace.places)


def another(
    pace: Pace, left: float, begun: int, steps_left: Sequence[int], segments: Sequence[int], factor: int
) -> bool:
    """Whether one more candidate than ``begun``, started now, fits into ``left`` seconds, with all that follows at the later rungs.

    Args:
        pace: measured times.
        left: seconds.
        begun: candidates of this bracket that have been started.
        steps_left: of those that run, the steps to their rung.
        segments: the steps to the first rung and from each to the next.
        factor: η.
    """
    here = running(pace, [*steps_left, segments[0] + round(pace.start / pace.step)])
    later = counts(begun + 1, len(segments), factor)[1:]
    after = sum(pace.seconds(count, steps) for count, steps in zip(later, segments[1:], strict=True))
    return here + after <= left


@dataclass(frozen=True)
class Schedule:
    """What is planned, for a line to the user."""

    budget: float
    """Seconds."""
    pace: Pace
    steps: tuple[int, ...]
    """The rungs."""
    candidates: list[int]
    """How many train to each rung, and to their end."""
    seconds: float

    @property
    def text(self) -> str:
        """One line: ``budget 2 h: 27 candidates, rungs at 50, 150 steps, 3 at full length; …``."""
        many = f"{self.candidates[0]:,} {'candidate' if self.candidates[0] == 1 else 'candidates'}"
        levels = ", ".join(f"{step:,}" for step in self.steps)
        rungs = (
            f", rungs at {levels} steps, {self.candidates[-1]:,} at full length" if self.steps else " at full length"
        )
        speed = f"about {self.pace.step:.2g} s a step for {self.pace.places} at once, {self.pace.start:.2g} s to start"
        return f"budget {shown(self.budget)}: {many}{rungs}; {speed}, about {shown(self.seconds)} in all"


def schedule(budget: float, pace: Pace, steps: tuple[int, ...], total: int, factor: int, most: int = MOST) -> Schedule:
    """The schedule for a budget of seconds, for runs of ``total`` steps with rungs at ``steps``; at least one candidate."""
    parts = segments(steps, total)
    number = max(1, largest(pace, budget, parts, factor, most))
    return Schedule(budget, pace, steps, counts(number, len(parts), factor), seconds(pace, number, parts, factor))


def segments(steps: Sequence[int], total: int) -> list[int]:
    """The steps from each rung to the next, from 0 to ``total``."""
    ends = [*steps, total]
    return [end - begin for begin, end in zip([0, *ends], ends, strict=False)]

"""Decides, from measured times, which jobs of a search with ``sweep.budget`` start and which are saved before their end. No torch."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from hydraft.config import printed
from hydraft.config.duration import shown
from hydraft.sweep import budget, halving
from hydraft.sweep.budget import Pace
from hydraft.sweep.limits import Limits
from hydraft.sweep.pace import Meter

OVERRUN = 1.05
"""Part of the budget after which jobs are stopped, except the best one."""


@dataclass
class Deadline:
    """The budget of a search and the times of its jobs; a search without one is never short of time."""

    limits: Limits
    trials: int
    """Jobs of the search, at most."""
    meter: Meter = field(init=False)
    announced: bool = False
    growing: bool = False
    """Whether the number of jobs at once is still below what the time allows."""

    def __post_init__(self) -> None:
        self.meter = Meter(self.limits.known, self.limits.clock)
        self.factor = self.limits.options.reduction_factor

    @property
    def is_set(self) -> bool:
        """Whether there is a budget."""
        return self.limits.budget is not None

    def may_begin(self, begun: int, ends: Mapping[int, int], slots: int) -> bool:
        """Whether to take one more candidate.

        A process each is filled at once, and as many places as an earlier sweep has measured. Then never more than twice as many run
        at once as have been measured: how much slower a step of more jobs is, is seen before they are too many to end in time.

        Args:
            begun: candidates of its bracket that have been taken.
            ends: of the jobs that run, the step at which they stop.
            slots: processes at the same time.
        """
        known = max((one.places for one in self.limits.known), default=0)
        self.growing = len(self.meter.jobs) >= max(slots, known, 2 * self.meter.reached)
        return not self.growing and self.fits(begun, ends)

    def fits(self, begun: int, ends: Mapping[int, int]) -> bool:
        """Whether one more candidate, started now, ends in time with all that follows from it; the arguments of ``may_begin``."""
        left, parts = self.meter.steps_left(ends), self.segments(0)
        return all(budget.another(one, self.limits.left, begun, left, parts, self.factor) for one in self.meter.paces())

    def keep(self, level: int, count: int) -> int:
        """How many of ``count`` candidates train on from a rung, so that all end in time."""
        paces, parts = self.meter.paces(), self.segments(level + 1)
        if not paces:
            return halving.by_factor(self.factor)(level, count)
        return min(budget.largest(one, self.limits.left, parts, self.factor, count) for one in paces)

    def is_short(self, ends: Mapping[int, int]) -> bool:
        """Whether the jobs that run will not all end before ``OVERRUN`` of the budget is used up; ``ends`` as in ``may_begin``.

        Asked only once the number of jobs has been measured. Even if their time were proportional to it, so that without one of them
        the others were that much faster: no more jobs are saved than must be, and the next one after another look.
        """
        if self.limits.budget is None:
            return False
        until, jobs, paces = self._until_overrun, len(self.meter.jobs), self.meter.paces()
        if until <= 0:
            return True
        if not paces or not self.meter.settled:
            return False
        left, now = self.meter.steps_left(ends), paces[0]
        proportional = Pace(jobs, now.step * now.share(jobs), shared=0.0)
        return all(budget.running(one, left) > until for one in [*paces, proportional])

    def surplus(self, ends: Mapping[int, int], best: Collection[int]) -> list[int]:
        """The jobs to save when time is short: the one with the most steps left, and after ``OVERRUN`` all, but none of ``best``."""
        others = [number for number in ends if number not in best]
        if not others or self._until_overrun <= 0:
            return others
        left = dict(zip(ends, self.meter.steps_left(ends), strict=True))
        return [max(others, key=lambda number: (left[number], number))]

    @property
    def _until_overrun(self) -> float:
        """Seconds until ``OVERRUN`` of the budget is used up."""
        assert self.limits.budget is not None
        return self.limits.left + (OVERRUN - 1) * self.limits.budget

    def segments(self, level: int) -> list[int]:
        """The steps from a rung to the next one, and from there."""
        return budget.segments(self.limits.steps, self.limits.total)[level:]

    def announce(self) -> None:
        """Print what is planned, once; before any times are known, that they are not."""
        limits = self.limits
        if limits.budget is None or self.announced:
            return
        measured = self.meter.pace()
        if measured is None:
            if not self.meter.places:
                line = "no times of such jobs are known on this machine; the first jobs measure them"
                print(f"budget {shown(limits.budget)}: {line}", flush=True)
            return
        self.announced = True
        most = min(self.trials, budget.MOST)
        print(budget.schedule(limits.budget, measured, limits.steps, limits.total, self.factor, most).text, flush=True)

    def report(self, untried: int, saved: int, name: str) -> None:
        """Print how much of the budget was used, and how many jobs a later command would run in the sweep ``name``."""
        assert self.limits.budget is not None
        line = f"budget {shown(self.limits.budget)}: {shown(self.limits.budget - self.limits.left)} used"
        left = (
            ["1 point was not started" if untried == 1 else f"{untried:,} points were not started"] if untried else []
        )
        left += ["1 job was saved" if saved == 1 else f"{saved:,} jobs were saved"] if saved else []
        if left:
            line += f"; {', '.join(left)}: {printed.override('sweep.resume', name)} runs them"
        print(line, flush=True)

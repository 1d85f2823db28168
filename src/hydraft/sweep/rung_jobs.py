"""A search that prunes its jobs at rungs, or that keeps a budget of time, as a source of jobs. No torch.

A job gets ``sweep.stop_at``, the step of its next rung: there it saves a checkpoint and ends, and its place is free. If it is among
those that train on, it is returned again, and resumes. All that is decided is in the study's journal, so the search can be resumed.
"""

import json
import math
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

from hydra.core.utils import JobReturn

from hydraft.config import cli, printed
from hydraft.config.duration import shown
from hydraft.errors import ConfigError
from hydraft.sweep import budget, halving, pace
from hydraft.sweep.candidate import failure, stopping
from hydraft.sweep.halving import Halving, Member
from hydraft.sweep.limits import Limits
from hydraft.sweep.pool_job import Task
from hydraft.sweep.results import objective
from hydraft.sweep.results.ledger import State
from hydraft.sweep.search_jobs import Jobs

OVERRUN = 1.05
"""Part of the budget after which jobs are stopped, except the best one."""
BRACKET, RUNG = "bracket", "rung"
"""Attributes of a trial: the number of its bracket, and that of the rung that it trains to."""


@dataclass
class RungJobs(Jobs):
    """The jobs of a search with ``Limits``."""

    limits: Limits = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.factor = self.limits.options.reduction_factor
        minimize = objective.direction(self.search.objectives[0]) == "minimize"
        keep = halving.by_factor(self.factor) if self.limits.budget is None else self._keep
        self.halving = Halving(self.limits.steps, minimize, self.limits.brackets(self.search.trials), keep)
        self.meter = pace.Meter(self.limits.known, self.limits.clock)
        self.ready: deque[int] = deque()
        """Jobs that train on, or that an earlier command has started."""
        self.at: dict[int, int] = {}
        """The last step of each job that has been seen."""
        self.latest: dict[int, float] = {}
        """The last objective of each job that has been seen."""
        self.exhausted = False
        """Whether the search has no more trials."""
        self.late: set[int] = set()
        """Jobs that were stopped since the budget was used up."""
        self.announced = self.restored = False

    def __enter__(self) -> Self:
        """Claim the search: its brackets are in the memory of one command."""
        self.claimed = ExitStack()
        if not self.claimed.enter_context(self.session.ledger.claim("rungs")):
            raise ConfigError(
                f"sweep.resume={self.session.name}: another command runs this search, whose jobs are compared at rungs: wait for it"
            )
        self._announce()
        return self

    def __exit__(self, *error: object) -> None:
        """Keep the measured times, and print how much of the budget was used."""
        self.claimed.close()
        measured = self.meter.pace()
        if self.limits.file is not None and measured is not None and self.meter.measured:
            pace.save(self.limits.file, measured)
        if self.limits.budget is not None and error[0] is None:
            self._report_use()

    def next(self) -> Task | None:
        """The next job: one that trains on, or a new one for which there is time."""
        if not self.restored:
            self._restore()
        while True:
            self._decide()
            if self.ready:
                return self._start(self.ready.popleft())
            if self._may_begin():
                task = super().next()
                if task is not None:
                    self._admit(task[0])
                else:
                    self.exhausted = True
                    self.halving.close()
            elif self.halving.open is not None and not self._runs(self.halving.open.live):
                self.halving.close()
            else:
                return None

    def waits(self) -> bool:
        """Whether jobs wait at a rung, or new ones for the time that those before them leave."""
        return any(not member.over for member in self.halving.members.values())

    def should_stop(self, number: int) -> bool:
        """Look at what the job has logged; whether it should stop, since the search prunes it or the time is over."""
        if len(self.search.objectives) > 1:
            self._lines(number)
        stop = super().should_stop(number)
        if not self.announced and self.meter.measured:
            self._announce()
        if self.limits.budget is None or stop or self.limits.left > (1 - OVERRUN) * self.limits.budget:
            return stop
        if self._is_best(number):
            return False
        self.late.add(number)
        return True

    def ended(self, number: int, returned: JobReturn, stopped: bool) -> None:
        """Record the result of a job, unless it waits at a rung."""
        self._lines_to_search(number)
        self.meter.end(number, self.at.get(number, 0))
        member, one = self.halving.members[number], self.candidates[number]
        why = failure(returned)
        if why is not None and self._is_saved(number, why):
            return
        member.over = True
        if why is not None and number in self.late:
            self.session.records_itself(one.key, why)
            self.left_out.add(one.key)
            del self.candidates[number], self.trials[number]
            return
        super().ended(number, returned, stopped)

    def _is_saved(self, number: int, why: BaseException) -> bool:
        """Whether the job has saved a checkpoint at its rung."""
        rung, one = self.halving.stop(number), self.candidates[number]
        if rung is None or self.session.records_itself(one.key, why):
            return False
        if self.session.ledger.job(one.key).state is not State.pending:
            return False
        try:
            file = self.session.folder / self.session.here[one.key].name / "result.json"
            result = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        if result.get("status") != "preempted" or result.get("step") != rung:
            return False
        if not self.halving.waits(number):  # its objective there is not a number
            self.halving.reached(number, rung, math.nan)
        return True

    def _restore(self) -> None:
        """Take up the candidates of earlier commands."""
        self.restored = True
        for trial in self.search.study.get_trials(deepcopy=False):
            if RUNG not in trial.user_attrs:
                continue
            values = {
                self.limits.steps.index(step): value
                for step, value in trial.intermediate_values.items()
                if step in self.limits.steps
            }
            member = Member(trial.number, int(trial.user_attrs[RUNG]), values, trial.state.is_finished())
            self.halving.restore(int(trial.user_attrs[BRACKET]), member)
        while self.search.interrupted and (task := super().next()) is not None:
            self._admit(task[0])
        for member in self.halving.members.values():
            member.over |= member.number not in self.trials  # another command has ended it

    def _admit(self, number: int) -> None:
        """A candidate that is new, or of an earlier command."""
        if number not in self.halving.members:
            bracket, member = self.halving.enter(number)
            self.trials[number].set_user_attr(BRACKET, bracket)
            self.trials[number].set_user_attr(RUNG, member.level)
        if not self.halving.waits(number):
            self.ready.append(number)

    def _decide(self) -> None:
        """Let the best candidates of each complete rung train on, and record that the others are pruned."""
        on, out = self.halving.decide(self.meter.jobs)
        for member in on:
            self.trials[member.number].set_user_attr(RUNG, member.level)
            self.ready.append(member.number)
        for member in out:
            one = self.candidates.pop(member.number)
            self._prune(one)
            self._settle(member.number, one)

    def _start(self, number: int) -> Task:
        """The task of a candidate, up to its next rung."""
        one, rung = self.candidates[number], self.halving.stop(number)
        name = self.session.here[one.key].name
        self.meter.start(number, self.at.get(number, 0))
        extra = [] if rung is None else [f"sweep.stop_at={rung}"]
        overrides = [*one.overrides, *extra, cli.quote(f"hydra.sweep.subdir={name}")]
        return Task(number, overrides, stopping(one.in_folder(name), rung), one.demand.pack)

    def _lines(self, number: int) -> list[dict[str, Any]]:
        """New lines of the job's metrics; steps and objectives in them are kept."""
        lines, name = super()._lines(number), f"eval_{self.search.objectives[0]}"
        for line in lines:
            step, value = line.get("step"), line.get(name)
            if not isinstance(step, int) or step == 0:
                continue
            self.at[number] = max(step, self.at.get(number, 0))
            if number in self.meter.jobs:
                self.meter.saw(number, step)
            if isinstance(value, (int, float)):
                self.latest[number] = float(value)
                self.halving.reached(number, step, float(value))
        return lines

    def _lines_to_search(self, number: int) -> None:
        """Read the last lines of a job that has ended, and report its evaluations to the search."""
        if len(self.search.objectives) > 1:
            self._lines(number)
        super().should_stop(number)

    def _runs(self, members: Sequence[Member]) -> bool:
        return any(member.number in self.meter.jobs for member in members)

    def _may_begin(self) -> bool:
        """Whether to start a new candidate."""
        if self.exhausted:
            return False
        measured = self.meter.pace()
        if self.limits.budget is None or measured is None or not self.halving.members:
            return True
        bracket = self.halving.open
        if bracket is None and any(not member.over for member in self.halving.members.values()):
            return False  # one bracket at a time: what its last rungs take is known before another one begins
        begun = 0 if bracket is None else len(bracket.members)
        ends = {number: self.halving.stop(number) or self.limits.total for number in self.meter.jobs}
        return budget.another(
            measured, self.limits.left, begun, self.meter.steps_left(ends), self._segments(0), self.factor
        )

    def _segments(self, level: int) -> list[int]:
        return budget.segments(self.limits.steps, self.limits.total)[level:]

    def _keep(self, level: int, count: int) -> int:
        """With a budget: how many of ``count`` candidates train on from a rung, so that all end in time.

        The best one of the first bracket always does, so that a search has a result.
        """
        measured = self.meter.pace()
        if measured is None:
            return halving.by_factor(self.factor)(level, count)
        fit = budget.largest(measured, self.limits.left, self._segments(level + 1), self.factor, count)
        return fit if self.search.best() else max(1, fit)

    def _is_best(self, number: int) -> bool:
        """Whether no other job, running or done, has a better objective; without any, the one that has come furthest."""
        sign = 1 if self.halving.minimize else -1
        done = [sign * value for trial in self.search.best() for value in trial.values[:1]]
        known = {other: sign * self.latest[other] for other in self.meter.jobs if other in self.latest}
        if not known and not done:
            return number == max(self.meter.jobs, key=lambda other: (self.at.get(other, 0), -other))
        return number in known and known[number] <= min([*known.values(), *done])

    def _announce(self) -> None:
        """Print what is planned, once times are known."""
        limits = self.limits
        if limits.budget is None:
            return
        measured = self.meter.pace()
        if measured is None:
            print(
                f"budget {shown(limits.budget)}: no times of such jobs are known on this machine; the first jobs measure them",
                flush=True,
            )
            return
        self.announced = True
        most = min(self.search.trials, budget.MOST)
        print(
            budget.schedule(limits.budget, measured, limits.steps, limits.total, self.factor, most).text,
            flush=True,
        )

    def _report_use(self) -> None:
        """Print how much of the budget was used, and what a later command would run."""
        assert self.limits.budget is not None
        untried, saved = self.search.untried, len(self.left_out)
        line = f"budget {shown(self.limits.budget)}: {shown(self.limits.budget - self.limits.left)} used"
        left = [f"{untried:,} points were not started"] if untried else []
        left += [f"{saved:,} jobs were saved"] if saved else []
        if left:
            line += f"; {', '.join(left)}: {printed.override('sweep.resume', self.session.name)} runs them"
        print(line, flush=True)

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

from hydraft.config import cli
from hydraft.errors import ConfigError
from hydraft.sweep import halving, pace
from hydraft.sweep.candidate import failure, stopping
from hydraft.sweep.deadline import Deadline
from hydraft.sweep.halving import Halving, Member
from hydraft.sweep.limits import Limits
from hydraft.sweep.pool_job import Task
from hydraft.sweep.results import objective
from hydraft.sweep.results.ledger import State
from hydraft.sweep.search_jobs import Jobs

BRACKET, RUNG = "bracket", "rung"
"""Attributes of a trial: the number of its bracket, and that of the rung that it trains to."""


@dataclass
class RungJobs(Jobs):
    """The jobs of a search with ``Limits``."""

    limits: Limits = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        minimize = objective.direction(self.search.objectives[0]) == "minimize"
        self.deadline = Deadline(self.limits, self.search.trials)
        self.meter = self.deadline.meter
        keep = self._keep if self.deadline.is_set else halving.by_factor(self.limits.options.reduction_factor)
        self.halving = Halving(self.limits.steps, minimize, self.limits.brackets(self.search.trials), keep)
        self.ready: deque[int] = deque()
        """Jobs that train on, or that an earlier command has started."""
        self.at: dict[int, int] = {}
        """The last step of each job that has been seen."""
        self.latest: dict[int, float] = {}
        """The last objective of each job that has been seen."""
        self.exhausted = False
        """Whether the search has no more trials."""
        self.late: set[int] = set()
        """Jobs that were stopped for lack of time."""
        self.short: set[int] = set()
        """Jobs whose last steps have been read since time is short: which one to save is decided once that are all."""
        self.withdrawn: set[int] = set()
        """Jobs that were taken, and for which there was no time any more when they could start."""
        self.restored = False

    def __enter__(self) -> Self:
        """Claim the search: its brackets are in the memory of one command."""
        self.claimed = ExitStack()
        if not self.claimed.enter_context(self.session.ledger.claim("rungs")):
            raise ConfigError(
                f"sweep.resume={self.session.name}: another command runs this search, whose jobs are compared at rungs: wait for it"
            )
        self.deadline.announce()
        return self

    def __exit__(self, *error: object) -> None:
        """Keep the measured times, and print how much of the budget was used."""
        self.claimed.close()
        if self.limits.file is not None and self.meter.reached:
            pace.save(self.limits.file, self.meter.paces())
        if self.deadline.is_set and error[0] is None:
            dropped = len(self.withdrawn)
            self.deadline.report(self.search.untried + dropped, len(self.left_out) - dropped, self.session.name)

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
        if not self.deadline.is_set:
            return stop
        if self.meter.measured and not self.deadline.growing:
            self.deadline.announce()
        ends = self._ends()
        if stop or number not in ends:
            return stop
        self.short = {*self.short, number} if self.deadline.is_short(ends) else set()
        if self.short >= ends.keys() and number in self.deadline.surplus(ends, self._best()):
            self.late.add(number)
            return True
        return False

    def may_start(self, number: int) -> bool:
        """Whether there is still time for a job that may have waited for a process."""
        self.meter.withdraw(number)
        step, begun = self.at.get(number, 0), len(self.halving.brackets[-1].members) - 1
        is_asked = step == 0 and self.deadline.is_set and bool(self.meter.jobs or self.search.best())
        if is_asked and not self.deadline.fits(begun, self._ends()):
            self.withdrawn.add(number)
            self._leave_out(number)
            return False
        self.meter.start(number, step)
        return True

    def ended(self, number: int, returned: JobReturn, stopped: bool) -> None:
        """Record the result of a job, unless it waits at a rung."""
        self._lines_to_search(number)
        self.meter.end(number, self.at.get(number, 0))
        member, one = self.halving.members[number], self.candidates[number]
        why = failure(returned)
        if why is not None and self._is_saved(number, why):
            return
        if why is not None and number in self.late:
            self.session.records_itself(one.key, why)
            self._leave_out(number)
            return
        member.over = True
        self.deadline.announce()
        super().ended(number, returned, stopped)

    def _leave_out(self, number: int) -> None:
        """A job is left for a later command."""
        self.halving.members[number].over = True
        self.left_out.add(self.candidates[number].key)
        del self.candidates[number], self.trials[number]

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
        if not self.deadline.is_set or not self.halving.members:
            return True
        bracket = self.halving.open
        if bracket is None and any(not member.over for member in self.halving.members.values()):
            return False  # one bracket at a time: what its last rungs take is known before another one begins
        return self.deadline.may_begin(0 if bracket is None else len(bracket.members), self._ends(), self.slots)

    def _ends(self) -> dict[int, int]:
        """Of the running jobs that have not been stopped, the step at which they end, or stop for now."""
        running = [number for number in self.meter.jobs if number not in self.late]
        return {number: self.halving.stop(number) or self.limits.total for number in running}

    def _keep(self, level: int, count: int) -> int:
        """With a budget: the best one of the first bracket always trains on, so that a search has a result."""
        self.deadline.announce()
        fit = self.deadline.keep(level, count)
        return fit if self.search.best() else max(1, fit)

    def _best(self) -> set[int]:
        """The running jobs of which no other one, running or done, has a better objective; without any, the one that has come furthest."""
        sign = 1 if self.halving.minimize else -1
        done = [sign * value for trial in self.search.best() for value in trial.values[:1]]
        known = {number: sign * self.latest[number] for number in self.meter.jobs if number in self.latest}
        if not known and not done:
            return {max(self.meter.jobs, key=lambda number: (self.at.get(number, 0), -number))}
        least = min([*known.values(), *done])
        return {number for number, value in known.items() if value <= least}

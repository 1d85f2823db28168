"""The jobs of a search's trials: one, or with ``sweep.replicas`` one for each seed, whose mean is the trial's value. No torch."""

from collections import deque
from dataclasses import dataclass, field
from statistics import fmean

from optuna.trial import Trial

from hydraft.sweep import replicas
from hydraft.sweep.session import Session
from hydraft.sweep.study import Search

Task = tuple[int, Trial, list[str]]
"""A job: its number, its trial and its overrides."""


@dataclass
class SeedsOfTrials:
    """Asks a search for trials, and reports to it once all seeds of a trial have ended.

    The evaluations during training of a trial's first seed decide whether it is pruned; then no other seed of it is run to its end.
    """

    session: Session
    search: Search
    waiting: deque[Task] = field(default_factory=deque)
    results: dict[int, list[list[float] | None]] = field(default_factory=dict)
    """By trial: the objectives of each seed that has ended, None for one that failed or was pruned."""
    pruned: set[int] = field(default_factory=set)

    @property
    def count(self) -> int:
        """Seeds of a trial."""
        return int(self.session.config.sweep.replicas)

    def next(self) -> Task | None:
        """The next job; None if there are no more."""
        while True:
            while self.waiting:
                task = self.waiting.popleft()
                if not self.is_pruned(task[1]):
                    return task
                self.ended(task[1], None, pruned=True)
            if (trial := self.search.ask()) is None:
                return None
            point, first = self.search.overrides(trial), trial.number * self.count
            runs = replicas.expanded(self.session.context.config_loader, self.session.config, [point])
            self.waiting.extend((first + index, trial, run) for index, run in enumerate(runs))
            self.results[trial.number] = [None] * (
                self.count - len(runs)
            )  # one that cannot be composed has a single job

    def evaluated(self, number: int, trial: Trial, step: int, value: float) -> bool:
        """Report an evaluation of job ``number``; whether its trial should stop."""
        return number % self.count == 0 and self.search.evaluated(trial, step, value)

    def is_pruned(self, trial: Trial) -> bool:
        """Whether the trial's first seed was pruned."""
        return trial.number in self.pruned

    def ended(self, trial: Trial, values: list[float] | None, pruned: bool) -> None:
        """Take the objectives of a job at its end, None if it failed, and report the trial after its last one."""
        if pruned:
            self.pruned.add(trial.number)
        known = self.results.setdefault(trial.number, [])
        known.append(values)
        if len(known) < self.count:
            return
        done = [one for one in known if one is not None]
        means = [fmean(column) for column in zip(*done, strict=True)] if len(done) == len(known) else None
        self.search.ended(trial, means, self.is_pruned(trial))

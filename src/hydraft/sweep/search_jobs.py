"""A search as a source of jobs: takes trials from it, and reports evaluations and results to it. No torch."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from optuna.trial import Trial

from hydraft.config import cli
from hydraft.sweep.candidate import Candidate, failure
from hydraft.sweep.pool_job import Task
from hydraft.sweep.results import objective
from hydraft.sweep.results.ledger import OVER, State
from hydraft.sweep.seeds_of_trials import SeedsOfTrials
from hydraft.sweep.session import Session
from hydraft.sweep.study import Search
from hydraft.system import files, line_file


@dataclass
class Jobs:
    """A search as a source of jobs."""

    session: Session
    search: Search
    trials: dict[int, Trial] = field(default_factory=dict)
    """The trials of the jobs that are running, by the job's number."""
    candidates: dict[int, Candidate] = field(default_factory=dict)
    twins: dict[str, list[Trial]] = field(default_factory=dict)
    """By job key: trials with the same values as a running one, whose result they share."""
    read: dict[int, int] = field(default_factory=dict)
    """Bytes of metrics.jsonl that have been read, by number."""
    checked: dict[tuple[str, ...], Candidate] = field(default_factory=dict)
    """Jobs that were composed and checked before the search began, by their overrides."""
    fixed = False
    slots: int = 1
    """How many processes run at the same time; the launcher sets it."""
    left_out: set[str] = field(default_factory=set)
    """Keys of jobs that are not to be run by this command."""

    def __post_init__(self) -> None:
        self.seeds = SeedsOfTrials(self.session, self.search)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Called when no job runs any more."""

    def waits(self) -> bool:
        """Never: a search has a next trial at any time, or none."""
        return False

    def may_start(self, number: int) -> bool:
        """Always."""
        return True

    def next(self) -> Task | None:
        """The next trial that has to run; the results of jobs that are done or cannot run are reported at once."""
        ledger = self.session.ledger
        while (task := self.seeds.next()) is not None:
            number, trial, overrides = task
            one = self.checked.pop(tuple(overrides), None) or self.session.candidate(overrides)
            job = self.session.add([one])[0]
            self.session.here[job.key] = job
            failed = job.state is State.failed and not self.session.config.sweep.retry_failed
            if any(one.key == other.key for other in self.candidates.values()):
                self.twins.setdefault(one.key, []).append(trial)
            elif one.refused or failed or job.state in (State.done, State.pruned):
                self._report(trial, job.state, job.name)
            elif not ledger.is_claimed(job.key):  # by another process, which records the result
                self.trials[number], self.candidates[number] = trial, one
                return Task(
                    number,
                    [*one.overrides, cli.quote(f"hydra.sweep.subdir={job.name}")],
                    one.in_folder(job.name),
                    one.demand.pack,
                )
        return None

    def should_stop(self, number: int) -> bool:
        """Report every new evaluation to the search; whether the job should stop."""
        if len(self.search.objectives) > 1:
            return False
        name, stop = f"eval_{self.search.objectives[0]}", False
        for line in self._lines(number):
            if line.get("step") and isinstance(line.get(name), (int, float)):
                stop |= self.seeds.evaluated(number, self.trials[number], int(line["step"]), float(line[name]))
        return stop or self.seeds.is_pruned(self.trials[number])

    def ended(self, number: int, returned: JobReturn, stopped: bool) -> None:
        """Record the result of a job in the ledger and report it to the search."""
        one, why = self.candidates.pop(number), failure(returned)
        if why is not None and not self.session.records_itself(one.key, why):
            self.session.settle(one.key, why)
        if why is not None and stopped:
            self._prune(one)
        self._settle(number, one)

    def _prune(self, one: Candidate) -> None:
        """Record that a job was pruned."""
        self.session.ledger.record(one.key, State.pruned)
        self._mark(self.session.folder / self.session.here[one.key].name / "result.json")

    def _settle(self, number: int, one: Candidate) -> None:
        """Report the result of a job to the search."""
        job = self.session.here[one.key] = self.session.ledger.job(one.key)
        for trial in [self.trials.pop(number), *self.twins.pop(one.key, [])]:
            if job.state in OVER:
                self._report(trial, job.state, job.name)

    def one_by_one(self, launcher: Launcher) -> None:
        """Run one job after another, with a launcher that takes all jobs at once, so that each can use the results before it."""
        while (task := self.next()) is not None:
            returned = launcher.launch([task.overrides], initial_job_idx=task.number)[0]
            self.ended(task.number, returned, stopped=False)

    def _mark(self, file: Path) -> None:
        """Write to a run's folder that it was pruned."""
        with suppress(OSError, ValueError):
            files.write_json(file, {**json.loads(file.read_text(encoding="utf-8")), "status": State.pruned.value})

    def _report(self, trial: Trial, state: State, name: str) -> None:
        values = None
        if state is State.done:
            result = json.loads((self.session.folder / name / "result.json").read_text(encoding="utf-8"))
            values = objective.values(self.search.objectives, result)
        self.seeds.ended(trial, values, state is State.pruned)

    def _lines(self, number: int) -> list[dict[str, Any]]:
        job = self.session.here[self.candidates[number].key]
        file: Path = self.session.folder / job.name / "metrics.jsonl"
        try:
            with file.open("rb") as stream:
                stream.seek(self.read.get(number, 0))
                new = stream.read()
        except FileNotFoundError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self.read[number] = self.read.get(number, 0) + len(whole)
        return line_file.parse(whole).values

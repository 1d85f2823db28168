"""Runs a search: takes jobs from it, runs them with a launcher, reports their results, and stops those that are pruned. No torch."""

import json
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution
from optuna.trial import Trial

from hydraft.config import cli, printed
from hydraft.errors import EXIT_REFUSED, ConfigError, RunFailed
from hydraft.plan.pack import largest
from hydraft.sweep import decide, replicas
from hydraft.sweep.candidate import Candidate, failure, refusal
from hydraft.sweep.pool_job import Task
from hydraft.sweep.results import objective
from hydraft.sweep.results.ledger import OVER, State
from hydraft.sweep.results.live_table import Live
from hydraft.sweep.search_space import Space, Value, make_space
from hydraft.sweep.seeds_of_trials import SeedsOfTrials
from hydraft.sweep.session import Session
from hydraft.sweep.slots import Demand
from hydraft.sweep.study import Method, Search
from hydraft.system import files, line_file

POLL_SECONDS = 0.2
"""Between two checks for new evaluations of running jobs."""


def run(session: Session, launcher: Launcher, settings: dict[str, Any], arguments: list[str]) -> list[Any]:
    """Search the space of ``settings`` and ``arguments`` with jobs of ``launcher``.

    Returns:
        The best trials.

    Raises:
        ConfigError: the settings of the search are wrong.
        RunFailed: some jobs cannot run, and ``sweep.skip_invalid`` is not set; none was started.
    """
    config, loader = session.config, session.context.config_loader
    typed = [*cli.params(settings.pop("params")), *arguments]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(typed)
    plain = [override.input_line or "" for override in overrides if not override.is_sweep_override()]
    composed = loader.load_sweep_config(config, plain)
    if settings["pruner"] != "none" and OmegaConf.select(composed, "train.eval_every") is None:
        raise ConfigError(
            f"hydra.sweeper.pruner={settings['pruner']}: jobs are not evaluated during training: add train.eval_every=epoch, or a number of steps"
        )
    space = make_space(overrides, composed)
    replicas.check(config, list(space.axes))
    demand = _check(session, space)
    method = Method(seed=int(OmegaConf.select(composed, "seed", default=42)), **settings)
    search = Search(session.folder, space, list(config.sweep.objective), method)
    jobs = Jobs(session, search, SeedsOfTrials(session, search))
    streams = hasattr(launcher, "stream")
    session.add([])  # claims the folder
    try:
        with Live(session.folder, lines=not streams):
            if streams:
                launcher.stream(jobs, demand, POLL_SECONDS)
            else:
                jobs.one_by_one(launcher)
    except BaseException:
        again = printed.override("sweep.resume", session.name)
        print(f"to resume it, add {again} to the same command", file=sys.stderr)
        raise
    session.here = session.ledger.jobs()
    if config.sweep.decide:
        decide.run(session, launcher)
        session.here = session.ledger.jobs()
    return search.best()


def _check(session: Session, space: Space) -> Demand:
    """Check and plan a job at both ends of every axis, with the first value of the other axes.

    Returns:
        The largest demand of these jobs.

    Raises:
        RunFailed: one of them cannot run.
    """
    ends = {key: _ends(axis) for key, axis in space.axes.items()}
    first = {key: values[0] for key, values in ends.items()}
    trials = [{**first, key: value} for key, values in ends.items() for value in values]
    candidates = [session.candidate(space.overrides(values)) for values in trials]
    refused = [one for one in candidates if one.refused]
    if refused and (len(refused) == len(candidates) or not session.config.sweep.skip_invalid):
        raise RunFailed(refusal(candidates), EXIT_REFUSED)
    demands = [one.demand for one in candidates if not one.refused]
    shared = [demand.shared for demand in demands if demand.shared is not None]
    return Demand(
        max(demand.ranks for demand in demands),
        max(demand.memory for demand in demands),
        any(demand.alone for demand in demands),
        shared=largest(shared) if shared else None,
    )


def _ends(axis: Any) -> list[Value]:
    return (
        [str(choice) for choice in axis.choices] if isinstance(axis, CategoricalDistribution) else [axis.low, axis.high]
    )


@dataclass
class Jobs:
    """A search as a source of jobs."""

    session: Session
    search: Search
    seeds: SeedsOfTrials
    trials: dict[int, Trial] = field(default_factory=dict)
    """The trials of the jobs that are running, by the job's number."""
    candidates: dict[int, Candidate] = field(default_factory=dict)
    twins: dict[str, list[Trial]] = field(default_factory=dict)
    """By job key: trials with the same values as a running one, whose result they share."""
    read: dict[int, int] = field(default_factory=dict)
    """Bytes of metrics.jsonl that have been read, by number."""

    fixed = False

    def next(self) -> Task | None:
        """The next trial that has to run; the results of jobs that are done or cannot run are reported at once."""
        ledger = self.session.ledger
        while (task := self.seeds.next()) is not None:
            number, trial, overrides = task
            one = self.session.candidate(overrides)
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
            self.session.ledger.record(one.key, State.pruned)
            self._mark(self.session.folder / self.session.here[one.key].name / "result.json")
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

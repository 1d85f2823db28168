"""A sweep at work: every job is composed and checked before the first begins; then a launcher runs what is left to do.

What is known of a job is in the ledger, where the job itself writes it (``record.py``), so any of Hydra's launchers will do,
and two processes may work through one sweep. No torch here.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from hydraft.config import cli
from hydraft.config.choices import Launcher as Starter
from hydraft.config.choices import Mode
from hydraft.config.schema import Config
from hydraft.errors import EXIT_REFUSED, ConfigError, RunFailed
from hydraft.launch import run as launch
from hydraft.plan import preflight
from hydraft.plan.render import verdict
from hydraft.sweep import folder_names, job_status, sweep_folder
from hydraft.sweep.results import ledger, objective, write
from hydraft.sweep.results.ledger import Job, Ledger, State
from hydraft.sweep.results.live_table import Live
from hydraft.sweep.slots import Demand
from hydraft.system.hardware import Hardware
from hydraft.system.version import __version__

ELSEWHERE_SECONDS = 0.5
"""Between two looks at jobs that another process is at."""


@dataclass
class Candidate:
    """A job before it is known whether it may run."""

    overrides: list[str]
    composed: DictConfig | None = None
    demand: Demand = field(default_factory=Demand)
    key: str = ""
    refused: str | None = None
    """Why it cannot run, in a line."""


class Session:
    """One ``python train.py -m …`` on the folder of its sweep."""

    def __init__(self, context: HydraContext, config: DictConfig) -> None:
        """``config`` is the sweep's own; its ``hydra.sweep.dir`` becomes what ``sweep.name`` and ``sweep.resume`` say.

        Raises:
            ConfigError: the folder cannot be this sweep's.
        """
        self.context = context
        self.config = config
        self.folder = sweep_folder.folder_of(config)
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.sweep.dir = str(self.folder)
            config.hydra.overrides.hydra.append(cli.quote(f"hydra.sweep.dir={self.folder}"))
        self.ledger = Ledger(self.folder)
        self.is_here = "slurm" not in str(OmegaConf.select(config, "hydra.launcher._target_")).lower()
        """Whether jobs run on this machine."""
        self.machines: dict[str, Hardware | None] = {}
        self.here: dict[str, Job] = {}
        """The jobs of this command, by key."""
        self.number = 0
        """Of the next job that is launched, as Hydra counts."""

    def run(self, launcher: Launcher, jobs: Sequence[Sequence[str]]) -> list[JobReturn]:
        """Run ``jobs``, each a list of overrides, except for those that are done.

        Returns:
            What came of each, in their order, those that ran before included; a job that failed is one with its error.

        Raises:
            RunFailed, ConfigError: some cannot run, and ``sweep.skip_invalid`` is not set, or none can; none was begun.
        """
        candidates = [self.candidate(job) for job in jobs]
        refused = [one for one in candidates if one.refused]
        if len(refused) == len(candidates) and len({one.refused for one in refused}) == 1:
            raise ConfigError(str(refused[0].refused))
        if refused and (len(refused) == len(candidates) or not self.config.sweep.skip_invalid):
            raise RunFailed(self.refusal(candidates), EXIT_REFUSED)
        added = self.add(candidates)
        self._launch(launcher, {job.key: one for job, one in zip(added, candidates, strict=True)})
        self.here |= {job.key: self.ledger.jobs()[job.key] for job in added}
        return [self._returned(one, self.here[job.key]) for job, one in zip(added, candidates, strict=True)]

    def candidate(self, overrides: Sequence[str]) -> Candidate:
        """Compose a job, check it and plan it; nothing is begun."""
        found = Candidate(list(overrides))
        try:
            found.composed = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            own = [str(key) for key in found.composed if key != "hydra"]
            asked = cli.typed(OmegaConf.masked_copy(found.composed, own), Config)
            found.key = ledger.key_of(asked)
            found.demand = self._admit(asked)
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            found.refused = cli.explain(error)
            found.key = found.key or folder_names.mark(overrides)
        return found

    def add(self, candidates: Sequence[Candidate]) -> list[Job]:
        """Have the jobs in the ledger, each with a folder of its own."""
        axes = self._axes([one.overrides for one in candidates])
        ledger.begin(self.folder, self._about(axes))
        if not (self.folder / "multirun.yaml").exists():
            OmegaConf.save(self.config, self.folder / "multirun.yaml")
        called = folder_names.names([one.overrides for one in candidates], axes)
        jobs = [
            Job(one.key, name, one.overrides, State.refused if one.refused else State.pending, error=one.refused)
            for one, name in zip(candidates, called, strict=True)
        ]
        known = self.ledger.add(jobs)
        for one, job in zip(candidates, known, strict=True):
            if job.state is State.refused and not one.refused:  # on this machine, or in this version, it can be
                self.ledger.tell(job.key, State.pending)
                job.state = State.pending
            elif one.refused and job.state is not State.refused and job.state is not State.done:
                self.ledger.tell(job.key, State.refused, error=one.refused)
                job.state = State.refused
        return known

    def close(self) -> None:
        """Say how the jobs of this command went: the ranked table, summary.csv and report.html.

        Raises:
            RunFailed: not all of them are done.
        """
        jobs = list(self.here.values())
        counts = {state: sum(job.state is state for job in jobs) for state in State}
        told = ", ".join(f"{count} {state.value}" for state, count in counts.items() if count)
        write.at_the_end(self.folder)
        summary = f"{self.folder}: {told}"
        bad = [job for job in jobs if job.state not in (State.done, State.pruned, State.refused)]
        if not bad:
            return
        again = [f"sweep.resume={self.name}"]
        again += ["sweep.retry_failed=true"] if counts[State.failed] else []
        lines = [job_status.describe(job, self.folder) for job in bad]
        raise RunFailed("\n".join([summary, *lines, f"the same command with {' '.join(again)} tries again"]))

    @property
    def name(self) -> str:
        """What ``sweep.resume`` takes."""
        try:
            return str(self.folder.relative_to(sweep_folder.ROOT))
        except ValueError:
            return str(self.folder)

    def _admit(self, asked: Config) -> Demand:
        """What a job takes of this machine.

        Raises:
            ConfigError: it cannot run, or could never fit.
        """
        if asked.resume is not None:
            raise ConfigError(f"resume={asked.resume}: goes on with a single run; sweep.resume=… goes on with a sweep")
        cluster = repr(asked.cluster)
        if cluster not in self.machines:
            self.machines[cluster] = launch.machine(asked) if self.is_here else None
        if asked.mode is not Mode.train:
            raise ConfigError(
                f"mode={asked.mode.value}: some jobs of a sweep cannot train while others do something else"
            )
        admitted = preflight.admit(preflight.resolve(asked, self.machines[cluster]))
        if admitted.plan.fits is False:
            raise ConfigError(verdict(admitted.plan))
        if asked.cluster.launcher is Starter.slurm:
            return Demand(ranks=0)
        cost = admitted.plan.cost
        memory = cost.memory.host_peak * asked.cluster.ranks_per_node if cost else 0
        return Demand(asked.cluster.ranks_per_node, memory, alone=asked.cluster.on_hosts)

    def _launch(self, launcher: Launcher, candidates: dict[str, Candidate]) -> None:
        """Run what is left to do; what another process is at is waited for, and run if that process gives it up."""
        todo = self._left(candidates)
        live = Live(self.folder, lines=not hasattr(launcher, "demands"))  # other launchers' jobs print to this terminal
        try:
            with live:
                while todo:
                    free = [key for key in todo if not self.ledger.is_claimed(key)]
                    if free:
                        tried = self._batch(launcher, free, candidates)
                        todo = [key for key in todo if key not in tried]
                    else:
                        time.sleep(ELSEWHERE_SECONDS)
                    known = self.ledger.jobs()
                    todo = [key for key in todo if known[key].state not in ledger.OVER]
        except BaseException:
            for key in todo:
                if self.ledger.jobs()[key].state is State.running and not self.ledger.is_claimed(key):
                    self.settle(key, KeyboardInterrupt("ended with its sweep"), State.interrupted)
            print(f"go on with it by the same command and sweep.resume={self.name}", file=sys.stderr)
            raise

    def _batch(self, launcher: Launcher, keys: list[str], candidates: dict[str, Candidate]) -> list[str]:
        """Have ``launcher`` run these jobs; the keys of those that it did run."""
        known = self.ledger.jobs()
        overrides = [[*candidates[key].overrides, cli.quote(f"hydra.sweep.subdir={known[key].name}")] for key in keys]
        if hasattr(launcher, "demands"):
            launcher.demands = [candidates[key].demand for key in keys]
            launcher.composed = [in_folder(candidates[key], known[key].name) for key in keys]
        results: Sequence[JobReturn] = []
        trouble: Exception | None = None
        try:
            results = launcher.launch(overrides, initial_job_idx=self.number)
        except ConfigError:
            raise
        except Exception as raised:  # submitit's way to tell of a job that Slurm ended
            trouble = raised
        self.number += len(keys)
        tried: list[str] = []
        for index, key in enumerate(keys):
            why = trouble if trouble is not None else failure(results[index])
            if isinstance(why, job_status.Elsewhere):
                continue
            tried.append(key)
            if why is not None and not self.ledger.is_claimed(key):
                self.settle(key, why)
        return tried

    def settle(self, key: str, error: BaseException, state: State = State.failed) -> None:
        """A job that ended badly without having told so itself."""
        if self.ledger.jobs()[key].state not in (State.pending, State.running):
            return
        try:
            self.ledger.tell(key, state, error=job_status.line(error))
        except OSError as full:
            print(
                f"{self.ledger.file}: {full.strerror}; a job {state.value}: {job_status.line(error)}", file=sys.stderr
            )

    def _left(self, candidates: dict[str, Candidate]) -> list[str]:
        """The jobs of this command that are to run."""
        known = self.ledger.jobs()
        return [
            key
            for key in candidates
            if known[key].state not in ledger.OVER
            or (known[key].state is State.failed and self.config.sweep.retry_failed)
        ]

    def _returned(self, one: Candidate, job: Job) -> JobReturn:
        returned = JobReturn()
        returned.overrides = one.overrides
        returned.cfg = one.composed
        returned.working_dir = str(self.folder / job.name)
        returned.status = JobStatus.COMPLETED if job.state is State.done else JobStatus.FAILED
        returned.return_value = job.objective if job.state is State.done else RunFailed(job.error or job.state.value)
        return returned

    def _axes(self, jobs: Sequence[Sequence[str]]) -> list[str]:
        """The keys that are swept, as the command and ``hydra.sweeper.params`` have them; of a single job, all."""
        params = OmegaConf.select(self.config, "hydra.sweeper.params") or {}
        typed = [*(f"{key}={value}" for key, value in params.items()), *self.config.hydra.overrides.task]
        parsed = OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(typed)
        swept = [override.key_or_group for override in parsed if override.is_sweep_override()]
        differing = folder_names.differing(jobs) if len(jobs) > 1 or not swept else []  # a search has one at a time
        return list(dict.fromkeys([*swept, *differing]))

    def _about(self, axes: list[str]) -> dict[str, Any]:
        return {
            "id": folder_names.mark([str(self.folder.resolve()), str(time.time_ns())]),
            "name": self.name,
            "command": shlex.join(["python", *sys.argv]),
            "created": time.time(),
            "axes": axes,
            "objective": list(self.config.sweep.objective),
            "direction": [objective.direction(name) for name in self.config.sweep.objective],
            "version": __version__,
        }

    def refusal(self, candidates: Sequence[Candidate]) -> str:
        """What to say of jobs of which some cannot run."""
        refused = [one for one in candidates if one.refused]
        called = folder_names.names([one.overrides for one in candidates])
        shown = [f"  {name}: {one.refused}" for one, name in zip(candidates, called, strict=True) if one.refused]
        head = f"{Path(sys.argv[0]).name}: {len(refused)} of {len(candidates)} jobs cannot run, and none was begun:"
        rest = [] if len(refused) == len(candidates) else ["sweep.skip_invalid=true runs the others"]
        return "\n".join([head, *shown, *rest])


def in_folder(one: Candidate, name: str) -> DictConfig:
    """The config that was checked, so that no one has to compose it again."""
    assert one.composed is not None
    with read_write(one.composed.hydra), open_dict(one.composed.hydra):
        one.composed.hydra.sweep.subdir = name
    return one.composed


def failure(returned: JobReturn) -> BaseException | None:
    """Why a job failed; Hydra's own way to ask prints."""
    return returned._return_value if returned.status is not JobStatus.COMPLETED else None

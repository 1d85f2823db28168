"""Runs a sweep: all jobs are composed and checked before the first starts; then a launcher runs those that are not done.

The state of a job is in the ledger, where the job itself records it (``job_status.py``). So any launcher of Hydra can be used, and
two processes can work on one sweep. No torch.
"""

import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from hydraft.config import cli, printed
from hydraft.config.choices import Launcher as Starter
from hydraft.config.choices import Mode
from hydraft.config.schema import Config
from hydraft.errors import EXIT_REFUSED, ConfigError, RunFailed
from hydraft.launch import run as launch
from hydraft.plan import preflight
from hydraft.plan.render import verdict
from hydraft.runs import claim, run_folder
from hydraft.sweep import folder_names, holder, job_status, packs, replicas, sweep_folder
from hydraft.sweep.candidate import CONFIGS, Candidate, failure, refusal, returned
from hydraft.sweep.results import ledger, objective, write
from hydraft.sweep.results.ledger import Job, Ledger, State
from hydraft.sweep.results.live_table import Live
from hydraft.sweep.slots import Demand
from hydraft.system import files, program, streams
from hydraft.system.hardware import Hardware
from hydraft.system.redaction import redact_command, redact_text
from hydraft.system.version import __version__
from hydraft.training.objectives.registry import make_objective

ENDING_SECONDS = 10.0
"""For the last processes of a job that was killed."""
ELSEWHERE_SECONDS = 0.5
"""Between two checks of jobs that another process runs."""


class Session:
    """One command ``train -m …`` and the folder of its sweep."""

    def __init__(self, context: HydraContext, config: DictConfig) -> None:
        """Find the folder of the sweep, and set it as ``hydra.sweep.dir`` of the sweep's ``config``.

        Raises:
            ConfigError: the folder cannot be used for this sweep.
        """
        cli.refuse(config.hydra)
        streams.go_on()
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
        self.measured: preflight.Measured = {}
        self.here: dict[str, Job] = {}
        """The jobs of this command, by key."""
        self.overrides: dict[str, list[str]] = {}
        """Their overrides, by key."""
        self.number = 0
        """Number of the next job that is launched, as Hydra counts them."""

    def run(self, launcher: Launcher, jobs: Sequence[Sequence[str]]) -> list[JobReturn]:
        """Run ``jobs``, each a list of overrides, except those that are done.

        Returns:
            The result of each in the same order, also of those that ran before; that of a failed job has its error.

        Raises:
            RunFailed, ConfigError: none can run, or some cannot and ``sweep.skip_invalid`` is not set; none was started.
        """
        candidates = [self.candidate(job) for job in jobs]
        refused = [one for one in candidates if one.refused]
        if len(refused) == len(candidates) and len({one.refused for one in refused}) == 1:
            raise ConfigError(str(refused[0].refused))
        if refused and (len(refused) == len(candidates) or not self.config.sweep.skip_invalid):
            raise RunFailed(refusal(candidates), EXIT_REFUSED)
        added = self.add(candidates)
        self._launch(launcher, {job.key: one for job, one in zip(added, candidates, strict=True)})
        known = self.ledger.jobs()
        self.here |= {job.key: known[job.key] for job in added}
        with_config = len(candidates) <= CONFIGS
        pairs = zip(added, candidates, strict=True)
        return [returned(one, self.here[job.key], self.folder, with_config) for job, one in pairs]

    def candidate(self, overrides: Sequence[str]) -> Candidate:
        """Compose a job, check it and plan it; nothing is started."""
        found = Candidate(list(overrides))
        try:
            composed = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            requested = found.take(composed)
            found.key = ledger.key_of(requested)
            found.demand, found.steps = self._admit(requested)
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            found.refused = redact_text(cli.explain(error))
            found.key = found.key or folder_names.mark(overrides)
        return found

    def add(self, candidates: Sequence[Candidate]) -> list[Job]:
        """Add the jobs to the ledger, each with its own folder."""
        axes = self._axes([one.overrides for one in candidates])
        made = files.missing(self.folder.absolute())
        try:
            with claim.writable(self.folder, "hydra.sweep.dir"):
                return self._add(candidates, axes)
        except ConfigError:
            if made and not self.ledger.file.exists():  # all that is in it is of this command
                for name in (".ledger.lock", ledger.ABOUT, "multirun.yaml"):
                    (self.folder / name).unlink(missing_ok=True)
                files.remove_empty(made)
            raise

    def _add(self, candidates: Sequence[Candidate], axes: list[str]) -> list[Job]:
        ledger.begin(self.folder, self._about(axes))
        if not (self.folder / "multirun.yaml").exists():
            files.write_text(self.folder / "multirun.yaml", OmegaConf.to_yaml(self.config))
            run_folder.keep_private(self.folder, "multirun.yaml")
        names = folder_names.names([one.overrides for one in candidates], axes)
        jobs = [
            Job(
                one.key,
                name,
                redact_command(one.overrides),
                State.refused if one.refused else State.pending,
                error=one.refused,
            )
            for one, name in zip(candidates, names, strict=True)
        ]
        known = self.ledger.add(jobs)
        for one, job in zip(candidates, known, strict=True):
            self.overrides[job.key] = one.overrides
            if job.state is State.refused and not one.refused:  # this machine or version can run it
                self.ledger.record(job.key, State.pending)
                job.state = State.pending
            elif one.refused and job.state is not State.refused and job.state is not State.done:
                self.ledger.record(job.key, State.refused, error=one.refused)
                job.state = State.refused
        return known

    def close(self) -> None:
        """Print the ranked table of this command's jobs and write summary.csv and report.html.

        Raises:
            RunFailed: not all jobs are done.
        """
        jobs = list(self.here.values())
        counts = {state: sum(job.state is state for job in jobs) for state in State}
        listed = ", ".join(f"{count} {state.value}" for state, count in counts.items() if count)
        write.report_after_sweep(self.folder)
        summary = f"{self.folder}: {listed}"
        bad = [job for job in jobs if job.state not in (State.done, State.pruned, State.refused)]
        if not bad:
            return
        options = [printed.override("sweep.resume", self.name)]
        options += ["sweep.retry_failed=true"] if counts[State.failed] else []
        lines = [job_status.describe(job, self.folder) for job in bad]
        raise RunFailed("\n".join([summary, *lines, f"to run them again, add {' '.join(options)} to the same command"]))

    @property
    def name(self) -> str:
        """The value for ``sweep.resume``."""
        return sweep_folder.name_of(self.folder)

    def _admit(self, requested: Config) -> tuple[Demand, int]:
        """The part of this machine that a job needs, and its optimizer steps.

        Raises:
            ConfigError: it cannot run, or does not fit.
        """
        if requested.resume is not None:
            raise ConfigError(f"resume={requested.resume}: resumes a single run; to resume a sweep use sweep.resume=…")
        cluster = repr(requested.cluster)
        if cluster not in self.machines:
            self.machines[cluster] = launch.machine(requested) if self.is_here else None
        if requested.debug.name not in ("none", "fast"):
            raise ConfigError(f"debug={requested.debug.name}: is for a single run: leave out -m, or debug")
        if requested.mode is not Mode.train:
            raise ConfigError(f"mode={requested.mode.value}: all jobs of a sweep must have the same mode")
        chosen = make_objective(requested.objective)
        chosen.check(requested)
        admitted = preflight.admit(preflight.resolve(requested, self.machines[cluster]), chosen.read, self.measured)
        if admitted.plan.fits is False:
            raise ConfigError(verdict(admitted.plan))
        if requested.cluster.launcher is Starter.slurm:
            return Demand(ranks=0), admitted.plan.steps
        cost = admitted.plan.cost
        memory = cost.memory.host_peak * requested.cluster.ranks_here if cost else 0
        ranks, alone = requested.cluster.ranks_here, requested.cluster.on_hosts
        return Demand(ranks, memory, alone, **packs.found(admitted, self.config.hydra.job)), admitted.plan.steps

    def _launch(self, launcher: Launcher, candidates: dict[str, Candidate]) -> None:
        """Run the jobs that are not done; wait for those of another process, and run them if that process ends before they do."""
        todo = self._left(candidates)
        live = Live(self.folder, lines=not hasattr(launcher, "demands"))  # other launchers' jobs print to this terminal
        try:
            with live, holder.named(self.folder):
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
                if self.ledger.job(key).state is State.running and not self.ledger.is_claimed(key):
                    self.settle(key, KeyboardInterrupt("ended with its sweep"), State.interrupted)
            again = printed.override("sweep.resume", self.name)
            print(f"to resume it, add {again} to the same command", file=sys.stderr)
            raise

    def _batch(self, launcher: Launcher, keys: list[str], candidates: dict[str, Candidate]) -> list[str]:
        """Run these jobs with ``launcher``; returns the keys of those that were run."""
        known = self.ledger.jobs()
        overrides = [candidates[key].typed_in(known[key].name) for key in keys]
        if hasattr(launcher, "demands"):
            launcher.demands = [candidates[key].demand for key in keys]
            launcher.composed = [candidates[key].in_folder(known[key].name) for key in keys]
        results: Sequence[JobReturn] = []
        trouble: Exception | None = None
        try:
            results = launcher.launch(overrides, initial_job_idx=self.number)
        except ConfigError:
            raise
        except Exception as raised:  # submitit raises for a job that Slurm ended
            trouble = raised
        self.number += len(keys)
        tried: list[str] = []
        for index, key in enumerate(keys):
            why = trouble if trouble is not None else failure(results[index])
            if isinstance(why, job_status.RunningElsewhere):
                continue
            tried.append(key)
            if why is not None and not self.records_itself(key, why):
                self.settle(key, why)
        return tried

    def records_itself(self, key: str, why: BaseException) -> bool:
        """Whether another process runs the job that failed here. The ranks of a job that was killed end a moment after it."""
        return self.ledger.is_claimed(key, ENDING_SECONDS if isinstance(why, job_status.JobDied) else 0)

    def settle(self, key: str, error: BaseException, state: State = State.failed) -> None:
        """Record the failure of a job that did not record it itself."""
        if self.ledger.job(key).state not in (State.pending, State.running):
            return
        try:
            self.ledger.record(key, state, error=job_status.one_line(error))
        except OSError as full:
            print(
                f"{self.ledger.file}: {full.strerror}; a job {state.value}: {job_status.one_line(error)}",
                file=sys.stderr,
            )

    def _left(self, candidates: dict[str, Candidate]) -> list[str]:
        """The jobs of this command that have to run."""
        known = self.ledger.jobs()
        return [
            key
            for key in candidates
            if known[key].state not in ledger.OVER
            or (known[key].state is State.failed and self.config.sweep.retry_failed)
        ]

    def _axes(self, jobs: Sequence[Sequence[str]]) -> list[str]:
        """The keys that are swept in the command or in ``hydra.sweeper.params``; for a single job, all keys."""
        params = OmegaConf.select(self.config, "hydra.sweeper.params")
        typed = [*cli.params(params), *cast(list[str], OmegaConf.to_container(self.config.hydra.overrides.task))]
        parsed = OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(typed)
        swept = [override.key_or_group for override in parsed if override.is_sweep_override()]
        differing = folder_names.differing(jobs) if len(jobs) > 1 or not swept else []  # a search adds one at a time
        return replicas.axes([*swept, *differing], self.config)

    def _about(self, axes: list[str]) -> dict[str, Any]:
        return {
            "id": folder_names.mark([str(self.folder.resolve()), str(time.time_ns())]),
            "name": self.name,
            "command": shlex.join(redact_command(program.as_line(program.words()))),
            "created": time.time(),
            "axes": axes,
            "replicas": int(self.config.sweep.replicas),
            "objective": list(self.config.sweep.objective),
            "direction": [objective.direction(name) for name in self.config.sweep.objective],
            "version": __version__,
        }

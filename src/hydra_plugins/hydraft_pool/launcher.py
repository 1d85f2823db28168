"""The launcher ``hydra/launcher=pool``: jobs at the same time on this machine. Hydra imports this file at every start."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, List, Optional  # noqa: UP035

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, configure_log, filter_overrides, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydraft.config.bounds import setting, violations

if TYPE_CHECKING:
    from hydraft.sweep.pool import Packing
    from hydraft.sweep.pool_job import Sweep
    from hydraft.sweep.search_jobs import Jobs
    from hydraft.sweep.slots import Demand
    from hydraft.system.hardware import Hardware

log = logging.getLogger(__name__)

AUTO, OFF = "auto", "off"
PACKS = "auto, off or a number of jobs from 1 on"


def is_pack(value: Any) -> bool:
    """Whether ``value`` can be ``hydra.launcher.pack``."""
    return value in (AUTO, OFF) or (type(value) is int and value >= 1)


@dataclass
class PoolConf:
    """How the jobs of a sweep run on this machine: settings of ``hydra/launcher=pool``, the default."""

    _target_: str = "hydra_plugins.hydraft_pool.launcher.PoolLauncher"
    jobs: Optional[int] = setting(  # noqa: UP045
        None, at_least=1, unit="jobs", hint=", or null for as many as the machine allows"
    )
    """Jobs at the same time. null: as many as the GPUs (or cores) and the memory allow."""
    pack: Any = setting(AUTO, valid=is_pack, allowed=PACKS)
    """Jobs in one process, which share the frozen base and compute it together. ``auto``: as many as fit into the memory and as
    compute faster together. ``off``: each job has its own process. A number: at most so many."""
    preload: List[str] = field(default_factory=lambda: ["hydraft.launch.local.preload"])  # noqa: UP006
    """Modules that are imported once for all jobs."""


ConfigStore.instance().store(group="hydra/launcher", name="pool", node=PoolConf, provider="hydraft")


class PoolLauncher(Launcher):  # type: ignore[misc]
    """Runs each job in its own process, forked from a server that has done the imports if that is possible."""

    def __init__(self, jobs: int | None, preload: Sequence[str], pack: int | str = AUTO) -> None:
        self.jobs = jobs
        self.pack = OFF if pack is False else pack  # YAML reads off as false
        self.preload = list(preload)
        self.demands: list[Demand] | None = None
        """The demand of each job of the next launch; one rank each if not set."""
        self.composed: list[DictConfig] | None = None
        """The configs of the next launch's jobs, if a sweeper has composed them."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before ``launch``."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def warm(self) -> None:
        """Start the imports in the background.

        Raises:
            ConfigError: ``jobs`` is below 1, or ``pack`` is none of its values.
        """
        from hydraft.errors import ConfigError
        from hydraft.sweep import imports
        from hydraft.system import hardware

        for message in violations(PoolConf(jobs=self.jobs, pack=self.pack), "hydra.launcher."):
            raise ConfigError(message)
        imports.start(self.preload, hardware.detect())

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs and wait for all of them; a failure does not affect the others."""
        from hydraft.sweep import imports, pool
        from hydraft.sweep.pool_job import Task
        from hydraft.sweep.slots import Demand, slots
        from hydraft.system import hardware

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        self.warm()
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        demands = self.demands or [Demand() for _ in job_overrides]
        configs: Sequence[Any] = self.composed or [None] * len(job_overrides)
        self.demands = self.composed = None
        machine = hardware.detect()
        parts = slots(demands, machine, self.jobs)
        method = imports.method(self.preload, machine)
        log.info(f"Launching {len(job_overrides)} jobs, {len(parts)} at the same time")
        jobs: list[Task] = []
        for number, (overrides, config) in enumerate(zip(job_overrides, configs, strict=True), initial_job_idx):
            log.info(f"\t#{number} : {' '.join(filter_overrides(overrides))}")
            jobs.append(Task(number, list(overrides), config, demands[number - initial_job_idx].pack))
        batch = pool.Batch(jobs)
        packing = self._packing(demands, len(parts), machine)
        pool.run(self._sweep(), batch, parts, method, packing=packing)
        for task in jobs:
            batch.results[task.number].overrides = batch.results[task.number].overrides or task.overrides
        return [batch.results[task.number] for task in jobs]

    def stream(self, source: "Jobs", demand: "Demand", poll_seconds: float) -> None:
        """Run the jobs of ``source``, each of which needs no more than ``demand``, until there are no more."""
        from hydraft.sweep import imports, pool
        from hydraft.sweep.slots import slots
        from hydraft.system import hardware

        setup_globals()
        self.warm()
        machine = hardware.detect()
        parts = slots([demand] * max(machine.count, machine.cpus), machine, self.jobs)
        method = imports.method(self.preload, machine)
        packing = self._packing([demand], len(parts), machine, fixed=False)
        source.slots = len(parts)
        pool.run(self._sweep(), source, parts, method, poll_seconds, packing)

    def _sweep(self) -> "Sweep":
        from hydraft.sweep.pool_job import Sweep

        return Sweep(self.context, self.config, self.task, Singleton.get_state())

    def _packing(self, demands: Sequence["Demand"], slots: int, machine: "Hardware", fixed: bool = True) -> "Packing":
        """Which jobs share processes, after saying so in a line."""
        from hydraft.sweep import pack_places, pool

        asked = None if self.pack == AUTO else 1 if self.pack == OFF else int(self.pack)
        places = pack_places.places(demands, slots, machine, asked, fixed)
        for line in pack_places.lines(demands, places, slots, asked):
            print(line, file=sys.stderr, flush=True)
        return pool.Packing(places.of, asks=asked is None)

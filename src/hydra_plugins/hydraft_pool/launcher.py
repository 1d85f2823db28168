"""The launcher ``hydra/launcher=pool``: jobs at the same time on this machine. Hydra imports this file at every start."""

import logging
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
    from hydraft.sweep.pool import Source
    from hydraft.sweep.slots import Demand

log = logging.getLogger(__name__)


@dataclass
class PoolConf:
    """How the jobs of a sweep run on this machine: settings of ``hydra/launcher=pool``, the default."""

    _target_: str = "hydra_plugins.hydraft_pool.launcher.PoolLauncher"
    jobs: Optional[int] = setting(  # noqa: UP045
        None, at_least=1, unit="jobs", hint=", or null for as many as the machine allows"
    )
    """Jobs at the same time. null: as many as the GPUs (or cores) and the memory allow."""
    preload: List[str] = field(default_factory=lambda: ["hydraft.launch.local.preload"])  # noqa: UP006
    """Modules that are imported once for all jobs."""


ConfigStore.instance().store(group="hydra/launcher", name="pool", node=PoolConf, provider="hydraft")


class PoolLauncher(Launcher):  # type: ignore[misc]
    """Runs each job in its own process, forked from a server that has done the imports if that is possible."""

    def __init__(self, jobs: int | None, preload: Sequence[str]) -> None:
        self.jobs = jobs
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
            ConfigError: ``jobs`` is below 1.
        """
        from hydraft.errors import ConfigError
        from hydraft.sweep import pool
        from hydraft.system import hardware

        for message in violations(PoolConf(jobs=self.jobs), "hydra.launcher."):
            raise ConfigError(message)
        pool.warm(self.preload, hardware.detect())

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs and wait for all of them; a failure does not affect the others."""
        from hydraft.sweep import pool
        from hydraft.sweep.pool_job import Sweep
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
        method = pool.method(self.preload, machine)
        log.info(f"Launching {len(job_overrides)} jobs, {len(parts)} at the same time")
        jobs = []
        for number, (overrides, config) in enumerate(zip(job_overrides, configs, strict=True), initial_job_idx):
            log.info(f"\t#{number} : {' '.join(filter_overrides(overrides))}")
            jobs.append((number, list(overrides), config))
        batch = pool.Batch(jobs)
        pool.run(Sweep(self.context, self.config, self.task, Singleton.get_state()), batch, parts, method)
        for number, overrides, _ in jobs:
            batch.results[number].overrides = batch.results[number].overrides or overrides
        return [batch.results[number] for number, *_ in jobs]

    def stream(self, source: "Source", demand: "Demand", poll_seconds: float) -> None:
        """Run the jobs of ``source``, each of which needs no more than ``demand``, until there are no more."""
        from hydraft.sweep import pool
        from hydraft.sweep.pool_job import Sweep
        from hydraft.sweep.slots import slots
        from hydraft.system import hardware

        setup_globals()
        self.warm()
        machine = hardware.detect()
        parts = slots([demand] * max(machine.count, machine.cpus), machine, self.jobs)
        method = pool.method(self.preload, machine)
        sweep = Sweep(self.context, self.config, self.task, Singleton.get_state())
        pool.run(sweep, source, parts, method, poll_seconds)

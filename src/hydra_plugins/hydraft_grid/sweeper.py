"""The sweeper ``hydra/sweeper=grid``: every combination of the values. Hydra imports this file at every start, so it imports little."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional  # noqa: UP035

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class GridConf:
    """Settings of the sweeper."""

    _target_: str = "hydra_plugins.hydraft_grid.sweeper.GridSweeper"
    params: Optional[Dict[str, str]] = None  # noqa: UP006, UP045
    """Overrides such as ``lora.r: 8,16``; those of the command line take precedence."""


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridConf, provider="hydraft")


class GridSweeper(Sweeper):  # type: ignore[misc]
    """Runs every combination of the given values, as jobs of a sweep that can be resumed."""

    def __init__(self, params: Dict[str, str] | None) -> None:  # noqa: UP006
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before ``sweep``."""
        from hydraft.sweep.session import Session

        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self.session: Session = Session(hydra_context, config)  # before the launcher, which gets the sweep's folder
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: List[str]) -> Any:  # noqa: UP006
        """Run every combination.

        Raises:
            RunFailed: some are not done.
        """
        from hydraft.config import cli
        from hydraft.config.choices import Mode
        from hydraft.errors import ConfigError
        from hydraft.sweep import decide, imports, replicas
        from hydraft.system import files

        trains = self.config.mode is Mode.train
        if trains:
            imports.start_for(self.launcher)  # they run while the jobs are checked
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        parsed = parser.parse_overrides([*cli.params(self.params), *arguments])
        varied = [one.key_or_group for one in parsed if one.is_sweep_override()]
        replicas.check(self.config, varied)
        replicas.refuse_single(self.config, varied)
        jobs = BasicSweeper.split_arguments(parsed, None)[0]
        if not jobs:
            raise ConfigError("nothing to sweep over: a list of values is empty")
        if not trains:  # many plans, of which nothing is saved
            made = files.missing(Path(str(self.config.hydra.sweep.dir)).absolute())
            here = BasicLauncher()
            here.setup(hydra_context=self.hydra_context, task_function=self.task_function, config=self.config)
            try:
                looked = here.launch(jobs, initial_job_idx=0)
            finally:
                files.remove_empty(made)
            for one in looked:
                if isinstance(one._return_value, Exception):
                    raise one._return_value
            return [looked]
        if self.config.sweep.budget is not None:  # one job after another, for as long as there is time
            from hydraft.sweep import search_loop

            settings: dict[str, Any] = {
                "sampler": "grid",
                "pruner": "none",
                "trials": None,
                "sampler_options": {},
                "pruner_options": {},
            }
            best = search_loop.run(self.session, self.launcher, {"params": self.params, **settings}, arguments)
            self.session.close()
            return [best]
        returned = self.session.run(
            self.launcher, replicas.expanded(self.hydra_context.config_loader, self.config, jobs)
        )
        if self.config.sweep.decide:
            returned += decide.run(self.session, self.launcher)
        self.session.close()
        return [returned]

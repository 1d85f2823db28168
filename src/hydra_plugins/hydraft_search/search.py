"""The sweeper ``hydra/sweeper=search``: a search with Optuna's samplers and pruners."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional  # noqa: UP035 — Hydra reads this dataclass, and knows these

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydraft.config.bounds import setting


@dataclass
class SearchConf:
    """How a sweep searches: settings of ``hydra/sweeper=search``. ``grid``, the default, has ``params`` only."""

    _target_: str = "hydra_plugins.hydraft_search.search.SearchSweeper"
    params: Optional[Dict[str, Any]] = None  # noqa: UP006, UP045
    """The search space, such as ``lora.r: 4,8,16``; that of the command line takes precedence."""
    trials: Optional[int] = setting(None, at_least=1, unit="jobs")  # noqa: UP045
    """Jobs in all. null: every point of a grid, otherwise 20."""
    sampler: str = setting("tpe", one_of=("tpe", "random", "cmaes", "qmc", "nsga2", "grid"))
    """Optuna's sampler, which chooses the next job."""
    sampler_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of Optuna's class of the sampler."""
    pruner: str = setting("none", one_of=("median", "successive_halving", "hyperband", "none"))
    """What stops jobs that fall behind, by their evaluations during training: Optuna's ``median``, or rungs of optimizer steps."""
    pruner_options: dict[str, Any] = field(default_factory=dict)
    """``median``: arguments of Optuna's class. The others: ``reduction_factor`` (η, 3) and ``min_resource``, the first rung in steps
    (``train.eval_every``)."""


ConfigStore.instance().store(group="hydra/sweeper", name="search", node=SearchConf, provider="hydraft")


class SearchSweeper(Sweeper):  # type: ignore[misc]
    """Runs ``hydraft.sweep.search_loop`` as a sweeper of Hydra."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before ``sweep``."""
        from hydraft.sweep.session import Session

        self.session = Session(hydra_context, config)  # before the launcher, which gets the sweep's folder
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: List[str]) -> Any:  # noqa: UP006
        """Run the search and return the best trials.

        Raises:
            RunFailed: some jobs are not done.
        """
        from hydraft.sweep import imports, search_loop  # Optuna, only where it is used

        imports.start_for(self.launcher)  # they run while the space is checked
        plain = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in self.settings.items()
        }
        best = search_loop.run(self.session, self.launcher, plain, arguments)
        self.session.close()
        return best

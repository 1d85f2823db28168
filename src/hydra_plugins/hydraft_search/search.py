"""``hydra/sweeper=search``: a search that learns from the jobs it has seen, and stops those that lag behind."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional  # noqa: UP035 — Hydra reads this dataclass, and knows these

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class SearchConf:
    _target_: str = "hydra_plugins.hydraft_search.search.SearchSweeper"
    params: Optional[Dict[str, Any]] = None  # noqa: UP045
    """The search space, as on the command line: ``lora.r: 4,8,16``; the command line's own comes after it."""
    trials: Optional[int] = None  # noqa: UP045
    """Jobs in all; null: every point of a grid, otherwise 20."""
    sampler: str = "tpe"
    """``tpe``, ``random``, ``cmaes``, ``qmc``, ``nsga2`` or ``grid``."""
    sampler_options: Dict[str, Any] = field(default_factory=dict)
    """Arguments of Optuna's class."""
    pruner: str = "none"
    """``median``, ``successive_halving``, ``hyperband`` or ``none``."""
    pruner_options: Dict[str, Any] = field(default_factory=dict)
    """Arguments of Optuna's class."""


ConfigStore.instance().store(group="hydra/sweeper", name="search", node=SearchConf, provider="hydraft")


class SearchSweeper(Sweeper):
    """Hydra's side of ``hydraft.sweep.searching``."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before ``sweep``."""
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: List[str]) -> Any:  # noqa: UP006
        """Search the space of ``arguments``; the best trials."""
        from hydraft.sweep import searching  # Optuna, only where it is used

        plain = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in self.settings.items()
        }
        return searching.run(self.launcher, self.hydra_context, self.config, plain, arguments)

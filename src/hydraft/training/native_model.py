"""The native model that the ranks of a run load, as files."""

from hydraft.config.model import ModelConfig
from hydraft.config.schema import Config
from hydraft.models import exchange, prepare, quantised_copy
from hydraft.system.console import Screen


def find(config: Config, screen: Screen) -> ModelConfig:
    """The model that every rank loads: the quantised copy only if each rank finds one, since they quantise together otherwise."""
    storage = quantised_copy.of_run(config)
    found = prepare.native(config.model, config.seed, screen.console, verified=True, storage=storage)
    if storage is None:
        return found
    copied = quantised_copy.is_copy(found)
    if all(exchange.all_gather(copied)):
        return found
    if copied:
        screen.say(f"{config.model.path}: quantised at each start, since another machine has no quantised copy of it")
    return prepare.native(config.model, config.seed, screen.console, verified=True)

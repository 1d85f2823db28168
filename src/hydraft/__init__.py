"""hydraft: a Hydra-composed experiment framework for fine-tuning language models.

From Python: ``compose`` a config, ``plan`` it, ``train`` it, ``sweep`` over it and ``load`` what it has learned. Each name is imported when
it is first used, so that ``import hydraft`` takes no time.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydraft.api.composition import compose as compose
    from hydraft.api.loading import load as load
    from hydraft.api.planning import PlannedRun as PlannedRun
    from hydraft.api.planning import plan as plan
    from hydraft.api.run import Run as Run
    from hydraft.api.run import runs as runs
    from hydraft.api.sweeps import Sweep as Sweep
    from hydraft.api.sweeps import sweep as sweep
    from hydraft.api.training import train as train
    from hydraft.config.schema import Config as Config
    from hydraft.errors import ConfigError as ConfigError
    from hydraft.errors import RunFailed as RunFailed
    from hydraft.errors import RunStopped as RunStopped
    from hydraft.system.version import __version__ as __version__

_NAMES = {
    "compose": "hydraft.api.composition",
    "plan": "hydraft.api.planning",
    "train": "hydraft.api.training",
    "sweep": "hydraft.api.sweeps",
    "load": "hydraft.api.loading",
    "runs": "hydraft.api.run",
    "Run": "hydraft.api.run",
    "Sweep": "hydraft.api.sweeps",
    "PlannedRun": "hydraft.api.planning",
    "Config": "hydraft.config.schema",
    "ConfigError": "hydraft.errors",
    "RunFailed": "hydraft.errors",
    "RunStopped": "hydraft.errors",
    "__version__": "hydraft.system.version",
}
"""The module of each name."""

_CALLED = ("plan", "runs", "sweep")
"""Names of a function that are also those of a package: ``hydraft.plan(config)``, and ``from hydraft.plan import memory``."""

__all__ = list(_NAMES)


class _CallableModule(ModuleType):
    """One of the packages in ``_CALLED``: called, it is the function of its name."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        return _function(self.__name__)(*given, **named)

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(_function(self.__name__))

    def __reduce__(self) -> Any:
        return importlib.import_module, (self.__name__,)


def _function(package: str) -> Any:
    name = package.rpartition(".")[2]
    return getattr(importlib.import_module(_NAMES[name]), name)


class _Package(ModuleType):
    """This package. The import system sets a package below it as its attribute."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CALLED and type(value) is ModuleType:
            value.__class__ = _CallableModule
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in _CALLED:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in _NAMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(_NAMES[name]), name)
        super().__setattr__(name, found)
        return found

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_NAMES})

    def __reduce__(self) -> Any:
        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package

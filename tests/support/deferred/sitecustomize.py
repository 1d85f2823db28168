"""On PYTHONPATH: ranks on CPUs check a step after the next one, as on GPUs, however long their steps take."""

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any


class Finder(importlib.abc.MetaPathFinder):
    """Finds ``hydraft.training.callbacks.divergence`` and patches it after its import."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name != "hydraft.training.callbacks.divergence":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            original = module.DivergenceCallback.__init__

            def init(self: Any, *arguments: Any) -> None:
                original(self, *arguments)
                self.deferred = True

            module.DivergenceCallback.__init__ = init  # type: ignore[method-assign]
            module.LONG = 1e9  # type: ignore[attr-defined]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Finder())

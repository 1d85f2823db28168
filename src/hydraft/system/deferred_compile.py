"""Imports bitsandbytes and DeepSpeed without torch's compiler, which their decorated functions load upon their first call. No torch."""

import functools
import importlib.abc
import importlib.machinery
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

DECORATED = frozenset({"bitsandbytes.backends.default.ops", "deepspeed.runtime.zero.muon.original_muon"})
"""Modules whose functions are decorated with ``torch.compile``, which loads the compiler: one to two seconds for what is rarely used.

Any ``deepspeed.initialize`` imports the second one, to find out if the optimizer is Muon.
"""


def prepare() -> None:
    """Call it before anything imports bitsandbytes, or initialises a DeepSpeed engine."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # ranks have no log yet
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules ``DECORATED``, and has their functions compiled upon their first call."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in DECORATED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = functools.partial(_execute, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def _execute(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    torch: Any = sys.modules["torch"]  # its package has imported it
    compile_now = torch.compile
    torch.compile = functools.partial(_compile_later, compile_now)
    try:
        execute(module)
    finally:
        torch.compile = compile_now


def _compile_later(
    compile_now: Callable[..., Any], model: Callable[..., Any] | None = None, **options: Any
) -> Callable[..., Any]:
    """``torch.compile(model, …)``, called upon the first call of what it returns."""
    if model is None:
        return functools.partial(_compile_later, compile_now, **options)

    is_compiling: Callable[[], bool] = sys.modules["torch"].compiler.is_compiling

    @functools.cache
    def compiled() -> Any:
        return compile_now(model, **options)

    @functools.wraps(model)
    def call(*arguments: Any, **named: Any) -> Any:
        if is_compiling():  # a part of another function that is being compiled
            return model(*arguments, **named)
        return compiled()(*arguments, **named)

    return call

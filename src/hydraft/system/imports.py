"""Importing PyTorch and the libraries on top of it."""

import functools
import gc
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


def import_large(name: str) -> ModuleType:
    """Import a module that imports torch, as ``large_imports`` does."""
    with large_imports():
        return importlib.import_module(name)


@contextmanager
def large_imports() -> Iterator[None]:
    """Saves a third of the time of the imports in its block, all of which need torch.

    They run without garbage collection, and what they create, which stays until the process ends, is left out of later collections.
    bitsandbytes decorates functions with ``torch.compile`` on import, which would load the compiler: it is loaded upon the first call
    of such a function.
    """
    gc.disable()
    try:
        torch: Any = importlib.import_module("torch")
        compile_now = torch.compile
        torch.compile = _compile_later(compile_now)
        try:
            yield
        finally:
            torch.compile = compile_now
    finally:
        gc.freeze()
        gc.enable()


def _compile_later(compile_now: Callable[..., Any]) -> Callable[..., Any]:
    """A ``torch.compile`` that compiles functions, but not modules, upon their first call."""

    def later(model: Any = None, **options: Any) -> Any:
        if model is None:
            return functools.partial(later, **options)
        if not inspect.isfunction(model):
            return compile_now(model, **options)

        @functools.cache
        def compiled() -> Any:
            return compile_now(model, **options)

        @functools.wraps(model)
        def call(*arguments: Any, **named: Any) -> Any:
            return compiled()(*arguments, **named)

        return call

    return later

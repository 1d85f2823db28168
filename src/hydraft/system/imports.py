"""Importing PyTorch and the libraries on top of it."""

import gc
import importlib
from types import ModuleType


def import_large(name: str) -> ModuleType:
    """Import a module that imports torch, without garbage collection, which takes a fifth of the time of such an import.

    What an import creates stays until the process ends, so it is also left out of later collections.
    """
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()

"""What ``debug=`` adds to a run: callbacks, and what they found."""

from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from hydraft.config.debug import DebugKind
from hydraft.config.schema import Config
from hydraft.system.console import Screen
from hydraft.training.callbacks.overfit import OverfitCallback

HEAD = ["operator", "calls a step", "time a step", "share"]
"""Columns of the table of operators."""


def callbacks(config: Config, folder: Path) -> list[TrainerCallback]:
    """The callbacks of this rank."""
    if config.debug.kind is DebugKind.overfit:
        return [OverfitCallback(config)]
    if config.debug.kind is DebugKind.profile and dist.get_rank() == 0:
        from hydraft.training.callbacks.profile import ProfileCallback  # imports torch's profiler

        return [ProfileCallback(folder)]
    return []


def result(used: list[TrainerCallback], steps: int) -> dict[str, Any]:
    """``debug`` in result.json; empty without a verdict."""
    return next(({"debug": one.result(steps)} for one in used if isinstance(one, OverfitCallback)), {})


def show(used: list[TrainerCallback], screen: Screen, found: dict[str, Any]) -> None:
    """Print what was found, on rank 0: the verdict if the batch is learned (the command ends with the other one), the slowest operators."""
    if found.get("debug", {}).get("learned"):
        screen.say(found["debug"]["verdict"])
    for one in used:
        if not isinstance(one, OverfitCallback):
            from hydraft.training.callbacks.profile import TABLE, TRACE, ProfileCallback

            assert isinstance(one, ProfileCallback)
            title, rows = one.write()
            screen.table(title, HEAD, rows)
            screen.say(f"all operators: {one.folder / TABLE}")
            screen.say(f"trace, for https://ui.perfetto.dev or chrome://tracing: {one.folder / TRACE}")

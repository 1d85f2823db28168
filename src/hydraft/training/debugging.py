"""What ``debug=`` and ``train.profile`` add to a run: callbacks, and what they found."""

from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import Trainer, TrainerCallback

from hydraft.config import printed
from hydraft.config.debug import DebugKind
from hydraft.config.schema import Config
from hydraft.runs.profile_files import MEMORY, TABLE, TRACE
from hydraft.system import program
from hydraft.system.console import Screen
from hydraft.training.callbacks.overfit import OverfitCallback

PARTS = ["part of a step", "time a step", "share", "of it communication"]
OPERATORS = ["operator", "calls a step", "time a step", "share"]
"""Columns of the tables of ``train.profile``."""


def callbacks(config: Config, folder: Path) -> list[TrainerCallback]:
    """The callbacks of this rank."""
    added: list[TrainerCallback] = [OverfitCallback(config)] if config.debug.kind is DebugKind.overfit else []
    if config.train.profile is not None and dist.get_rank() == 0:
        from hydraft.training.callbacks.profile import ProfileCallback  # imports torch's profiler

        added.append(ProfileCallback(folder, *config.train.profile))
    return added


def attach(used: list[TrainerCallback], trainer: Trainer) -> None:
    """Give the callbacks the trainer that they measure."""
    for one in used:
        if hasattr(one, "trainer"):
            one.trainer = trainer


def result(used: list[TrainerCallback], steps: int) -> dict[str, Any]:
    """``debug`` in result.json; empty without a verdict."""
    return next(({"debug": one.result(steps)} for one in used if isinstance(one, OverfitCallback)), {})


def show(used: list[TrainerCallback], screen: Screen, found: dict[str, Any]) -> None:
    """Print what was found, on rank 0: the verdict if the batch is learned (the command ends with the other one), where the time went."""
    if found.get("debug", {}).get("learned"):
        screen.say(found["debug"]["verdict"])
    for one in used:
        if not isinstance(one, OverfitCallback):
            from hydraft.training.callbacks.profile import ProfileCallback

            assert isinstance(one, ProfileCallback)
            _show_profile(one, screen)


def _show_profile(measured: Any, screen: Screen) -> None:
    """Print both tables, the files and the commands that open them."""
    if not measured.steps:
        screen.say(f"train.profile=[{measured.first},…]: none of these steps was trained by this command")
        return
    measured.write()
    for (title, rows), head in ((measured.parts(), PARTS), (measured.operators(), OPERATORS)):
        screen.table(title, head, rows)
    folder = measured.folder
    screen.say(f"all operators: {folder / TABLE}")
    screen.say(
        f"open the trace: {program.command('trace')} {printed.shell_word(printed.short_path(folder.parent))}  ({folder / TRACE})"
    )
    if (folder / MEMORY).is_file():
        page = (folder / MEMORY).with_suffix(".html")
        screen.say(f"memory, as a page: python -m torch.cuda._memory_viz trace_plot {folder / MEMORY} -o {page}")

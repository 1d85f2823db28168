"""Loads the model of a run as infer.py does: the base as it was trained, with the adapter on it."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hydraft.api import composition, overrides
from hydraft.api.run import Run
from hydraft.config import infer_rules
from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError
from hydraft.infer import resolve
from hydraft.system import deferred_compile, hardware
from hydraft.system.imports import import_large

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OF_ANSWERS = ("run", "mode", "prompt", "system")
"""Settings of infer.py that no model is loaded with."""


def load(
    run: "Run | str | os.PathLike[str]" = "last", *options: str
) -> "tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]":
    """The trained model, in eval mode, and its tokenizer, in this process.

    ``model.generate`` decodes as infer.py does: greedily, up to ``max_new_tokens``, and to the end of the answer.

    Args:
        run: a run, the folder of one, of a sweep (its best job) or of an adapter, ``last`` for the newest run, ``best`` for the best job of
            the newest sweep, or ``<run>/best`` for the best evaluation of a run.
        options: overrides of infer.py, such as ``quant=none``, ``device=cpu`` or ``temperature=0.7``.

    Raises:
        ConfigError: there is no such run, or an option is wrong.
    """
    place = str(run.folder) if isinstance(run, Run) else os.fspath(run)
    for option in options:
        if option.partition("=")[0] in OF_ANSWERS:
            raise ConfigError(f"{option}: is for infer.py, which answers: leave it out")
    chosen = composition.composed_of([f"run={overrides.written(str(Path(place)))}", *options], "infer")
    with composition.explained("infer", options):
        found = replace(composition.without_hydra(chosen, InferConfig), prompt="?")  # mode=generate needs one
    infer_rules.check(found)
    machine = hardware.detect()
    infer_rules.usable(found, machine)
    sources = resolve.find(found)
    for line in (line for source in sources for line in source.chosen):
        print(f"notice: {line}", file=sys.stderr)
    os.environ.update(hardware.environment(machine))
    if not machine.gpus:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # peft imports deepspeed, which would print a line otherwise
    deferred_compile.prepare()
    loaded = import_large("hydraft.infer.load").load(sources, found)  # imports torch
    selected = loaded.select(found.adapter)
    loaded.model.generation_config = import_large("hydraft.infer.generate").generation_config(loaded, selected, found)
    return loaded.model, selected.tokenizer

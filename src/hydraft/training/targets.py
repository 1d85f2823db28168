"""Prints what is adapted and quantised, where that is not what the settings say literally."""

from typing import Any

import peft

from hydraft.config.choices import QuantKind
from hydraft.config.lora import ALL_LINEAR
from hydraft.config.schema import Config
from hydraft.models import expert_targets
from hydraft.system.console import Screen


def report(model: Any, config: Config, screen: Screen) -> None:
    """Print the native names of layers if ``lora.target_modules`` has names of the published checkpoint.

    Of a mixture of experts, print what has an adapter; and with ``quant=nf4`` how much of a model is in 16 bits all the same.
    """
    if config.quant.kind is QuantKind.nf4 and (left := expert_targets.in_16_bits(model)) is not None:
        screen.say(f"quant=nf4: {left}")
    if not isinstance(model, peft.PeftModel):
        return
    if expert_targets.has_experts(model):
        covered = ", ".join(sorted({name.rpartition(".")[2] for name in model.targeted_module_names}))
        screen.say(f"of this mixture of experts, adapters are on {covered}; all else is frozen")
    native, requested = model.peft_config["default"].target_modules, config.lora.targets
    if isinstance(native, str) and native != requested:
        screen.say(f"lora.target_modules: {requested} of the published checkpoint is {native} in the native model")
    if isinstance(native, str) or isinstance(requested, str) or ALL_LINEAR in requested:
        return
    if set(native) != set(requested):
        renamed, found = ", ".join(sorted(set(requested) - native)), ", ".join(sorted(native - set(requested)))
        screen.say(f"lora.target_modules: {renamed} of the published checkpoint is {found} in the native model")

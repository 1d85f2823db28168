"""Prints the native names of the layers that are adapted, if ``lora.target_modules`` has names of the published checkpoint."""

from typing import Any

import peft

from hydraft.config.lora import ALL_LINEAR
from hydraft.config.schema import Config
from hydraft.system.console import Screen


def report(model: Any, config: Config, screen: Screen) -> None:
    """Print the native names of layers if ``lora.target_modules`` has names of the published checkpoint."""
    if not isinstance(model, peft.PeftModel):
        return
    native, requested = model.peft_config["default"].target_modules, config.lora.targets
    if isinstance(native, str) and native != requested:
        screen.say(f"lora.target_modules: {requested} of the published checkpoint is {native} in the native model")
    if isinstance(native, str) or isinstance(requested, str) or ALL_LINEAR in requested:
        return
    if set(native) != set(requested):
        renamed, found = ", ".join(sorted(set(requested) - native)), ", ".join(sorted(native - set(requested)))
        screen.say(f"lora.target_modules: {renamed} of the published checkpoint is {found} in the native model")

"""The families whose published checkpoints are not native to transformers, and how their names are understood. No torch."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from hydraft.errors import ConfigError
from hydraft.models.families import baichuan, chatglm2

FAMILIES: tuple[ModuleType, ...] = (chatglm2, baichuan)

LORA_NAMES: dict[str, tuple[str, ...]] = {
    **chatglm2.LORA_NAMES,
    **baichuan.LORA_NAMES,
    "gate_proj": ("gate_up_proj",),  # one matrix in GLM
    "up_proj": ("gate_up_proj",),
}
"""Layers that recipes name, and what a model without them has in their place."""


def family_of(published: Mapping[str, Any]) -> ModuleType | None:
    """The family of a published config.json; None for what transformers loads as it is."""
    return next((family for family in FAMILIES if family.recognises(published)), None)


def published_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder.

    Raises:
        ConfigError: there is none, or it is not a config.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ConfigError(
            f"{folder}: no folder with a config.json; download the checkpoint first (hf download NAME --local-dir {folder})"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: not a config")
    return config


def native_targets(targets: Iterable[str], modules: Iterable[str]) -> list[str]:
    """LoRA's target names, with those of the published layout replaced by the native layers that hold the same weights.

    ``modules``: the name of every module in the model.
    """
    there = {name.rpartition(".")[2] for name in modules}
    found: list[str] = []
    for target in targets:
        found += [target] if target in there else LORA_NAMES.get(target, (target,))
    return list(dict.fromkeys(found))

"""Looks up model families: by ``model_type``, by the ``architecture`` of a size, or by a published config.json. No torch."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydraft.errors import ConfigError
from hydraft.models.families import baichuan, chatglm2, chatglm3, internlm2
from hydraft.models.families.base import Family, Native, PublishedFamily
from hydraft.models.families.native import FAMILIES, TEXT_MODELS

PUBLISHED: tuple[PublishedFamily, ...] = (chatglm2, chatglm3, baichuan, internlm2)
"""The families whose checkpoints are converted."""


def native_family(model_type: str) -> Family | None:
    """The family of a native ``model_type``; None without a ``Family``."""
    return FAMILIES.get(model_type)


def has_plain_head(model_type: str) -> bool:
    """Whether the logits of a ``model_type`` are only the head's output; False without a ``Family``."""
    family = native_family(model_type)
    return family is not None and family.plain_head


def plain_heads() -> list[str]:
    """The model types whose logits are only the head's output."""
    return [model_type for model_type, family in FAMILIES.items() if family.plain_head]


def published_family(folder: Path) -> PublishedFamily | None:
    """The family of a published folder; None for what transformers loads without a conversion.

    Raises:
        ConfigError: the folder has no config.json.
    """
    config = published_config(folder)
    return next((family for family in PUBLISHED if family.recognises(config, folder)), None)


def family_of_architecture(architecture: str) -> PublishedFamily | None:
    """The published family whose sizes have this ``architecture``."""
    return next((family for family in PUBLISHED if architecture in family.ARCHITECTURES), None)


def is_published_architecture(architecture: str) -> bool:
    """Whether the sizes of this ``architecture`` are published in a layout that has to be converted."""
    return family_of_architecture(architecture) is not None


def unit_rows(architecture: str) -> bool:
    """Whether the head's rows of this published ``architecture`` have length 1, for which a conversion stores it in fp32."""
    return architecture in baichuan.ARCHITECTURES  # its sizes are all Baichuan2


def shared_config(architecture: str) -> Native:
    """What the native configs of all sizes of an ``architecture`` share.

    Raises:
        ConfigError: no family has it.
    """
    tables = [family.architectures for family in FAMILIES.values()] + [family.ARCHITECTURES for family in PUBLISHED]
    known = {name: shared for table in tables for name, shared in table.items()}
    if architecture not in known:
        raise ConfigError(f"model.sizes: architecture={architecture} is none of {', '.join(known)}")
    return known[architecture]


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


def text_config(config: Native) -> Native:
    """The config of the model that ``AutoModelForCausalLM`` makes of ``config``: of some image and text models, the text model's."""
    text = config.get("text_config")
    if config.get("model_type") not in TEXT_MODELS or not isinstance(text, dict):
        return config
    stored = {key: config[key] for key in ("dtype", "torch_dtype") if key in config}
    return {"model_type": f"{config['model_type']}_text"} | stored | text


def native_targets(targets: Iterable[str], modules: Iterable[str]) -> list[str]:
    """LoRA target names, with those that the model does not have replaced by the layers that hold the same weights.

    ``modules``: the name of every module in the model.
    """
    present, replacements = {name.rpartition(".")[2] for name in modules}, lora_names()
    found: list[str] = []
    for target in targets:
        found += [target] if target in present else replacements.get(target, (target,))
    return list(dict.fromkeys(found))


def lora_names() -> dict[str, tuple[str, ...]]:
    """LoRA target names that a native model may not have, and the native layers that hold the same weights."""
    tables = [family.lora_names for family in FAMILIES.values()] + [family.LORA_NAMES for family in PUBLISHED]
    return {name: layers for table in reversed(tables) for name, layers in table.items()}  # the first one wins

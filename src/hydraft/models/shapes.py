"""Native configs before a model is loaded, from ``conf/model`` or from a folder's config.json. No torch."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydraft.config.choices import Hub, Scale
from hydraft.config.model import ModelConfig, ShapeConfig
from hydraft.errors import ConfigError
from hydraft.models import modelscope_hub, rope
from hydraft.models.families.base import Native
from hydraft.models.families.registry import (
    family_of_architecture,
    published_config,
    published_family,
    shared_config,
    text_config,
)
from hydraft.system.source_tree import TINY

SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip
"""The config values that identify a size; the vocabulary may have been extended."""


def native_config(shape: ShapeConfig) -> Native:
    """The native config of a published size."""
    sizes = {name: value for name, value in dataclasses.asdict(shape).items() if name not in ("path", "architecture")}
    return shared_config(shape.architecture) | sizes


def tiny(shape: Native, vocabulary: int) -> Native:
    """The same architecture with two small layers; grouped-query attention stays grouped."""
    shared = shape["num_key_value_heads"] < shape["num_attention_heads"]
    small: Native = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 16,
    }
    if "linear_num_value_heads" in shape:  # one gated delta net, one layer of attention
        small |= {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2}
        small |= {"linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
    if "num_experts" in shape or "num_local_experts" in shape:
        small |= {
            "num_experts" if "num_experts" in shape else "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        }
    return shape | small | {"num_key_value_heads": 2 if shared else 4, "vocab_size": vocabulary}


def local_config(model: ModelConfig) -> Native | None:
    """The native config of a model's local folder, translated from a published layout if needed; None without a folder.

    Raises:
        ConfigError: the folder has no config.json, or is an unsupported variant of its family.
    """
    folder = Path(model.path).expanduser()
    if not folder.is_dir():
        return None
    config = published_config(folder)
    family = published_family(folder)
    if family is None:
        return text_config(config)
    family.refuse(config, folder)
    return family.native_config(config)


def planned_config(model: ModelConfig) -> Native | None:
    """The native config of a run of ``model``, without a request to the hub; None if unknown.

    From the folder, else from the hub's cache, else from the size in ``conf/model``; shrunk for ``scale=tiny``.
    """
    cached = hub_snapshot(model)
    known = local_config(model if cached is None else dataclasses.replace(model, path=str(cached)))
    if known is None and model.shape is not None:
        known = native_config(model.shape)
    if known is not None and model.scale is Scale.tiny:
        folder = Path(model.path).expanduser()
        own = (folder / "tokenizer.json").is_file() and published_family(folder) is None
        known = tiny(known, _vocabulary(folder if own else TINY))
    return None if known is None else known | rope.changes(model, known)


def folder_of(model: ModelConfig) -> Path | None:
    """The folder of a model on this machine: that of its path, or of its files in the hub's cache."""
    folder = Path(model.path).expanduser()
    return folder if folder.is_dir() else hub_snapshot(model)


def hub_snapshot(model: ModelConfig) -> Path | None:
    """The folder of a hub model on this machine; None without a config.json in it.

    In the hub's cache it is ``models--owner--name/snapshots/<commit>``; that of ModelScope is recorded when it is downloaded.
    """
    if model.hub is Hub.modelscope:
        return modelscope_hub.recorded(model)
    home = Path(
        os.environ.get("HF_HOME", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "huggingface")
    )
    base = Path(os.environ.get("HF_HUB_CACHE", home / "hub")) / f"models--{model.path.replace('/', '--')}"
    with contextlib.suppress(OSError):
        named = base / "refs" / (model.revision or "main")
        commit = named.read_text().strip() if named.is_file() else model.revision
        folder = base / "snapshots" / (commit or "")
        if commit and (folder / "config.json").is_file():
            return folder
    return None


def _vocabulary(folder: Path) -> int:
    """The number of tokens in a folder's tokenizer.json, added tokens included."""
    read = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return len({*read["model"]["vocab"], *(token["content"] for token in read["added_tokens"])})


def check_size(model: ModelConfig, folder: Path | None = None) -> None:
    """Compare the family and the config of a local ``folder`` (default: ``model.path``) with the chosen size.

    Raises:
        ConfigError: they differ; the message has the matching size, if there is one.
    """
    config = local_config(model if folder is None else dataclasses.replace(model, path=str(folder)))
    if config is None or model.shape is None:
        return
    family, chosen = published_family(folder or Path(model.path).expanduser()), model.shape.architecture
    if family is not None and family is not family_of_architecture(chosen):
        raise ConfigError(
            f"model.path={model.path}: a published checkpoint of {family.NAME}, where model.size={model.size} is {chosen}: "
            f"use model=auto model.path={model.path}"
        )
    different = _different(config, model.shape)
    if not different:
        return
    matching = [size for size, shape in model.sizes.items() if not _different(config, shape)]
    hint = f"use model.size={matching[0]}" if matching else f"use model=auto model.path={model.path}"
    raise ConfigError(
        f"model.path={model.path}: its config.json has {different}={config[different]}, where model.size={model.size} has "
        f"{getattr(model.shape, different)}: {hint}"
    )


def _different(config: Mapping[str, Any], shape: ShapeConfig) -> str | None:
    """The first value of ``SIZES`` that differs; missing values do not count."""
    return next((name for name in SIZES if name in config and config[name] != getattr(shape, name)), None)

"""Weights that a checkpoint stores in fp32 beside 16-bit ones, such as the head of a converted Baichuan2, whose rows have length 1.

A run in 16 bits rounds them as it loads them; an export in 16 bits keeps them. No torch at module level.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from hydraft.errors import ConfigError
from hydraft.models.convert import shards
from hydraft.models.families.registry import published_config

if TYPE_CHECKING:
    import torch

HALVES = ("float16", "bfloat16")


def found_in(path: str) -> dict[str, Path]:
    """The names of these weights in the folder ``path``, and the file of each; none for a hub name, or a model in fp32."""
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        return {}
    config = published_config(folder)
    if str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.") not in HALVES:
        return {}
    try:
        files = [folder / name for name in shards.files(folder)[0] if name.endswith(".safetensors")]
    except ConfigError:  # without weights
        return {}
    found: dict[str, Path] = {}
    for file in files:
        with shards.opened(file) as shard:
            found |= {name: file for name in shard.names if shard.describe(name).dtype == "F32"}
    return found


def read(path: str) -> dict[str, "torch.Tensor"]:
    """These weights of the folder ``path``, by name."""
    made = {}
    for name, file in found_in(path).items():
        with shards.opened(file) as shard:
            made[name] = shard.read(name)
    return made

"""Weights that a checkpoint stores in fp32 beside 16-bit ones, such as the head of a converted Baichuan2, whose rows have length 1.

A run in 16 bits rounds them as it loads them; an export in 16 bits keeps them. No torch at module level.
"""

import json
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydraft.config.model import ModelConfig
from hydraft.errors import ConfigError
from hydraft.models.convert import shards
from hydraft.models.families.registry import published_config, published_family, unit_rows

if TYPE_CHECKING:
    import torch

HALVES = ("float16", "bfloat16")


class Place(NamedTuple):
    """Where such a weight is."""

    file: Path
    elements: int


def found_in(path: str) -> dict[str, Place]:
    """These weights of the folder ``path``, by name; none for a hub name, or a model in fp32."""
    file = Path(path).expanduser() / "config.json"
    return _found_in(file.parent, file.stat().st_mtime_ns) if file.is_file() else {}


@lru_cache
def _found_in(folder: Path, modified: int) -> dict[str, Place]:  # a search for settings asks many times
    config = published_config(folder)
    if str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.") not in HALVES:
        return {}
    try:
        files = [folder / name for name in shards.files(folder)[0] if name.endswith(".safetensors")]
        headers = {file: _header(file) for file in files}
    except (ConfigError, OSError, ValueError):  # without weights, or damaged: what loads them says so
        return {}
    return {
        name: Place(file, prod(entry["shape"]))
        for file, header in headers.items()
        for name, entry in header.items()
        if entry.get("dtype") == "F32"
    }


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file: its length in 8 bytes, then JSON. (The library's reader imports torch.)"""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > file.stat().st_size:
            raise ValueError(f"{file}: not safetensors")
        return dict(json.loads(stream.read(size)))


def read(path: str) -> dict[str, "torch.Tensor"]:
    """These weights of the folder ``path``, by name."""
    made = {}
    for name, place in found_in(path).items():
        with shards.opened(place.file) as shard:
            made[name] = shard.read(name)
    return made


def elements(model: ModelConfig) -> int:
    """Elements of these weights in the folder that a run of ``model`` loads, which may have to be converted first."""
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        config = published_config(folder)
        family = published_family(folder)
        if family is None:
            return sum(place.elements for place in found_in(model.path).values())
        rules = family.rules(config).values()
        return sum(prod(rule.shape_of(part)) for rule in rules for part in rule.parts if part.unit_rows)
    shape = model.shape
    return shape.vocab_size * shape.hidden_size if shape is not None and unit_rows(shape.architecture) else 0

"""Plans a conversion: the family of a published checkpoint, and the native shards that its tensors become."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydraft.errors import ConfigError
from hydraft.models.convert import shards
from hydraft.models.families.base import Native, PublishedFamily
from hydraft.models.families.layout import Part, Rule, assign
from hydraft.models.families.registry import PUBLISHED, published_config, published_family
from hydraft.system.version import __version__

if TYPE_CHECKING:
    import torch

FORMAT = 2
"""Raised whenever the same checkpoint is converted to other tensors: 2 keeps a normalised head in fp32. Other conversions are as in 1."""


@dataclass(frozen=True)
class Output:
    """A native shard: its source file, and its tensors in order."""

    name: str
    source: str
    parts: list[tuple[str, Part]]
    """Published tensors, and the part that is taken from each."""
    layout: dict[str, shards.Tensor]

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.layout.values())


@dataclass(frozen=True)
class Plan:
    """A conversion, before anything is written."""

    source: Path
    family: PublishedFamily
    published: dict[str, Any]
    """The published config.json."""
    native: Native
    outputs: list[Output]
    dropped: list[str]
    inputs: list[str]
    """The source files that are read."""

    @property
    def scales_rows(self) -> bool:
        """Whether the rows of a head are scaled to length 1."""
        return any(part.unit_rows for output in self.outputs for _, part in output.parts)

    @property
    def fingerprint(self) -> str:
        """A hash of everything that determines the shards, except the values of their tensors."""
        layout = [
            [o.name, o.source, [[name, str(part)] for name, part in o.parts], str(o.layout)] for o in self.outputs
        ]
        return hashlib.sha256(
            json.dumps([__version__, FORMAT, self.native, layout], sort_keys=True).encode()
        ).hexdigest()


def make_plan(source: Path) -> Plan:
    """Read the source's config and tensor headers, without weights, and check them against its family.

    Raises:
        ConfigError: the source is of no known family, an unsupported variant, or incomplete.
    """
    published = published_config(source)
    family = published_family(source)
    if family is None:
        raise ConfigError(
            f"{source}: model_type={published.get('model_type')} is none of {', '.join(f.NAME for f in PUBLISHED)}; "
            "a model that transformers supports needs no conversion"
        )
    family.refuse(published, source)
    rules = family.rules(published)
    if not (source / "tokenizer.model").is_file():
        raise ConfigError(f"{source}: tokenizer.model is missing")
    names, placed = shards.files(source)
    headers = {name: shards.header(source / name) for name in names}
    if placed is not None:
        found = {tensor: name for name, tensors in headers.items() for tensor in tensors}
        if wrong := sorted(name for name in placed.keys() | found.keys() if placed.get(name) != found.get(name)):
            raise ConfigError(
                f"{source}: the index has {wrong[0]} in {placed.get(wrong[0])}, but it is in {found.get(wrong[0])}"
            )
    present = ((file, name, tensor.shape) for file, tensors in headers.items() for name, tensor in tensors.items())
    used, dropped = assign(rules, family.DROPPED, present)
    outputs = [_output(file, used[file], rules, headers[file], place, len(used)) for place, file in enumerate(used, 1)]
    inputs = [*names, "config.json", "tokenizer.model"]
    return Plan(source, family, published, family.native_config(published), outputs, dropped, inputs)


def _output(
    file: str, used: list[str], rules: Mapping[str, Rule], header: Mapping[str, shards.Tensor], place: int, count: int
) -> Output:
    parts = [(name, part) for name in used for part in rules[name].parts]
    dtypes = {part.name: "F32" if part.unit_rows else header[name].dtype for name, part in parts}
    parts.sort(key=lambda pair: -shards.SIZES[dtypes[pair[1].name]])  # wide types first: all stay aligned
    layout = {part.name: shards.Tensor(dtypes[part.name], rules[name].shape_of(part)) for name, part in parts}
    return Output(f"model-{place:05d}-of-{count:05d}.safetensors", file, parts, layout)


def take(tensor: "torch.Tensor", part: Part) -> "torch.Tensor":
    """The native tensor of ``part`` from its published tensor (N, …)."""
    import torch
    from torch.nn.functional import normalize

    if part.rows is not None and part.groups == 1:
        tensor = tensor[part.rows[0] : part.rows[1]]
    elif part.rows is not None:
        tensor = tensor.unflatten(0, (part.groups, -1))[:, part.rows[0] : part.rows[1]].flatten(0, 1)
    if not part.unit_rows:
        return tensor
    made = torch.empty_like(tensor, dtype=torch.float32)
    for start in range(0, len(tensor), 4096):  # in blocks, so that no second fp32 copy is made
        rows = slice(start, start + 4096)
        made[rows] = normalize(tensor[rows].float(), dim=-1)
    return made

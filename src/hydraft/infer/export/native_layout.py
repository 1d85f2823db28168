"""Writes a merged model as transformers' ``save_pretrained`` does, one weight at a time.

transformers stores the weights of some architectures under other names, or in other pieces, than its modules have: the experts of a layer are
one parameter in memory, and a tensor each in a file. What it does to a whole state dict as it saves one is done here to each weight alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.dynamic_module_utils import custom_object_save

from hydraft.infer.export.merge import Merged
from hydraft.models.convert import shards
from hydraft.system.console import Bytes
from hydraft.system.files import write_json

SHARD = 5_000_000_000
"""Most bytes of a file, unless one weight has more."""


@dataclass(frozen=True)
class _Group:
    """Weights of the model that are stored together: nearly always one."""

    names: tuple[str, ...]
    stored: dict[str, shards.Tensor]
    """What they are stored as, by name."""


def write(merged: Merged, dtype: torch.dtype, folder: Path, console: Console) -> None:
    """Write config, generation config and weights to the existing ``folder``; ``dtype`` is that of most weights."""
    base = merged.base
    base.config.dtype = str(dtype).removeprefix("torch.")
    base.config.architectures = [type(base).__name__]
    if base.is_remote_code():
        custom_object_save(base, folder, config=base.config)  # type: ignore[arg-type]
    base.config.save_pretrained(folder)
    if base.generation_config is not None:
        base.generation_config.save_pretrained(folder)
    groups = _groups(base, merged.weights)
    files = _files(groups)
    bar = Bytes(console, "merging", sum(tensor.bytes for layout in files.values() for tensor in layout.values()))
    read = _reader(base, merged.weights, groups)
    with bar.progress:
        for number, (file, layout) in enumerate(files.items(), 1):
            bar.say(f"merging, file {number} of {len(files)}")
            shards.write(folder / file, layout, map(read, layout), bar.advance)
    if len(files) > 1:
        count = sum(tensor.count for layout in files.values() for tensor in layout.values())
        size = sum(tensor.bytes for layout in files.values() for tensor in layout.values())
        placed = {name: file for file, layout in files.items() for name in layout}
        metadata = {"total_parameters": count, "total_size": size}
        write_json(folder / shards.INDEXES[0], {"metadata": metadata, "weight_map": dict(sorted(placed.items()))})


def _groups(base: PreTrainedModel, weights: shards.Shard) -> list[_Group]:
    """The weights, each with what it is stored as; those that are only stored together are one group, the last."""
    empty = {name: shards.empty(weights.describe(name)) for name in weights.names}
    whole = _headers(revert_weight_conversion(base, empty))
    alone = []
    for name, tensor in empty.items():
        stored = _headers(revert_weight_conversion(base, {name: tensor}))
        if stored.items() <= whole.items():
            alone.append(_Group((name,), stored))
    known = {name for group in alone for name in group.names}
    written = {name for group in alone for name in group.stored}
    rest = tuple(name for name in weights.names if name not in known)
    left = {name: tensor for name, tensor in whole.items() if name not in written}
    assert bool(rest) == bool(left), "weights that are stored in several places"
    return [*alone, _Group(rest, left)] if rest else alone


def _headers(tensors: dict[str, torch.Tensor]) -> dict[str, shards.Tensor]:
    return {name: shards.described(tensor) for name, tensor in tensors.items()}


def _files(groups: list[_Group]) -> dict[str, dict[str, shards.Tensor]]:
    """The tensors of each file, in the order of the groups; wide types come first, so that all stay aligned."""
    parts: list[dict[str, shards.Tensor]] = [{}]
    size = 0
    for group in groups:
        for name, tensor in group.stored.items():
            if parts[-1] and size + tensor.bytes > SHARD:
                parts.append({})
                size = 0
            parts[-1][name] = tensor
            size += tensor.bytes
    ordered = [dict(sorted(part.items(), key=lambda item: -shards.WIDTHS[item[1].dtype])) for part in parts]
    return dict(zip(shards.numbered(len(ordered)), ordered, strict=True))


def _reader(base: PreTrainedModel, weights: shards.Shard, groups: list[_Group]) -> Callable[[str], torch.Tensor]:
    """A function that makes a stored tensor; those of the group that was read last are kept until they are fetched."""
    group_of = {name: group for group in groups for name in group.stored}
    made: dict[str, torch.Tensor] = {}

    def read(name: str) -> torch.Tensor:
        if name not in made:
            made.clear()
            values = {own: weights.read(own) for own in group_of[name].names}
            made.update(revert_weight_conversion(base, values))
        return made.pop(name)

    return read

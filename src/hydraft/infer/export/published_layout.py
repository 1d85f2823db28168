"""Writes native weights in the published layout of their family, by the conversion's rules in reverse.

A head whose rows the conversion scaled to length 1 is the published one again. If it was trained, its rows have other lengths, which
the published code would scale away.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from hydraft.errors import ConfigError
from hydraft.infer.export.published_source import HEAD_TRAINED
from hydraft.models.convert import shards
from hydraft.models.convert.mapping import Plan, make_plan, take
from hydraft.models.families.layout import Part
from hydraft.models.families.registry import published_config
from hydraft.system.files import write_json

SAFETENSORS_INDEX = "model.safetensors.index.json"
WEIGHTS = (".bin", ".safetensors")


def publish(tensors: Mapping[str, torch.Tensor], source: Path, folder: Path) -> None:
    """Write native ``tensors`` to ``folder`` in the layout of the published checkpoint ``source``; other files are copied from it.

    Tensors that the native model does not have are copied too. The shards are those of the source, as safetensors.

    Raises:
        ConfigError: the layout has no place for one of them, such as a head that is no longer tied to the embedding, or a head with
            scaled rows was trained.
    """
    plan = make_plan(source)
    rules = plan.family.rules(plan.published)
    written = {part.name for rule in rules.values() for part in rule.parts}
    if left_out := [name for name in tensors if name not in written]:
        raise ConfigError(f"export.layout=published: that layout has no place for {left_out[0]}: leave it out")
    files, _ = shards.files(source)
    placed: dict[str, str] = {}
    for number, file in enumerate(files, 1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        with shards.opened(source / file) as shard:
            made = {
                key: _stacked(rules[key].parts, tensors, partial(shard.read, key)) if key in rules else shard.read(key)
                for key in shard.names
            }
            order = sorted(made, key=lambda key: -made[key].element_size())  # wide types first: all stay aligned
            layout = {key: shards.described(made[key]) for key in order}
            shards.write(folder / name, layout, (made[key] for key in order), lambda _: None)
        placed |= dict.fromkeys(order, name)
    if len(files) > 1:
        total = sum((folder / name).stat().st_size for name in set(placed.values()))
        write_json(folder / SAFETENSORS_INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
    _copy_the_rest(plan, next(iter(tensors.values())).dtype, folder)


def _stacked(
    parts: tuple[Part, ...], tensors: Mapping[str, torch.Tensor], published: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """A published tensor (N, …): its native ones stacked along the first dimension, group by group; the published one if its rows were scaled."""
    ordered = sorted(parts, key=lambda part: (part.rows or (0, 0))[0])
    found = [tensors[part.name].detach().cpu() for part in ordered]
    if any(part.unit_rows for part in ordered):
        own = published()
        if not all(torch.equal(take(own, part), value.float()) for part, value in zip(ordered, found, strict=True)):
            raise ConfigError(HEAD_TRAINED)
        return own
    blocks = [value.unflatten(0, (part.groups, -1)) for part, value in zip(ordered, found, strict=True)]
    return torch.cat(blocks, dim=1).flatten(0, 1).contiguous()


def _copy_the_rest(plan: Plan, dtype: torch.dtype, folder: Path) -> None:
    for file in plan.source.iterdir():
        named_for_weights = file.suffix in WEIGHTS or file.name.endswith(".index.json")
        if file.is_file() and not named_for_weights and not file.name.startswith(".") and file.name != "README.md":
            shutil.copyfile(file, folder / file.name)
    config = published_config(plan.source)
    kept = {**config, "torch_dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(kept, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

"""Writes native weights in the published layout of their family, by the conversion's rules in reverse.

A head whose rows the conversion scaled to length 1 is the published one again. If it was trained, its rows have other lengths, which
the published code would scale away.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from rich.console import Console

from hydraft.errors import ConfigError
from hydraft.infer.export.published_source import HEAD_TRAINED
from hydraft.models.convert import shards
from hydraft.models.convert.mapping import Plan, make_plan, take
from hydraft.models.families.layout import Rule
from hydraft.models.families.registry import published_config
from hydraft.system.console import Bytes
from hydraft.system.files import write_json
from hydraft.system.plain_console import PlainConsole

SAFETENSORS_INDEX = "model.safetensors.index.json"
WEIGHTS = (".bin", ".safetensors")


def publish(weights: shards.Shard, source: Path, folder: Path, console: Console | None = None) -> None:
    """Write native ``weights`` to ``folder`` in the layout of the published checkpoint ``source``; other files are copied from it.

    Tensors that the native model does not have are copied too. The shards are those of the source, as safetensors.

    Raises:
        ConfigError: the layout has no place for one of them, such as a head that is no longer tied to the embedding, or a head with
            scaled rows was trained.
    """
    plan = make_plan(source)
    rules = plan.family.rules(plan.published)
    written = {part.name for rule in rules.values() for part in rule.parts}
    if left_out := [name for name in weights.names if name not in written]:
        raise ConfigError(f"export.layout=published: that layout has no place for {left_out[0]}: leave it out")
    files, _ = shards.files(source)
    layouts = {file: _layout(source / file, rules, weights) for file in files}
    total = sum(tensor.bytes for layout in layouts.values() for tensor in layout.values())
    bar = Bytes(console or PlainConsole(stderr=True), "merging", total)
    placed: dict[str, str] = {}
    with bar.progress:
        for number, ((file, layout), name) in enumerate(
            zip(layouts.items(), shards.numbered(len(files)), strict=True), 1
        ):
            bar.say(f"merging, file {number} of {len(files)}")
            with shards.opened(source / file) as shard:
                made = (_made(rules.get(key), key, weights, shard) for key in layout)
                shards.write(folder / name, layout, made, bar.advance)
            placed |= dict.fromkeys(layout, name)
    if len(files) > 1:
        write_json(folder / SAFETENSORS_INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
    _copy_the_rest(plan, shards.empty(weights.describe(weights.names[0])).dtype, folder)


def native_weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The native tensors of a folder in a published layout, by name; most are views of its mapped files."""
    for output in make_plan(folder).outputs:
        with shards.opened(folder / output.source) as shard:
            yield from ((part.name, take(shard.read(name), part)) for name, part in output.parts)


def _layout(file: Path, rules: Mapping[str, Rule], weights: shards.Shard) -> dict[str, shards.Tensor]:
    """The headers of a published shard as it is written: of the data types of the native tensors."""
    with shards.opened(file) as shard:
        found = {key: shard.describe(key) for key in shard.names}
    for key in found.keys() & rules.keys():
        parts = rules[key].parts
        if not any(part.unit_rows for part in parts):
            found[key] = dataclasses.replace(found[key], dtype=weights.describe(parts[0].name).dtype)
    return dict(sorted(found.items(), key=lambda item: -shards.SIZES[item[1].dtype]))  # so that all stay aligned


def _made(rule: Rule | None, key: str, weights: shards.Shard, published: shards.Shard) -> torch.Tensor:
    """A published tensor (N, …): its native ones stacked along the first dimension, group by group; the published one if its rows were scaled."""
    if rule is None:
        return published.read(key)
    ordered = sorted(rule.parts, key=lambda part: (part.rows or (0, 0))[0])
    found = [weights.read(part.name).detach().cpu() for part in ordered]
    if any(part.unit_rows for part in ordered):
        own = published.read(key)
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

"""Dequantises FP8 and MXFP4 checkpoints to bf16, one tensor at a time, into a folder that transformers loads like any other.

FP8 (DeepSeek-V3, arXiv:2412.19437, section 3.3; Qwen3's FP8 checkpoints): a weight W in float8, and a scale for each block of
``weight_block_size`` (128 x 128) or for the whole tensor: W[i, j] * scale[i // 128, j // 128]. MXFP8 and MXFP4 (OCP Microscaling
Formats, version 1.0): blocks of 32 numbers along the last dimension share a power of two, stored as its exponent plus 127; a number of
MXFP4 has 4 bits (E2M1), two in a byte, the lower half first.

Shapes: O output features, I input features, E experts, K blocks of 32.
"""

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hydraft.errors import ConfigError
from hydraft.models.convert import shards
from hydraft.models.families.registry import published_config
from hydraft.system.console import Bytes

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The numbers of MXFP4 by their code (OCP Microscaling Formats, section 5.3.3)."""

MICROSCALING = (1, 32)
"""The blocks of MXFP8, whose scales are exponents."""

BIAS = 127
"""Of the exponents that are scales (E8M0)."""

FLOATS = {"F32", "BF16", "F16"}
FP8 = {"F8_E4M3", "F8_E5M2"}
SCALES = ("_scale_inv", "_scale", ".scale")
"""What the name of a scale has after ``….weight`` (the last: in place of it)."""
LEFT_OUT = re.compile(r".*\.(?:activation_scale|input_scale|weight_scale|weight_scale_inv)")
"""Scales that no weight needs once it is dequantised, those of quantised activations among them."""


@dataclass(frozen=True)
class _Source:
    """A tensor of the new checkpoint: the tensors that it is made from, by name, and its shape."""

    weight: str
    scale: str | None
    shape: tuple[int, ...]
    dtype: str


def dequantise(source: Path, target: Path, console: Console) -> None:
    """Write ``source`` to the existing folder ``target`` with bf16 in place of quantised weights.

    Raises:
        ConfigError: a scale is missing or does not fit its weight, or the disk is full.
    """
    config = published_config(source)
    block = _block(config)
    files, _ = shards.files(source)
    with ExitStack() as stack:
        shard_of: dict[str, shards.Shard] = {}
        for file in files:
            shard = stack.enter_context(shards.opened(source / file))
            shard_of |= dict.fromkeys(shard.names, shard)
        plans = _planned(source, files, shard_of)
        total = sum(_header(one).bytes for plan in plans.values() for one in plan.values())
        if (free := shutil.disk_usage(target).free) < total:
            raise ConfigError(
                f"{source}: dequantised, it takes {total / 2**30:.1f} GiB in {target.parent}, where {free / 2**30:.1f} GiB are free: "
                "set HYDRAFT_CACHE to a folder on a larger disk"
            )
        bar = Bytes(console, "dequantising", total)
        with bar.progress:
            for file, plan in plans.items():
                made = (_made(one, shard_of, block) for one in plan.values())
                shards.write(target / file, {name: _header(one) for name, one in plan.items()}, made, bar.advance)
    if len(files) > 1:
        placed = {name: file for file, plan in plans.items() for name in plan}
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        (target / shards.INDEXES[0]).write_text(json.dumps(index))
    _copy_the_rest(source, config, target)


def _block(config: Mapping[str, Any]) -> tuple[int, int] | None:
    found = config.get("quantization_config") or {}
    size = found.get("weight_block_size")
    return None if size is None else (int(size[0]), int(size[1]))


def _planned(source: Path, files: list[str], shard_of: Mapping[str, shards.Shard]) -> dict[str, dict[str, _Source]]:
    """By file: the tensors that it becomes, without the scales that they are made with."""
    planned: dict[str, dict[str, _Source]] = {}
    for file in files:
        with shards.opened(source / file) as shard:
            planned[file] = dict(_becomes(source / file, name, shard_of) for name in shard.names)
    used = {one.scale for plan in planned.values() for one in plan.values()}
    for file, plan in planned.items():
        planned[file] = {name: one for name, one in plan.items() if name not in used and not LEFT_OUT.fullmatch(name)}
        for name, one in planned[file].items():
            if one.dtype not in FLOATS:
                raise ConfigError(
                    f"{source / file}: {name} has data type {one.dtype}, which is not known in this format"
                )
    return planned


def _becomes(file: Path, name: str, shard_of: Mapping[str, shards.Shard]) -> tuple[str, _Source]:
    """The new name of a tensor, and how it is made; a tensor of any other type stays as it is."""
    found = shard_of[name].describe(name)
    target = name.removesuffix("_blocks")
    if target != name and f"{target}_scales" in shard_of:
        experts, rows, blocks, width = found.shape  # (E, O, K, 16)
        return target, _Source(name, f"{target}_scales", (experts, blocks * width * 2, rows), "BF16")  # (E, I, O)
    if found.dtype not in FP8:
        return name, _Source(name, None, found.shape, found.dtype)
    bare = name.removesuffix(".weight")
    scale = next((one for end in SCALES for one in (f"{name}{end}", f"{bare}{end}") if one in shard_of), None)
    if scale is None:
        raise ConfigError(f"{file}: {name} has 8 bits, and its scale {name}_scale_inv is missing")
    return name, _Source(name, scale, found.shape, "BF16")


def _header(one: _Source) -> shards.Tensor:
    return shards.Tensor(one.dtype, one.shape)


def _made(one: _Source, shard_of: Mapping[str, shards.Shard], block: tuple[int, int] | None) -> torch.Tensor:
    weight = shard_of[one.weight].read(one.weight)
    if one.scale is None:
        return weight
    scale = shard_of[one.scale].read(one.scale)
    try:
        return mxfp4(weight, scale) if one.weight.endswith("_blocks") else fp8(weight, scale, block)
    except ValueError as error:
        raise ConfigError(f"{one.weight}: {error}") from None


def fp8(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] | None) -> torch.Tensor:
    """A weight (…, O, I) in bf16; ``scale`` for the whole tensor (no or one element), or for each block.

    The last block of a dimension may be partial.

    Raises:
        ValueError: ``scale`` has another number of blocks.
    """
    exponents = scale.dtype is torch.uint8  # E8M0 as bytes
    scale = (scale.float() - BIAS).exp2() if exponents else scale.float()
    if scale.numel() == 1:
        return (weight.float() * scale.reshape(())).to(torch.bfloat16)
    rows, columns = MICROSCALING if exponents or block is None else block
    expected = (*weight.shape[:-2], -(-weight.shape[-2] // rows), -(-weight.shape[-1] // columns))
    if tuple(scale.shape) != expected:
        raise ValueError(
            f"its scales have shape {tuple(scale.shape)}, where blocks of {rows} x {columns} need {expected}"
        )
    whole = scale.repeat_interleave(rows, -2).repeat_interleave(columns, -1)  # (…, >= O, >= I)
    return (weight.float() * whole[..., : weight.shape[-2], : weight.shape[-1]]).to(torch.bfloat16)


def mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The experts' weights (E, I, O) in bf16, as transformers' gpt-oss multiplies with them; ``blocks`` (E, O, K, 16) are bytes.

    Raises:
        ValueError: ``scales`` does not have one exponent for each block.
    """
    if scales.shape != blocks.shape[:-1]:
        raise ValueError(f"its scales have shape {tuple(scales.shape)}, where {tuple(blocks.shape[:-1])} are needed")
    table = torch.tensor(E2M1, dtype=torch.bfloat16)
    made = torch.empty(blocks.shape[0], blocks.shape[2] * 32, blocks.shape[1], dtype=torch.bfloat16)  # (E, I, O)
    for expert, (codes, exponents) in enumerate(
        zip(blocks, scales, strict=True)
    ):  # one at a time: indices have 8 bytes
        halves = torch.stack([table[(codes & 15).int()], table[(codes >> 4).int()]], -1)  # (O, K, 16, 2)
        numbers = torch.ldexp(halves.flatten(-2), (exponents.int() - BIAS).unsqueeze(-1)).to(
            torch.bfloat16
        )  # (O, K, 32)
        made[expert] = numbers.flatten(-2).T
    return made


def _copy_the_rest(source: Path, config: Mapping[str, Any], target: Path) -> None:
    """Copy tokenizer, templates and code, and write config.json without the quantisation."""
    for file in source.iterdir():
        weights = file.suffix in (".safetensors", ".bin") or file.name.endswith(".index.json")
        if file.is_file() and not weights and file.suffix != ".md" and not file.name.startswith("."):
            shutil.copyfile(file, target / file.name)
    kept = {name: value for name, value in config.items() if name != "quantization_config"}
    for name, part in kept.items():
        if isinstance(part, dict):
            kept[name] = {key: value for key, value in part.items() if key != "quantization_config"}
    kept.pop("torch_dtype", None)
    (target / "config.json").write_text(json.dumps(kept | {"dtype": "bfloat16"}, ensure_ascii=False, indent=2) + "\n")

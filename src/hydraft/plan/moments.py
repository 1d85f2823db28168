"""Bytes of an optimizer's moments, by its kind. No torch."""

from dataclasses import dataclass
from math import prod

from hydraft.config.optimizer import BLOCK, BUCKET, PAGED, SMALLEST, OptimizerConfig, OptimizerKind
from hydraft.plan.parameters import Trained

TABLES = 2 * 256 * 4
"""Bytes of the two tables of 8-bit codes, which all tensors share."""


@dataclass(frozen=True)
class Group:
    """Tensors that have a group of the optimizer, and so a flat shard of their own."""

    tensors: tuple[int, ...]
    """Elements of each."""
    hidden: bool
    """Whether Muon orthogonalises their updates."""


@dataclass(frozen=True)
class Moments:
    """Bytes of the moments of some tensors."""

    kept: int
    paged: int
    """In CUDA's managed memory."""


def groups(section: OptimizerConfig, learns: Trained) -> list[Group]:
    """The groups of ``training/optimizer.py``: with weight decay or without, LoRA+'s A and B, and hidden matrices or not."""
    found: dict[tuple[bool, bool], list[int]] = {}
    for place, (count, shape) in enumerate(zip(learns.tensors, learns.shapes, strict=True)):
        of_base = place >= len(learns.adapter)
        if section.lora_plus is None:
            first = not (of_base and len(shape) == 1)
        else:
            first = len(shape) > 1 and not _is_b(learns, place)
        hidden = section.kind is OptimizerKind.muon and len(shape) == 2 and place not in learns.ends
        found.setdefault((first, hidden), []).append(count)
    return [Group(tuple(tensors), hidden) for (_, hidden), tensors in found.items()]


def _is_b(learns: Trained, place: int) -> bool:
    """Whether this is the matrix B of an adapter, which follows A."""
    matrices = [at for at, shape in enumerate(learns.shapes[: len(learns.adapter)]) if len(shape) == 2]
    return place in matrices[1::2]


def flat(section: OptimizerConfig, sizes: list[tuple[int, bool]], on_gpu: bool) -> Moments:
    """Of flat tensors with these numbers of elements, and whether they are of hidden matrices."""
    algorithm = section.algorithm
    kept = paged = 0
    for size, hidden in sizes:
        if algorithm.bits == 32 or size < SMALLEST:
            kept += 4 * size * (1 if hidden else algorithm.moments)
            continue
        kept += algorithm.moments * 4 * -(-size // BLOCK)
        codes = algorithm.moments * size
        if algorithm.paged and on_gpu and size >= PAGED:
            paged += codes
        else:
            kept += codes
    tables = TABLES if algorithm.bits == 8 and any(size >= SMALLEST for size, _ in sizes) else 0
    return Moments(kept + tables, paged)


def hidden(section: OptimizerConfig, learns: Trained) -> list[int]:
    """Elements of each matrix that Muon orthogonalises."""
    return [count for group in groups(section, learns) if group.hidden for count in group.tensors]


def gathered(section: OptimizerConfig, learns: Trained) -> int:
    """Bytes of the buffer in which Muon gathers hidden matrices from the shards (``training/muon.py``); 0 for other kinds."""
    counts = hidden(section, learns)
    return 4 * min(sum(counts), max(BUCKET, *counts)) if counts else 0


def saved(section: OptimizerConfig, learns: Trained) -> int:
    """Bytes of the moments in a checkpoint, where those of 8 bits are in fp32."""
    if section.kind is OptimizerKind.adafactor:
        return whole(section, learns, on_gpu=False).kept
    return sum(
        4 * sum(group.tensors) * (1 if group.hidden else section.algorithm.moments) for group in groups(section, learns)
    )


def whole(section: OptimizerConfig, learns: Trained, on_gpu: bool) -> Moments:
    """Of tensors that are not sharded."""
    if section.kind is OptimizerKind.adafactor:
        return Moments(4 * sum(map(_factored, learns.shapes)), 0)
    sizes = [(count, group.hidden) for group in groups(section, learns) for count in group.tensors]
    return flat(section, sizes, on_gpu)


def _factored(shape: tuple[int, ...]) -> int:
    """Numbers that Adafactor keeps for a tensor: those of its rows and of its columns."""
    count = prod(shape)
    return count if len(shape) < 2 else count // shape[-1] + count // shape[-2]

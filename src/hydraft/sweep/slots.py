"""How many jobs a machine runs side by side, and which part of it each has. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydraft.system.hardware import Hardware

MEMORY_SHARE = 0.9
"""Of the main memory, what jobs may plan with together."""

QUEUED = 32
"""Jobs at once whose ranks are elsewhere, in a queue of its own."""


@dataclass(frozen=True)
class Demand:
    """What a job takes of this machine."""

    ranks: int = 1
    """Its processes here, one a GPU where there are any; 0 for a job whose ranks another queue places."""
    memory: int = 0
    """Bytes of main memory; 0 if not known."""
    alone: bool = False
    """It takes more machines than this one, and none beside it may."""


@dataclass(frozen=True)
class Slot:
    """A part of the machine."""

    cores: int
    """What its threads may keep busy; nothing is pinned, so that a core that is free serves whoever needs it."""
    gpus: tuple[str, ...] | None
    """Names for CUDA_VISIBLE_DEVICES; None without GPUs."""


def slots(demands: Sequence[Demand], machine: Hardware, jobs: int | None = None) -> list[Slot]:
    """The parts of this machine that jobs of these ``demands`` run on, as many as run side by side.

    ``jobs`` asks for so many; more than there are cores or GPUs for share them.
    """
    width = min(jobs or fitting(demands, machine), len(demands))
    ranks = max(demand.ranks for demand in demands)
    cards = machine.names
    return [
        Slot(
            max(1, machine.cpus // width),
            None if not cards else tuple(cards[(index * ranks + rank) % len(cards)] for rank in range(min(ranks, len(cards)))),
        )
        for index in range(width)
    ]  # fmt: skip


def fitting(demands: Sequence[Demand], machine: Hardware) -> int:
    """How many of the largest of these jobs the machine's cards or cores, and its memory, hold; at least one."""
    ranks = max(demand.ranks for demand in demands)
    memory = max(demand.memory for demand in demands)
    if any(demand.alone for demand in demands):
        return 1
    if ranks == 0:
        return QUEUED
    width = (machine.count or machine.cpus) // ranks
    if memory and machine.memory:
        width = min(width, int(MEMORY_SHARE * machine.memory / memory))
    return max(1, width)

"""How many jobs run at the same time on this machine, and with which cores and GPUs. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from hydraft.plan.pack import PackMemory
from hydraft.system.hardware import Hardware

MEMORY_SHARE = 0.9
"""Share of the main memory that all jobs may plan to use."""

QUEUED = 32
"""Jobs at the same time whose ranks are in the queue of another scheduler."""


@dataclass(frozen=True)
class Demand:
    """The part of this machine that a job needs."""

    ranks: int = 1
    """Processes on this machine, one per GPU; 0 for a job whose ranks another scheduler starts."""
    memory: int = 0
    """Bytes of main memory; 0 if unknown."""
    alone: bool = False
    """Whether it uses other machines too, so that no other job may run at the same time."""
    pack: str | None = None
    """What it has in common with the jobs that it can share a process with (``packs.pack_key``); None if it runs alone."""
    shared: PackMemory | None = None
    """The memory of such a process; None if unknown."""
    why_alone: str | None = None
    """Why it runs alone."""


@dataclass(frozen=True)
class Slot:
    """A part of the machine."""

    cores: int
    """Number of threads; they are not pinned to cores."""
    gpus: tuple[str, ...] | None
    """Names for CUDA_VISIBLE_DEVICES; None without GPUs."""


def slots(demands: Sequence[Demand], machine: Hardware, jobs: int | None = None) -> list[Slot]:
    """The parts of this machine for jobs with these ``demands``, one for each job that runs at the same time.

    ``jobs`` sets their number; if that is more than the cores or GPUs, jobs share them.
    """
    width = min(jobs or fitting(demands, machine), len(demands))
    ranks = max(demand.ranks for demand in demands)
    cards = machine.names
    return [
        Slot(
            max(1, machine.cpus // width),
            tuple(cards[(index * ranks + rank) % len(cards)] for rank in range(min(ranks, len(cards)))) if cards else None,
        )
        for index in range(width)
    ]  # fmt: skip


def fitting(demands: Sequence[Demand], machine: Hardware) -> int:
    """How many jobs with the largest of these demands fit on the machine's GPUs or cores and in its memory; at least one."""
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

"""How many jobs of a sweep share a process, and the lines that say so. No torch."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from hydraft.plan.pack import PackMemory, largest
from hydraft.sweep.placement import even, shares
from hydraft.sweep.slots import MEMORY_SHARE, Demand
from hydraft.system.hardware import Hardware

SEARCH = 8
"""Most jobs of a pack in a search, unless a number is asked for: a sampler learns nothing from jobs that start together."""


@dataclass(frozen=True)
class Places:
    """The most jobs in one process."""

    by_key: dict[str, int] = field(default_factory=dict)
    """By what they have in common."""
    other: int = 1
    """For jobs that were not known at the start."""
    fit: int | None = None
    """How many fit into the memory, where that decides; None otherwise."""

    def of(self, key: str) -> int:
        """For the jobs of one pack."""
        return self.by_key.get(key, self.other)


def available(slots: int, machine: Hardware) -> int | None:
    """Bytes of a slot: of its GPU, or its share of the main memory; None if unknown."""
    if machine.gpus:
        sharing = -(-slots // len(machine.gpus))
        return min(gpu.available for gpu in machine.gpus) // sharing or None
    return int(MEMORY_SHARE * machine.memory / slots) or None


def fitting(shared: Sequence[PackMemory | None], room: int | None) -> int | None:
    """How many jobs with these memories fit into ``room`` bytes; None if unknown."""
    known = [one for one in shared if one is not None]
    return largest(known).members(room) if known and room is not None else None


def places(demands: Sequence[Demand], slots: int, machine: Hardware, asked: int | None, fixed: bool = True) -> Places:
    """The most jobs in one process.

    Args:
        demands: of the jobs; for a search the largest one.
        slots: how many processes run at the same time.
        machine: this machine.
        asked: ``hydra.launcher.pack``; None for ``auto``.
        fixed: whether these are all jobs. Then ``auto`` spreads them evenly over the slots.
    """
    room = available(slots, machine)
    if not fixed:
        fit = fitting([one.shared for one in demands], room)
        wanted = asked or SEARCH
        return Places({}, min(wanted, fit or wanted), fit if fit is not None and fit < wanted else None)
    jobs = Counter(one.pack for one in demands)
    share, by_key, limit = shares(jobs, slots), dict[str, int](), None
    for key in (key for key in jobs if key is not None):
        fit = fitting([one.shared for one in demands if one.pack == key], room)
        wanted = asked or even(jobs[key], share[key], jobs[key])
        by_key[key] = min(wanted, fit or wanted)
        limit = fit if fit is not None and fit < wanted else limit
    return Places(by_key, 1, limit)


def lines(demands: Sequence[Demand], found: Places, slots: int, asked: int | None) -> Iterator[str]:
    """What is said before the jobs of a fixed list start."""
    jobs = Counter(one.pack for one in demands)
    share = shares(jobs, slots)
    for key, most in found.by_key.items():
        packs = min(share[key] or 1, -(-jobs[key] // most))
        if most > 1 and jobs[key] > 1:
            size = min(most, -(-jobs[key] // packs))
            groups = "1 pack" if packs == 1 else f"{packs} packs"
            waits = f", and the others as places get free ({most} in a pack)" if jobs[key] > packs * most else ""
            yield f"{jobs[key]} jobs in {groups} of {size}: a pack trains them together over one frozen base{waits}"
    if asked is None or asked == 1:
        return
    if found.fit is not None:
        yield f"hydra.launcher.pack={asked}: {found.fit} fit into the memory"
    for why, count in Counter(one.why_alone for one in demands if one.why_alone is not None).items():
        yield f"hydra.launcher.pack={asked}: {'1 job runs' if count == 1 else f'{count} jobs run'} alone: {why}"

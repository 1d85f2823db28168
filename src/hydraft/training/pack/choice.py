"""Which way to compute the products of a layer for several members is the fastest on this device.

On a CPU, products of views are never slower than one member's after another's, and faster the smaller they are, since each product costs
a call; what copies cost is more than a call. On a GPU the ways are measured, once for all layers and passes of about the same size.
"""

import math
import time
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import cache

import torch

from hydraft.training.oom import is_out_of_memory
from hydraft.training.pack import measured
from hydraft.training.pack.products import Batched, Grouped, Products, Single, can_group

LARGEST = 4096
"""Tokens of a measurement; which way is the fastest hardly changes beyond."""

ROUNDS, WARM = 5, 2
"""Of each way; the fastest of the rounds that follow the first ones counts."""


class Way(StrEnum):
    """How to compute the products for neighbours whose adapters have the same rank."""

    each = "each"
    """One member's after another's."""
    views = "views"
    """Batches of those neighbours that have equally many tokens."""
    batched = "batched"
    """A batch of all, with copies as long as the longest if their lengths differ."""
    grouped = "grouped"
    """Torch's grouped products."""


@dataclass(frozen=True)
class Case:
    """What the choice depends on."""

    device: torch.device
    dtype: torch.dtype
    inputs: int
    outputs: int
    rank: int
    sizes: tuple[int, ...]
    """Tokens of each member."""

    def rounded(self) -> "Case":
        """That of all with about as many tokens, of which the longest member has about the same part."""
        tokens, longest = (_power(count) for count in (sum(self.sizes), max(self.sizes)))
        tokens = min(tokens, LARGEST)
        members = len(self.sizes)
        if len(set(self.sizes)) == 1:
            return replace(self, sizes=(max(1, tokens // members),) * members)
        longest = min(longest, LARGEST)
        rest = max(1, (tokens - longest) // (members - 1))
        return replace(self, sizes=(longest, *(rest,) * (members - 1)))


def _power(count: int) -> int:
    return 1 << round(math.log2(count))


def choose(case: Case) -> Way:
    """The way for at least two members, of which each has tokens."""
    if case.device.type == "cpu":
        # With rank 1, a product by itself is that of a matrix and a vector, which rounds differently than one in a batch. All
        # others have the same bits in MKL, so a member's results do not depend on the members beside it.
        return Way.views if case.rank > 1 else Way.each
    return fastest_of(case.rounded())


@cache
def fastest_of(case: Case) -> Way:
    try:
        named = asdict(case) | {"device": measured.device_name(case.device), "torch": torch.__version__}
        return measured.once(named, Way, lambda: fastest(seconds(case)))
    except RuntimeError as error:
        if is_out_of_memory(error):
            return Way.each  # needs no copies
        raise


def fastest(found: dict[Way, float]) -> Way:
    """From the seconds of each way."""
    return min(found, key=lambda way: found[way])


def candidates(case: Case) -> dict[Way, list[tuple[slice, Products]]]:
    """The ways that differ for these members, each with the rows of the products."""
    like = torch.empty(0, dtype=case.dtype, device=case.device)
    scalings, ends = (2.0,) * len(case.sizes), [0]
    for size in case.sizes:
        ends.append(ends[-1] + size)
    whole = slice(0, ends[-1])
    found: dict[Way, list[tuple[slice, Products]]] = {
        Way.each: [(slice(ends[n], ends[n + 1]), Single((size,), (2.0,), like)) for n, size in enumerate(case.sizes)],
        Way.batched: [(whole, Batched(case.sizes, scalings, like))],
    }
    if can_group(case.device, case.dtype, (case.inputs, case.outputs, case.rank)):
        found[Way.grouped] = [(whole, Grouped(case.sizes, scalings, like))]
    return found


@torch.no_grad()
def seconds(case: Case) -> dict[Way, float]:
    """Of the six products in each way."""
    chance = torch.Generator(case.device).manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=chance, device=case.device, dtype=case.dtype)

    tokens, members = sum(case.sizes), len(case.sizes)
    rows, above, result = drawn(tokens, case.inputs), drawn(tokens, case.outputs), drawn(tokens, case.outputs)
    downs = [drawn(case.rank, case.inputs) for _ in range(members)]
    ups = [drawn(case.outputs, case.rank).mul_(1e-3) for _ in range(members)]
    below = torch.empty_like(rows)
    found = {}
    for way, products in candidates(case).items():
        times = []
        for _ in range(WARM + ROUNDS):
            began = _now(case.device)
            first = 0
            for where, one in products:
                own = slice(first, first + len(one.sizes))
                kept = one.add(result[where], rows[where], downs[own], ups[own])
                one.gradients(above[where], rows[where], kept, below[where])
                first = own.stop
            times.append(_now(case.device) - began)
        found[way] = min(times[WARM:])
    return found


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

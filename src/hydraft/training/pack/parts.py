"""Which members of a pass have the products of a layer computed together, and in which way."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, groupby

from hydraft.training.pack.adapter import Adapter
from hydraft.training.pack.products import Batched, Products, Single


@dataclass
class Part:
    """Members that follow one another in the row of a pass."""

    adapters: slice
    """Of those that adapt the layer."""
    rows: slice
    products: Products


def parts(adapters: list[Adapter], sizes: list[int]) -> list[Part]:
    """The parts for a layer.

    Args:
        adapters: on the layer, in the order of their members.
        sizes: tokens of every member of the pass.
    """
    starts, found, first = [0, *accumulate(sizes)], [], 0
    for group in _groups(adapters, sizes):
        kept, last = tuple(sizes[adapter.number] for adapter in group), group[-1].number
        scalings = tuple(adapter.scaling for adapter in group)
        products = Single(kept, scalings) if len(group) == 1 else Batched(kept, scalings)
        rows = slice(starts[group[0].number], starts[last + 1])
        found.append(Part(slice(first, first + len(group)), rows, products))
        first += len(group)
    return found


def _groups(adapters: list[Adapter], sizes: list[int]) -> Iterable[list[Adapter]]:
    """Neighbours whose adapters have the same rank, of whom all have dropout or none, and which have equally many tokens."""

    def kind(numbered: tuple[int, Adapter]) -> tuple[int, int, bool, int]:
        position, adapter = numbered
        return adapter.number - position, len(adapter.down), adapter.dropout > 0, sizes[adapter.number]

    for _, group in groupby(enumerate(adapters), kind):
        yield [adapter for _, adapter in group]

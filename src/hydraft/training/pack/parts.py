"""Which members of a pass have the products of a layer computed together, and in which way."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, groupby

import torch

from hydraft.training.pack import choice
from hydraft.training.pack.adapter import Adapter
from hydraft.training.pack.choice import Case, Way
from hydraft.training.pack.products import Batched, Grouped, Products, Single


@dataclass
class Part:
    """Members that follow one another in the row of a pass."""

    adapters: slice
    """Of those that adapt the layer."""
    rows: slice
    products: Products


@dataclass
class Parts:
    """Those of the layers of a pass, which are the same for many layers."""

    _found: dict[Hashable, list[Part]] = field(default_factory=dict)
    _made: dict[Hashable, Products] = field(default_factory=dict)
    """Of parts: they may keep tensors on the device, which other parts with the same lengths need too."""

    def of(self, adapters: list[Adapter], sizes: list[int], x: torch.Tensor) -> list[Part]:
        """The parts for a layer.

        Args:
            adapters: on the layer, in the order of their members.
            sizes: rows of every member: all its tokens, or those whose logits are computed.
            x: the rows of the pass.
        """
        # The number of rows tells the sizes: positions whose logits are computed are all tokens, or fewer.
        key = tuple(adapter.shape for adapter in adapters), x.shape, x.dtype
        if key not in self._found:
            self._found[key] = self._divide(adapters, sizes, x)
        return self._found[key]

    def _divide(self, adapters: list[Adapter], sizes: list[int], x: torch.Tensor) -> list[Part]:
        starts, found, first = [0, *accumulate(sizes)], [], 0
        for kind, group in _divided(adapters, sizes, x):
            rows = slice(starts[group[0].number], starts[group[-1].number + 1])
            scalings = tuple(adapter.scaling for adapter in group)
            tokens = tuple(sizes[adapter.number] for adapter in group)
            products = self._products(kind, tokens, scalings, x)
            found.append(Part(slice(first, first + len(group)), rows, products))
            first += len(group)
        return found

    def _products(
        self, kind: type[Products], sizes: tuple[int, ...], scalings: tuple[float, ...], like: torch.Tensor
    ) -> Products:
        key = (kind, sizes, scalings, like.dtype)
        if key not in self._made:
            self._made[key] = kind(sizes, scalings, like)
        return self._made[key]


def _divided(
    adapters: list[Adapter], sizes: list[int], x: torch.Tensor
) -> Iterator[tuple[type[Products], list[Adapter]]]:
    """Groups of adapters, and how their products are computed."""
    for group in _neighbours(adapters, sizes):
        first, tokens = group[0], tuple(sizes[adapter.number] for adapter in group)
        way = Way.each
        if len(group) > 1 and tokens[0]:
            case = Case(x.device, x.dtype, x.shape[2], first.outputs, first.rank, tokens)
            way = choice.choose(case)
        if way is Way.batched or way is Way.grouped:
            yield Batched if way is Way.batched else Grouped, group
        elif way is Way.views:
            for _, equal in groupby(group, lambda adapter: sizes[adapter.number]):
                some = [*equal]
                yield Single if len(some) == 1 else Batched, some
        else:
            yield from ((Single, [adapter]) for adapter in group)


def _neighbours(adapters: list[Adapter], sizes: list[int]) -> Iterator[list[Adapter]]:
    """Neighbours whose adapters have the same rank, of whom all have dropout or none, and all have tokens or none."""

    def kind(numbered: tuple[int, Adapter]) -> tuple[int, int, bool, bool]:
        position, adapter = numbered
        return adapter.number - position, adapter.rank, adapter.dropout > 0, sizes[adapter.number] > 0

    for _, group in groupby(enumerate(adapters), kind):
        yield [adapter for _, adapter in group]

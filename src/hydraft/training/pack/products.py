"""The products of LoRA's updates for neighbouring members of a pass, in several ways that differ in speed only.

Forward, for a member's rows x: low = s x A^T and result += low B^T. Backward, for the gradient g of the result:
dB = g^T low, dlow = s g B, dA = dlow^T x and dx = dlow A. (Hu et al. 2021, arXiv:2106.09685; A is ``down``, B is ``up``, s the scaling.)

In no way is a number of one member multiplied by one of another, not even by a zero: 0 x NaN is NaN.

Shapes: K members that follow one another in the row of a pass, T tokens of them all, n of one; D features in, F features out, r the rank.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch


class Kept(NamedTuple):
    """What the backward pass needs beside the rows."""

    down: torch.Tensor
    up: torch.Tensor
    low: torch.Tensor


class Gradients(NamedTuple):
    """Those of the weights, a tensor for each member."""

    downs: Sequence[torch.Tensor]  # (r, D)
    ups: Sequence[torch.Tensor]  # (F, r)


class Products(ABC):
    """A way to compute the products.

    Args:
        sizes: tokens of each member.
        scalings: of each member's adapter.
        like: a tensor of the data type and on the device of the rows.
    """

    def __init__(self, sizes: tuple[int, ...], scalings: tuple[float, ...], like: torch.Tensor) -> None:
        self.sizes, self.scalings = sizes, scalings
        self.device, self.dtype = like.device, like.dtype

    @property
    def equal(self) -> bool:
        """Whether all members have equally many tokens."""
        return len(set(self.sizes)) == 1

    @abstractmethod
    def add(
        self, result: torch.Tensor, rows: torch.Tensor, downs: Sequence[torch.Tensor], ups: Sequence[torch.Tensor]
    ) -> Kept:
        """Add the updates for ``rows`` (T, D) to ``result`` (T, F) in place."""

    @abstractmethod
    def gradients(self, above: torch.Tensor, rows: torch.Tensor, kept: Kept, below: torch.Tensor | None) -> Gradients:
        """From the gradient ``above`` (T, F) of the result; that of the rows is written to ``below`` (T, D)."""


class Single(Products):
    """One member."""

    def add(
        self, result: torch.Tensor, rows: torch.Tensor, downs: Sequence[torch.Tensor], ups: Sequence[torch.Tensor]
    ) -> Kept:
        low = torch.mm(rows, downs[0].t())  # (n, r)
        result.addmm_(low, ups[0].t(), alpha=self.scalings[0])
        return Kept(downs[0], ups[0], low)

    def gradients(self, above: torch.Tensor, rows: torch.Tensor, kept: Kept, below: torch.Tensor | None) -> Gradients:
        of_up = torch.mm(above.t(), kept.low).mul_(self.scalings[0])  # (F, r)
        of_low = torch.mm(above, kept.up).mul_(self.scalings[0])  # (n, r)
        if below is not None:
            torch.mm(of_low, kept.down, out=below)
        return Gradients([torch.mm(of_low.t(), rows)], [of_up])


class _Together(Products):
    """Several members, whose scalings may differ."""

    @property
    @abstractmethod
    def _factors(self) -> torch.Tensor:
        """The scalings, in a shape by which low results are multiplied."""

    def _scaled(self, low: torch.Tensor) -> torch.Tensor:
        return low.mul_(self.scalings[0] if len(set(self.scalings)) == 1 else self._factors)

    def _number(self, values: Sequence[float]) -> torch.Tensor:
        """A factor in 16 bits would be rounded more coarsely than that of a product with one number is."""
        return torch.tensor(values, dtype=torch.promote_types(self.dtype, torch.float32), device=self.device)


class Batched(_Together):
    """Batches of matrices: views of the row if the members have equally many tokens, and otherwise copies as long as the longest.

    A copy is padded with the last of the member's own rows, and its gradient with zeros: a member meets no rows but its own.
    """

    def add(
        self, result: torch.Tensor, rows: torch.Tensor, downs: Sequence[torch.Tensor], ups: Sequence[torch.Tensor]
    ) -> Kept:
        down, up = torch.stack(tuple(downs)), torch.stack(tuple(ups))  # (K, r, D), (K, F, r)
        low = self._scaled(torch.bmm(self._split(rows), down.mT))  # (K, n, r)
        if self.equal:
            self._split(result).baddbmm_(low, up.mT)
        else:
            result.add_(self._joined(torch.bmm(low, up.mT)))
        return Kept(down, up, low)

    def gradients(self, above: torch.Tensor, rows: torch.Tensor, kept: Kept, below: torch.Tensor | None) -> Gradients:
        above = self._split(above)  # (K, n, F)
        if not self.equal:
            above.masked_fill_(self._padding, 0)
        of_up = torch.bmm(above.mT, kept.low)  # (K, F, r)
        of_low = self._scaled(torch.bmm(above, kept.up))  # (K, n, r)
        if below is not None and self.equal:
            torch.bmm(of_low, kept.down, out=self._split(below))
        elif below is not None:
            below.copy_(self._joined(torch.bmm(of_low, kept.down)))
        return Gradients(torch.bmm(of_low.mT, self._split(rows)).unbind(), of_up.unbind())

    def _split(self, rows: torch.Tensor) -> torch.Tensor:
        """(K, n, D) of (T, D); n is that of the longest."""
        if not self.equal:
            rows = rows.index_select(0, self._sources)
        return rows.view(len(self.sizes), max(self.sizes), rows.shape[1])

    def _joined(self, batch: torch.Tensor) -> torch.Tensor:
        """(T, F) of (K, n, F), without the padding."""
        return batch.flatten(0, 1).index_select(0, self._places)

    @cached_property
    def _factors(self) -> torch.Tensor:
        return self._number(self.scalings)[:, None, None]

    @cached_property
    def _sources(self) -> torch.Tensor:
        """Of each row of the batch, that of the pass, (K n)."""
        longest, found, start = max(self.sizes), [], 0
        for size in self.sizes:
            found += [start + min(place, size - 1) for place in range(longest)]
            start += size
        return torch.tensor(found, device=self.device)

    @cached_property
    def _places(self) -> torch.Tensor:
        """Of each row of the pass, that of the batch, (T)."""
        longest = max(self.sizes)
        found = [number * longest + place for number, size in enumerate(self.sizes) for place in range(size)]
        return torch.tensor(found, device=self.device)

    @cached_property
    def _padding(self) -> torch.Tensor:
        """Which rows of the batch are none of the pass, (K, n, 1)."""
        lengths = torch.tensor(self.sizes)[:, None]
        return (torch.arange(max(self.sizes)) >= lengths)[..., None].to(self.device)


class Grouped(_Together):
    """Torch's grouped products, whose groups differ in length; see ``can_group``."""

    def add(
        self, result: torch.Tensor, rows: torch.Tensor, downs: Sequence[torch.Tensor], ups: Sequence[torch.Tensor]
    ) -> Kept:
        down, up = torch.stack(tuple(downs)), torch.stack(tuple(ups))  # (K, r, D), (K, F, r)
        low = self._scaled(self._product(rows, down.mT))  # (T, r)
        result.add_(self._product(low, up.mT))
        return Kept(down, up, low)

    def gradients(self, above: torch.Tensor, rows: torch.Tensor, kept: Kept, below: torch.Tensor | None) -> Gradients:
        of_up = self._product(above.t(), kept.low)  # (K, F, r)
        of_low = self._scaled(self._product(above, kept.up))  # (T, r)
        if below is not None:
            below.copy_(self._product(of_low, kept.down))
        return Gradients(self._product(of_low.t(), rows).unbind(), of_up.unbind())

    def _product(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """(T, D) by (K, D, F) is (T, F); (F, T) by (T, r) is (K, F, r)."""
        return torch.nn.functional.grouped_mm(left, right, offs=self._ends)

    @cached_property
    def _factors(self) -> torch.Tensor:
        """Of each row, (T, 1)."""
        of_rows = [scaling for scaling, size in zip(self.scalings, self.sizes, strict=True) for _ in range(size)]
        return self._number(of_rows)[:, None]

    @cached_property
    def _ends(self) -> torch.Tensor:
        return torch.tensor([*accumulate(self.sizes)], dtype=torch.int32, device=self.device)


def can_group(device: torch.device, dtype: torch.dtype, dimensions: Sequence[int]) -> bool:
    """Whether torch's grouped products take matrices whose rows have these numbers of elements.

    Rows begin at multiples of 16 bytes. On GPUs, 16-bit floats on compute capability 8.0 or higher
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.grouped_mm.html).
    """
    if device.type == "cuda" and (dtype is not torch.bfloat16 or torch.cuda.get_device_capability(device) < (8, 0)):
        return False
    return dtype.itemsize <= 4 and all(size * dtype.itemsize % 16 == 0 for size in dimensions)

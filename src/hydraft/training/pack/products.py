"""The products of LoRA's updates for neighbouring members of a pass, in several ways that differ in speed only.

Forward, for a member's rows x: low = s x A^T and result += low B^T. Backward, for the gradient g of the result:
dB = g^T low, dlow = s g B, dA = dlow^T x and dx = dlow A. (Hu et al. 2021, arXiv:2106.09685; A is ``down``, B is ``up``, s the scaling.)

In no way is a number of one member multiplied by one of another, not even by a zero: 0 x NaN is NaN.

Shapes: K members that follow one another in the row of a pass, T tokens of them all, n of one; D features in, F features out, r the rank.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
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
    """A way to compute the products for members with these numbers of tokens and scalings; kept for all layers of a pass."""

    def __init__(self, sizes: tuple[int, ...], scalings: tuple[float, ...]) -> None:
        self.sizes, self.scalings = sizes, scalings

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


class Batched(Products):
    """Members of equal length: batches of matrices, which are views of the row."""

    def add(
        self, result: torch.Tensor, rows: torch.Tensor, downs: Sequence[torch.Tensor], ups: Sequence[torch.Tensor]
    ) -> Kept:
        down, up = torch.stack(tuple(downs)), torch.stack(tuple(ups))  # (K, r, D), (K, F, r)
        low = self._scaled(torch.bmm(self._split(rows), down.mT))  # (K, n, r)
        self._split(result).baddbmm_(low, up.mT)
        return Kept(down, up, low)

    def gradients(self, above: torch.Tensor, rows: torch.Tensor, kept: Kept, below: torch.Tensor | None) -> Gradients:
        above = self._split(above)  # (K, n, F)
        of_up = torch.bmm(above.mT, kept.low)  # (K, F, r)
        of_low = self._scaled(torch.bmm(above, kept.up))  # (K, n, r)
        if below is not None:
            torch.bmm(of_low, kept.down, out=self._split(below))
        return Gradients(torch.bmm(of_low.mT, self._split(rows)).unbind(), of_up.unbind())

    def _split(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.view(len(self.sizes), self.sizes[0], rows.shape[1])

    def _scaled(self, low: torch.Tensor) -> torch.Tensor:
        if len(set(self.scalings)) == 1:
            return low.mul_(self.scalings[0])
        for own, scaling in zip(low.unbind(), self.scalings, strict=True):
            own.mul_(scaling)
        return low

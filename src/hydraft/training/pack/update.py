"""LoRA's updates of several members, added to the base's result of a linear layer, with their gradients.

Kept for the backward pass are the rows, which other layers keep too, the weights, the products of rank r and the masks of dropout.
"""

from typing import Any

import torch

from hydraft.training.pack import dropout
from hydraft.training.pack.adapter import Drawn
from hydraft.training.pack.parts import Part
from hydraft.training.pack.products import Kept

TENSORS = 4
"""That are kept for a part: those of ``Kept``, and the mask."""


class Update(torch.autograd.Function):
    """The result (1, N, F) with the updates for the rows ``x`` (1, N, D), in place.

    ``weights`` are those that ``drawn`` has, first all ``down`` and then all ``up``.
    """

    @staticmethod
    def forward(
        ctx: Any, result: torch.Tensor, x: torch.Tensor, parts: list[Part], drawn: list[Drawn], *weights: torch.Tensor
    ) -> torch.Tensor:
        downs, ups = weights[: len(drawn)], weights[len(drawn) :]
        tensors: list[torch.Tensor | None] = []
        for part in parts:
            rows, mask = x[0, part.rows], None  # (T, D)
            if drawn[part.adapters.start][0].dropout:
                mask = _mask(rows, part, drawn[part.adapters])
                rows = rows * mask
            kept = part.products.add(result[0, part.rows], rows, downs[part.adapters], ups[part.adapters])
            tensors += [*kept, mask]
        ctx.parts = parts
        ctx.save_for_backward(x, *tensors)
        ctx.mark_dirty(result)
        return result

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:  # (1, N, F)
        x, *tensors = ctx.saved_tensors
        wanted = None
        if ctx.needs_input_grad[1]:
            covered = sum(part.rows.stop - part.rows.start for part in ctx.parts)
            wanted = torch.empty_like(x) if covered == x.shape[1] else torch.zeros_like(x)  # (1, N, D)
        of_downs: list[torch.Tensor] = []
        of_ups: list[torch.Tensor] = []
        for number, part in enumerate(ctx.parts):
            *kept, mask = tensors[TENSORS * number : TENSORS * (number + 1)]
            rows = x[0, part.rows] if mask is None else x[0, part.rows] * mask
            below = None if wanted is None else wanted[0, part.rows]
            gradients = part.products.gradients(upstream[0, part.rows], rows, Kept(*kept), below)
            if below is not None and mask is not None:
                below.mul_(mask)
            of_downs += gradients.downs
            of_ups += gradients.ups
        return (upstream, wanted, None, None, *of_downs, *of_ups)


def _mask(rows: torch.Tensor, part: Part, drawn: list[Drawn]) -> torch.Tensor:
    """What dropout multiplies ``rows`` (T, D) by."""
    made = torch.empty_like(rows)
    for own, (adapter, stream) in zip(made.split(part.products.sizes), drawn, strict=True):
        dropout.fill(own, adapter.dropout, stream)
    return made

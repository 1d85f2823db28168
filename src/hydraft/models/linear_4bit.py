"""4-bit linear layers whose weights ZeRO-3 can free between the forward and the backward pass.

bitsandbytes' MatMul4Bit keeps a view of the weight for its backward pass (``ctx.tensors``). DeepSpeed frees a gathered weight by
giving the parameter other data, so that the view, and with it the whole weight, would stay in memory until backward, on every rank and
with recomputation too: non-reentrant checkpointing replaces saved tensors only. Here backward reads the parameter itself, which
DeepSpeed has gathered again by then, as its own LinearFunctionForZeroStage3 does for weights that are not quantised
(deepspeed/runtime/zero/linear.py).

Shapes: I features in, O features out.
"""

from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch.autograd.function import FunctionCtx, once_differentiable


class _Frozen4bit(torch.autograd.Function):
    """A frozen 4-bit layer: bitsandbytes' forward pass, and gradients that are bit-equal to its own."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: torch.Tensor,  # (…, I)
        bias: torch.Tensor | None,  # (O,): the layer's own, passed for its gradient
        layer: "ShardedLinear4bit",
    ) -> torch.Tensor:
        ctx.layer = layer  # type: ignore[attr-defined]
        ctx.dtype = x.dtype  # type: ignore[attr-defined]
        return Linear4bit.forward(layer, x)  # type: ignore[no-any-return]  # (…, O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        weight = ctx.layer.weight
        gradient = upstream.to(ctx.layer.compute_dtype or ctx.dtype)
        of_x = of_bias = None
        if ctx.needs_input_grad[1]:
            of_bias = gradient.sum(0, dtype=gradient.dtype)  # autograd sums the remaining leading dimensions
        if ctx.needs_input_grad[0]:
            assert weight.numel(), "the weight has not been gathered for its backward pass"
            whole = dequantize_4bit(weight.data.view(-1, 1), weight.quant_state)  # (O, I)
            of_x = torch.matmul(gradient, whole.to(gradient.dtype)).to(ctx.dtype)
        return of_x, of_bias, None


class ShardedLinear4bit(Linear4bit):  # type: ignore[misc]
    """bitsandbytes' Linear4bit without a view of its weight saved for the backward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, I) to (…, O)."""
        if self.bias is not None and self.bias.dtype != (self.compute_dtype or x.dtype):
            self.bias.data = self.bias.data.to(
                self.compute_dtype or x.dtype
            )  # as in bitsandbytes, before autograd records it
        passed: torch.Tensor = _Frozen4bit.apply(x, self.bias, self)  # type: ignore[no-untyped-call]
        return passed


def make_weights_releasable(model: torch.nn.Module) -> None:
    """Replace every 4-bit layer of ``model`` by one whose gathered weight ZeRO-3 can free."""
    for module in model.modules():
        if type(module) is Linear4bit:
            module.__class__ = ShardedLinear4bit

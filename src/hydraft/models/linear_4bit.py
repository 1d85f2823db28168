"""4-bit linear layers whose weights ZeRO-3 can shard with their constants, and free between the forward and the backward pass.

bitsandbytes' MatMul4Bit keeps a view of the weight for its backward pass (``ctx.tensors``). DeepSpeed frees a gathered weight by
giving the parameter other data, so that the view, and with it the whole weight, would stay in memory until backward, on every rank and
with recomputation too: non-reentrant checkpointing replaces saved tensors only. Here backward reads the parameter itself, which
DeepSpeed has gathered again by then, as its own LinearFunctionForZeroStage3 does for weights that are not quantised
(deepspeed/runtime/zero/linear.py).

bitsandbytes keeps the constants of a weight beside the parameter, where ZeRO-3 does not shard them: with an fp32 scale for each 64 numbers
they have an eighth of the size of the codes. Here they are in the parameter, behind the codes (``nf4.Payload``).

Shapes: I features in, O features out.
"""

from typing import Any

import torch
from bitsandbytes import matmul_4bit
from bitsandbytes.functional import QuantState, dequantize_4bit, int8_vectorwise_dequant
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft.tuners.lora import dora
from peft.utils.integrations import dequantize_module_weight
from torch.autograd.function import FunctionCtx, once_differentiable

from hydraft.models.nf4 import Payload


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
        codes, state = layer.gathered()
        out = matmul_4bit(x.to(layer.compute_dtype or x.dtype), codes, bias=bias, quant_state=state)
        return out.to(x.dtype)  # type: ignore[no-any-return]  # (…, O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        gradient = upstream.to(ctx.layer.compute_dtype or ctx.dtype)
        of_x = of_bias = None
        if ctx.needs_input_grad[1]:
            of_bias = gradient.sum(0, dtype=gradient.dtype)  # autograd sums the remaining leading dimensions
        if ctx.needs_input_grad[0]:
            whole = dequantize_4bit(*ctx.layer.gathered())  # (O, I)
            of_x = torch.matmul(gradient, whole.to(gradient.dtype)).to(ctx.dtype)
        return of_x, of_bias, None


class ShardedLinear4bit(Linear4bit):  # type: ignore[misc]
    """bitsandbytes' Linear4bit with its constants in its parameter, and without a view of that saved for the backward pass."""

    payload: Payload
    constants: QuantState
    """What is not in the parameter: shape, type and tables."""

    def gathered(self) -> tuple[torch.Tensor, QuantState]:
        """Codes (O * I / 2, 1) and constants, as views of the parameter that DeepSpeed has gathered."""
        assert self.weight.numel(), "the weight has not been gathered"
        return self.payload.unpacked(self.weight.data, self.constants)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, I) to (…, O)."""
        if self.bias is not None and self.bias.dtype != (self.compute_dtype or x.dtype):
            self.bias.data = self.bias.data.to(
                self.compute_dtype or x.dtype
            )  # as in bitsandbytes, before autograd records it
        passed: torch.Tensor = _Frozen4bit.apply(x, self.bias, self)  # type: ignore[no-untyped-call]
        return passed


def kept_constants(constants: QuantState) -> QuantState:
    """What of ``constants`` is not in a payload: shape, type and tables."""
    nested = constants.state2 and QuantState(None, code=constants.state2.code, dtype=constants.state2.dtype)
    kept = {name: getattr(constants, name) for name in ("shape", "code", "blocksize", "quant_type", "dtype", "offset")}
    return QuantState(None, state2=nested, **kept)


def hold(layer: Linear4bit, payload: Payload, constants: QuantState, dtype: torch.dtype) -> None:
    """Make a layer one whose parameter is ``payload``; ``dtype``: in which it is stored and computed with."""
    layer.__class__ = ShardedLinear4bit
    layer.payload, layer.constants = payload, kept_constants(constants)
    layer.quant_state = None
    layer.quant_storage = layer.compute_dtype = dtype
    layer.compute_type_is_set = True


def dequantised(layer: Any) -> torch.Tensor:
    """The weight (O, I) that a layer computes with.

    peft's ``dequantize_module_weight`` knows no gathered constants, and on a CPU it makes a new 8-bit weight, which has no scales.
    """
    if isinstance(layer, ShardedLinear4bit):
        return dequantize_4bit(*layer.gathered())  # type: ignore[no-any-return]
    if isinstance(layer, Linear8bitLt):
        scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
        return int8_vectorwise_dequant(layer.weight.data, scales)  # type: ignore[no-any-return]
    weight: torch.Tensor = dequantize_module_weight(layer)
    return weight


dora.dequantize_module_weight = dequantised  # DoRA's layer reads the weight beside the layer that has it

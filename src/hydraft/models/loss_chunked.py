"""The loss of a causal model computed in chunks of trained tokens, without the logits of all of them.

Each chunk's gradient of the hidden states is computed with its loss, so its logits are freed before those of the next chunk are
allocated, and none are computed twice. torch's own ``linear_cross_entropy`` (2.13) does the same, but sums in the type of its input: a
loss in bf16 is off by up to 3 %, and fp16's loss scale overflows (``tests/integration/models/test_loss_chunked.py`` compares both,
and fails when torch's becomes accurate enough to replace this). Here logits are cast to fp32 as in transformers, and the sum is
in fp32.

Shapes: L trained tokens, C of a chunk, H hidden, V vocabulary; B rows, T tokens of a row.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from hydraft.data.labels import IGNORE
from hydraft.models import loss


def chunks(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Parts of ``loss.ROWS`` rows at most, of equal size: a short last one would read the whole head too."""
    count = -(-len(tensors[0]) // loss.ROWS) or 1
    return zip(*(tensor.chunk(count) for tensor in tensors), strict=True)


class _Summed(torch.autograd.Function):
    """Cross-entropy summed over tokens, in nats, with a gradient for the hidden states only."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: torch.Tensor,  # (L, H)
        weight: torch.Tensor,  # (V, H)
        targets: torch.Tensor,  # (L,)
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        for rows, into, target in chunks(hidden, gradient, targets[:, None]):
            logits = (rows @ weight.T).float()  # (C, V)
            probabilities = torch.log_softmax(logits, -1)
            del logits
            total -= probabilities.gather(1, target).sum()
            probabilities.exp_().scatter_add_(1, target, probabilities.new_full(target.shape, -1.0))
            torch.mm(probabilities.to(weight.dtype), weight, out=into)
            del probabilities  # before the next chunk's is allocated
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (
            (gradient.float() * upstream).to(gradient.dtype),
            None,
            None,
        )  # the loss scale may exceed the range of fp16


def summed_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of ``hidden @ weight.T`` against ``targets``, summed, in fp32; ``weight`` gets no gradient.

    Args:
        hidden: (L, H), in the type of ``weight``.
        weight: (V, H).
        targets: (L,), none of them ignored.
    """
    summed: torch.Tensor = _Summed.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return summed


def use_chunked_loss(model: PreTrainedModel) -> None:
    """Patch ``model`` to return its loss without logits in training with labels; other calls are unchanged.

    The head is called once, as a module: ZeRO-3 gathers its weight around the call.
    """
    head = model.lm_head
    assert type(head) is torch.nn.Linear and head.bias is None, "Family.plain_head is for such heads"
    head_forward, model_forward = head.forward, model.forward

    @functools.wraps(head_forward)
    def of_head(hidden: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        return head_forward(hidden) if targets is None else summed_loss(hidden, head.weight, targets)

    @functools.wraps(model_forward)  # keeps the signature of the model's own forward
    def forward(
        *inputs: Any,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **rest: Any,
    ) -> Any:
        kept = isinstance(logits_to_keep, torch.Tensor)
        if labels is None or not model.training or (not kept and (shift_labels is not None or logits_to_keep)):
            given = {"labels": labels, "shift_labels": shift_labels, "logits_to_keep": logits_to_keep}
            return model_forward(*inputs, **rest, **{name: value for name, value in given.items() if value is not None})
        count = rest.pop("num_items_in_batch", None)
        rest.pop("return_dict", None)
        hidden = model.model(*inputs, **rest).last_hidden_state  # (B, T, H)
        if kept:
            assert shift_labels is not None
            hidden, targets = hidden[:, logits_to_keep].flatten(0, 1), shift_labels.flatten()  # (L, H), (L,)
        else:
            following = pad(labels, (0, 1), value=IGNORE)[:, 1:]  # (B, T): the next token
            hidden, targets = hidden[following != IGNORE], following[following != IGNORE]
        summed = model.lm_head(hidden, targets)
        return CausalLMOutputWithPast(loss=summed / (len(targets) if count is None else count))

    head.forward, model.forward = of_head, forward

"""The loss of a causal model without its logits: the head sees some trained tokens at a time.

Each chunk's gradient of the hidden states is computed with its loss, so that its logits are gone before the next one's come, and
none are computed twice. torch's own ``linear_cross_entropy`` (2.13) does so too, but sums in the type of its input: a loss in bf16
is off by up to 3 %, and fp16's loss scale overflows (``tests/integration/models/test_loss_chunked.py`` holds both against it, so that it tells when
torch's will do). Here logits become fp32 as they do in transformers, and the sum is in fp32.

Shapes: L trained tokens, C of a chunk, H hidden, V vocabulary; B rows, T tokens of a row.
"""

import functools
from typing import Any

import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from hydraft.data.labels import IGNORE
from hydraft.models import loss


class _Summed(torch.autograd.Function):
    """Cross-entropy summed over tokens, in nats; the gradient is that of the hidden states alone."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: torch.Tensor,  # (L, H)
        weight: torch.Tensor,  # (V, H)
        targets: torch.Tensor,  # (L,)
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        # Of like size: a last one of few rows would read all of the head too.
        chunks = -(-len(hidden) // loss.ROWS) or 1
        parts = zip(hidden.chunk(chunks), gradient.chunk(chunks), targets[:, None].chunk(chunks), strict=True)
        for rows, into, target in parts:
            logits = (rows @ weight.T).float()  # (C, V)
            probabilities = torch.log_softmax(logits, -1)
            del logits
            total -= probabilities.gather(1, target).sum()
            probabilities.exp_().scatter_add_(1, target, probabilities.new_full(target.shape, -1.0))
            torch.mm(probabilities.to(weight.dtype), weight, out=into)
            del probabilities  # else it would be there beside the next chunk's
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient.float() * upstream).to(gradient.dtype), None, None  # the scale itself may be beyond fp16


def summed_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of ``hidden @ weight.T`` against ``targets``, summed, in fp32; ``weight`` gets no gradient.

    Args:
        hidden: (L, H), in the type of ``weight``.
        weight: (V, H).
        targets: (L,), none of them ignored.
    """
    summed: torch.Tensor = _Summed.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return summed


def take_loss_in_chunks(model: PreTrainedModel) -> None:
    """Let ``model``, when it is trained with labels, give its loss and no logits. All else it does as before.

    The head is called once, as a module: ZeRO-3 gathers its weight around that.
    """
    head = model.lm_head
    assert type(head) is torch.nn.Linear and head.bias is None, "Family.plain_head is for such heads"
    plain, whole = head.forward, model.forward

    @functools.wraps(plain)
    def of_head(hidden: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        return plain(hidden) if targets is None else summed_loss(hidden, head.weight, targets)

    @functools.wraps(whole)  # who asks what it accepts is told what the model's own does
    def forward(
        *inputs: Any,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **rest: Any,
    ) -> Any:
        kept = isinstance(logits_to_keep, torch.Tensor)
        if labels is None or not model.training or (not kept and (shift_labels is not None or logits_to_keep)):
            said = {"labels": labels, "shift_labels": shift_labels, "logits_to_keep": logits_to_keep}
            return whole(*inputs, **rest, **{name: value for name, value in said.items() if value is not None})
        count = rest.pop("num_items_in_batch", None)
        rest.pop("return_dict", None)
        hidden = model.model(*inputs, **rest).last_hidden_state  # (B, T, H)
        if kept:
            assert shift_labels is not None
            hidden, targets = hidden[:, logits_to_keep].flatten(0, 1), shift_labels.flatten()  # (L, H), (L,)
        else:
            following = pad(labels, (0, 1), value=IGNORE)[:, 1:]  # (B, T): what comes next
            hidden, targets = hidden[following != IGNORE], following[following != IGNORE]
        summed = model.lm_head(hidden, targets)
        return CausalLMOutputWithPast(loss=summed / (len(targets) if count is None else count))

    head.forward, model.forward = of_head, forward

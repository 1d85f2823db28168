"""Log-probabilities of the trained tokens of a batch, with a gradient, from the logits of at most ``loss.ROWS`` tokens at a time.

The loss of a preference objective depends on the log-probabilities of whole answers, so the gradient of a token is known only after
all of them. Each chunk's gradient of the hidden states is therefore computed with its log-probabilities and kept, (L, H), instead of
its logits, (L, V); the backward pass multiplies its rows. So no logits are computed twice.

All is computed inside one call of the head: ZeRO-3 gathers the head's weight around it.

Shapes: B rows, T tokens of a row, D documents (B rows of a padded batch), L trained tokens, C of a chunk, H hidden, V vocabulary.
"""

from typing import Any, NamedTuple

import peft
import torch
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import pad

from hydraft.data.labels import IGNORE
from hydraft.models.families.registry import has_plain_head
from hydraft.models.loss_chunked import chunks
from hydraft.models.loss_scored import replaced_forward

NOT_INPUTS = ("labels", "shift_labels")
"""Of a collated batch, what is no argument of a forward pass without a loss."""


class TokenLogProbs(NamedTuple):
    """Log-probabilities of the trained tokens of a batch, in the order of its rows."""

    values: torch.Tensor  # (L,), fp32 (fp64 of a model in fp64)
    documents: torch.Tensor  # (L,)
    """The document of each."""
    length: int
    """D."""

    def summed(self) -> torch.Tensor:
        """The sum of each document, (D,), in fp64: sums of thousands of tokens are compared with each other."""
        zeros = torch.zeros(self.length, dtype=torch.float64, device=self.values.device)
        return zeros.index_add(0, self.documents, self.values.double())

    def tokens(self) -> torch.Tensor:
        """Trained tokens of each document, (D,)."""
        return torch.bincount(self.documents, minlength=self.length)


class _OfTokens(torch.autograd.Function):
    """Log-probabilities of tokens, with a gradient for the hidden states only."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: torch.Tensor,  # (L, H)
        weight: torch.Tensor,  # (V, H)
        targets: torch.Tensor,  # (L,)
    ) -> torch.Tensor:
        found = torch.empty(len(targets), dtype=_precise(hidden[:0]).dtype, device=hidden.device)
        gradient = torch.empty_like(hidden)
        for rows, into, value, target in chunks(hidden, gradient, found, targets[:, None]):
            log_p = torch.log_softmax(_precise(rows @ weight.T), -1)  # (C, V)
            value.copy_(log_p.gather(1, target)[:, 0])
            # d log p(t) / d hidden = weight[t] - sum over v of p(v) weight[v]
            difference = log_p.exp_().neg_().scatter_add_(1, target, log_p.new_ones(target.shape))
            torch.mm(difference.to(weight.dtype), weight, out=into)
            del log_p, difference  # before the next chunk's are allocated
        ctx.save_for_backward(gradient)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (_precise(gradient) * upstream[:, None]).to(gradient.dtype), None, None


def of_hidden(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of ``targets`` under ``softmax(hidden @ weight.T)``, (L,), in fp32 or fp64; ``weight`` gets no gradient.

    Args:
        hidden: (L, H), in the type of ``weight``.
        weight: (V, H).
        targets: (L,).
    """
    if torch.is_grad_enabled() and hidden.requires_grad:
        found: torch.Tensor = _OfTokens.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
        return found
    parts = [
        torch.log_softmax(_precise(rows @ weight.T), -1).gather(1, target)[:, 0]
        for rows, target in chunks(hidden, targets[:, None])
    ]
    return torch.cat(parts)


def _precise(values: torch.Tensor) -> torch.Tensor:
    """``values`` in fp32, or in fp64 if they are."""
    return values if values.dtype is torch.float64 else values.float()


def token_log_probs(model: Any, batch: dict[str, Any], chunked: bool) -> TokenLogProbs:
    """The log-probabilities of the trained tokens of a collated batch, from one forward pass.

    Args:
        model: with or without an adapter and an engine.
        batch: of ``Padded`` or ``PaddingFree`` (``data/batch.py``), on the model's device.
        chunked: whether the head is a frozen linear layer without a bias, so that chunks of logits are enough.
    """
    inner: Any = getattr(model, "module", model)
    inner = inner.get_base_model() if isinstance(inner, peft.PeftModel) else inner
    inputs = {name: value for name, value in batch.items() if name not in NOT_INPUTS}
    if "logits_to_keep" in batch:
        kept, targets, ends = batch["logits_to_keep"], batch["shift_labels"], batch["cu_seq_lens_q"]
        place: Any = (torch.zeros_like(kept), torch.arange(len(kept), device=kept.device))
        documents, count = torch.bucketize(kept, ends[1:].to(kept), right=True), len(ends) - 1
    else:
        following = pad(batch["labels"], (0, 1), value=IGNORE)[:, 1:]  # (B, T): the next token
        place = (following != IGNORE).nonzero(as_tuple=True)
        targets, documents, count = following[place], place[0], len(following)
    if not has_plain_head(inner.config.model_type):
        logits = model(**inputs).logits  # (B, T or L, V)
        log_p = torch.log_softmax(_precise(logits[place]), -1)  # (L, V)
        return TokenLogProbs(log_p.gather(1, targets[:, None])[:, 0], documents, count)
    head: torch.nn.Module = inner.get_output_embeddings()
    original = head.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:  # (B, T or L, H)
        rows = hidden[place]  # (L, H)
        if chunked:
            return of_hidden(rows, head.weight, targets)[None, :, None]  # type: ignore[arg-type]
        return torch.log_softmax(_precise(original(rows)), -1).gather(1, targets[:, None])[None]

    with replaced_forward(head, forward):
        found = model(**inputs).logits  # (1, L, 1)
    return TokenLogProbs(found[0, :, 0], documents, count)

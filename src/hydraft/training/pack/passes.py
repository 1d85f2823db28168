"""One pass over the micro-batches of several members: each gets its own loss and the gradients of its own adapter.

The documents of all micro-batches are in one row, one member's after another's; attention keeps documents apart as it does in a
micro-batch of a run alone (``models/attention.py``), and the base's layers add each member's update to its own rows
(``linear.py``). A member's loss depends on its own rows and adapter only, so the gradient of the sum of all losses has each
member's own gradient in its own weights.

Shapes: N tokens of the row, L positions whose logits are needed, H hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from hydraft.models.loss_chunked import summed_loss
from hydraft.training.pack.adapter import ADAPTER
from hydraft.training.pack.linear import Pass, Share


class Separate(Exception):
    """A micro-batch was not computed with others: its member computes it by itself."""


@dataclass
class Request:
    """A micro-batch of a member."""

    layers: dict[str, LoraLayer]
    """The member's adapter, by the name of the layer in the base."""
    batch: dict[str, Any]
    """As the collator of padding-free batches makes it, on the device, with ``num_items_in_batch``."""
    trained: list[torch.nn.Parameter]
    """The parameters whose gradients are wanted."""
    random: torch.Tensor | None
    """The state of the generator that dropout draws from, on the device; None without dropout."""
    chunked: bool
    """Whether the loss can be computed without the logits of all positions."""

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.batch["input_ids"].numel())

    @property
    def shape(self) -> tuple[Any, ...]:
        """Requests that have it in common, or all but the tokens, can share products if they are neighbours (``parts.py``)."""
        layer: Any = next(iter(self.layers.values()))
        return (*self.layers,), layer.r[ADAPTER], ADAPTER in layer.lora_variant, self.random is not None, self.tokens


@dataclass
class Answer:
    """What a pass has found for a request."""

    loss: torch.Tensor
    gradients: list[torch.Tensor | None]
    """Those of ``trained``; None for a parameter that was not used."""
    random: torch.Tensor | None
    """The state of the generator after the pass."""


def compute(base: PreTrainedModel, current: Pass, requests: list[Request]) -> list[Answer]:
    """The answers to ``requests``, from one pass.

    Args:
        base: without adapters; its layers read ``current``.
        current: is set for the pass.
        requests: one for each member.
    """
    order = sorted(range(len(requests)), key=lambda number: requests[number].shape)
    found = dict(zip(order, _compute(base, current, [requests[number] for number in order]), strict=True))
    return [found[number] for number in range(len(requests))]


def _compute(base: PreTrainedModel, current: Pass, requests: list[Request]) -> list[Answer]:
    batches = [request.batch for request in requests]
    current.begin([_share(request) for request in requests])
    try:
        row = _row(batches)
        compute_losses = _chunked if all(request.chunked for request in requests) else _whole
        losses = compute_losses(base, row, requests, current)
        trained = [parameter for request in requests for parameter in request.trained]
        gradients: list[torch.Tensor | None] = list(
            torch.autograd.grad(torch.stack(losses).sum(), trained, allow_unused=True)
        )
        states = [None if share.random is None else share.random.get_state() for share in current.shares]
    finally:
        current.begin([])
    answers = []
    for request, loss, state in zip(requests, losses, states, strict=True):
        answers.append(Answer(loss.detach(), gradients[: len(request.trained)], state))
        del gradients[: len(request.trained)]
    return answers


def _share(request: Request) -> Share:
    stream = None
    if request.random is not None:
        stream = torch.Generator(request.batch["input_ids"].device)
        stream.set_state(request.random)
    return Share(request.tokens, len(request.batch["logits_to_keep"]), request.layers, stream)


def _row(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """The inputs of the model for all micro-batches, one after another."""
    lengths = [batch["input_ids"].shape[1] for batch in batches]
    starts = [sum(lengths[:number]) for number in range(len(lengths))]
    ends = [batches[0]["cu_seq_lens_q"][:1]]
    ends += [batch["cu_seq_lens_q"][1:] + start for batch, start in zip(batches, starts, strict=True)]
    boundaries, longest = torch.cat(ends), max(batch["max_length_q"] for batch in batches)
    return {
        "input_ids": torch.cat([batch["input_ids"] for batch in batches], dim=1),  # (1, N)
        "position_ids": torch.cat([batch["position_ids"] for batch in batches], dim=1),  # (1, N)
        "logits_to_keep": torch.cat([b["logits_to_keep"] + start for b, start in zip(batches, starts, strict=True)]),
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _whole(base: PreTrainedModel, row: dict[str, Any], requests: list[Request], current: Pass) -> list[torch.Tensor]:
    """The losses from the logits of all positions that are needed, as the model's own ``forward`` computes one from them."""
    logits = base(**row).logits  # (1, L, V)
    return [
        base.loss_function(
            logits=own,
            labels=request.batch["labels"],
            vocab_size=base.config.get_text_config().vocab_size,
            shift_labels=request.batch["shift_labels"],
            num_items_in_batch=request.batch.get("num_items_in_batch"),
        )
        for request, own in zip(requests, logits.split(current.kept, dim=1), strict=True)
    ]


def _chunked(base: PreTrainedModel, row: dict[str, Any], requests: list[Request], current: Pass) -> list[torch.Tensor]:
    """The losses in chunks of trained tokens (``models/loss_chunked.py``)."""
    kept = row.pop("logits_to_keep")
    inner: Any = base
    hidden = inner.model(**row).last_hidden_state[0, kept]  # (L, H)
    found = []
    for request, own in zip(requests, hidden.split(current.kept), strict=True):
        targets, count = request.batch["shift_labels"], request.batch.get("num_items_in_batch")
        summed = summed_loss(own, inner.lm_head.weight, targets)
        found.append(summed / (len(targets) if count is None else count))
    return found

"""The loss that a model is scored by, without the logits of all tokens: those of the trained ones, ``loss.ROWS`` at a time.

A head that is called as a module is called once in a forward pass, and the chunks are taken inside of that call: ZeRO-3 gathers
its weight around it. An adapter on the head has modules of its own, which are called for each chunk; so that all ranks make the
same number of calls, a rank that has fewer chunks than another goes on with empty ones.

Shapes: B rows, T tokens of a row, L trained tokens, C of a chunk, K columns with a trained token, H hidden, V vocabulary.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import peft
import torch

from hydraft.data.labels import IGNORE
from hydraft.data.tokenize import Example
from hydraft.models import loss
from hydraft.models.families.registry import has_plain_head


def chunks_of(examples: list[Example]) -> int:
    """How many chunks the trained tokens of a batch of ``examples`` are taken in."""
    trained = sum(label != IGNORE for example in examples for label in example["labels"][1:])
    return max(1, -(-trained // loss.ROWS))


@torch.no_grad()
def summed_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor], chunks: int) -> tuple[torch.Tensor, int]:
    """Cross-entropy of a batch summed over its trained tokens, in nats, in fp64; and their number.

    Args:
        batch: what the model takes, on its device, and ``labels`` (B, T) on any.
        chunks: the most that any rank takes beside this one (``chunks_of``).
    """
    inner: Any = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    device = batch["input_ids"].device
    following = torch.nn.functional.pad(batch["labels"].cpu(), (0, 1), value=IGNORE)[:, 1:]  # (B, T): what comes next
    rows, columns = (following != IGNORE).nonzero(as_tuple=True)  # (L,) each, on the CPU: no wait for the device
    targets = following[rows, columns].to(device)  # (L,)
    if has_plain_head(inner.config.model_type):
        found = _in_the_head(model, inner, inputs, rows, columns, targets, chunks)
    else:
        found = _of_logits(model, inner, inputs, rows, columns, targets)
    return found, len(targets)


def _in_the_head(
    model: Any,
    inner: Any,
    inputs: dict[str, torch.Tensor],
    rows: torch.Tensor,
    columns: torch.Tensor,
    targets: torch.Tensor,
    chunks: int,
) -> torch.Tensor:
    """Of a head whose output is the logits and nothing else (``Family.plain_head``): it gives none to the model."""
    head: torch.nn.Module = inner.get_output_embeddings()
    plain: Callable[[torch.Tensor], torch.Tensor] = head.forward
    found: list[torch.Tensor] = []

    def forward(hidden: torch.Tensor) -> torch.Tensor:  # (B, T, H)
        kept = hidden[rows.to(hidden.device), columns.to(hidden.device)]  # (L, H)
        found.append(_summed(plain, kept, targets, chunks))
        return hidden.new_empty(*hidden.shape[:-1], 0)

    with _calling(head, forward):
        model(**inputs)
    assert len(found) == 1 or not len(targets), f"{type(inner).__name__} called its head {len(found)} times in a pass"
    return found[0] if found else torch.zeros((), dtype=torch.float64, device=targets.device)


def _of_logits(
    model: Any,
    inner: Any,
    inputs: dict[str, torch.Tensor],
    rows: torch.Tensor,
    columns: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """Of any other model: it computes the logits of columns with a trained token, or of all where it cannot choose."""
    choice: dict[str, torch.Tensor] = {}
    if "logits_to_keep" in inspect.signature(inner.forward).parameters:
        kept, columns = columns.unique(return_inverse=True)  # (K,), and where each trained token is among them
        choice = {"logits_to_keep": kept.to(targets.device)}
    logits = model(**inputs, **choice).logits  # (B, K or T, V)
    places = torch.stack([rows, columns], 1).to(logits.device)  # (L, 2)
    return _summed(lambda some: logits[some[:, 0], some[:, 1]], places, targets, 1)


def _summed(
    logits_of: Callable[[torch.Tensor], torch.Tensor], items: torch.Tensor, targets: torch.Tensor, chunks: int
) -> torch.Tensor:
    """The loss of ``targets`` (L,), summed; ``logits_of`` some of ``items`` (L, …) are (C, V)."""
    own = -(-len(items) // loss.ROWS) or 1  # of like size, and the same however many ranks there are
    total = torch.zeros((), dtype=torch.float64, device=targets.device)
    for some, target in zip(items.chunk(own), targets.chunk(own), strict=True):
        logits = logits_of(some).float()  # (C, V)
        total += torch.nn.functional.cross_entropy(logits, target, reduction="sum")
        del logits  # else it would be there beside the next chunk's
    for _ in range(chunks - own):
        logits_of(items[:0])
    return total


@contextmanager
def _calling(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let ``module`` do ``forward`` when it is called, its hooks apart."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own

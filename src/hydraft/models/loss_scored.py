"""The evaluation loss, computed from the logits of at most ``loss.ROWS`` trained tokens at a time.

The head is called once per forward pass, and the chunks are computed inside that call: ZeRO-3 gathers the head's weight around
it. An adapter on the head has its own modules, which are called for each chunk. All ranks must make the same number of calls, so
a rank with fewer chunks than another adds empty ones.

Shapes: B rows, T tokens of a row, L trained tokens, C of a chunk, K columns with a trained token, H hidden, V vocabulary.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import peft
import torch

from hydraft.data.labels import IGNORE
from hydraft.data.tokenize import Example
from hydraft.models import loss
from hydraft.models.families.registry import has_plain_head


def chunks_of(examples: list[Example]) -> int:
    """The number of chunks for the trained tokens of a batch of ``examples``."""
    trained = sum(label != IGNORE for example in examples for label in example["labels"][1:])
    return max(1, -(-trained // loss.ROWS))


class Losses(NamedTuple):
    """Cross-entropy of a batch, in nats and fp64."""

    total: torch.Tensor
    """Summed over all trained tokens."""
    tokens: int
    """Trained tokens."""
    of_rows: torch.Tensor  # (B,)
    """Summed over the trained tokens of each row."""
    tokens_of_rows: torch.Tensor  # (B,), on the CPU
    """Trained tokens of each row."""


def summed_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor], chunks: int) -> tuple[torch.Tensor, int]:
    """``total`` and ``tokens`` of ``losses``."""
    found = losses(model, batch, chunks)
    return found.total, found.tokens


@torch.no_grad()
def losses(model: torch.nn.Module, batch: dict[str, torch.Tensor], chunks: int) -> Losses:
    """Cross-entropy summed over the trained tokens of a batch and of each of its rows.

    Args:
        batch: the model's inputs, on its device, and ``labels`` (B, T) on any device.
        chunks: the largest ``chunks_of`` of all ranks for this forward pass.
    """
    inner: Any = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    device = batch["input_ids"].device
    following = torch.nn.functional.pad(batch["labels"].cpu(), (0, 1), value=IGNORE)[:, 1:]  # (B, T): the next token
    rows, columns = (following != IGNORE).nonzero(as_tuple=True)  # on the CPU, without waiting for the device
    sums = torch.zeros(len(following), dtype=torch.float64, device=device)
    trained = _Trained(rows, columns, following[rows, columns].to(device), rows.to(device), sums)
    if has_plain_head(inner.config.model_type):
        found = _at_head(model, inner, inputs, trained, chunks)
    else:
        found = _from_logits(model, inner, inputs, trained)
    return Losses(found, len(trained.targets), sums, (following != IGNORE).sum(1))


class _Trained(NamedTuple):
    """The trained tokens of a batch."""

    rows: torch.Tensor  # (L,), on the CPU
    columns: torch.Tensor  # (L,), on the CPU
    targets: torch.Tensor  # (L,), on the device
    row_of: torch.Tensor  # (L,), ``rows`` on the device
    sums: torch.Tensor  # (B,), to which the loss of each row is added


def _at_head(model: Any, inner: Any, inputs: dict[str, torch.Tensor], trained: _Trained, chunks: int) -> torch.Tensor:
    """The loss of a model whose logits are only the head's output: computed in the head, which returns no logits."""
    head: torch.nn.Module = inner.get_output_embeddings()
    original: Callable[[torch.Tensor], torch.Tensor] = head.forward
    found: list[torch.Tensor] = []

    def forward(hidden: torch.Tensor) -> torch.Tensor:  # (B, T, H)
        kept = hidden[trained.rows.to(hidden.device), trained.columns.to(hidden.device)]  # (L, H)
        found.append(_summed(original, kept, trained, chunks))
        return hidden.new_empty(*hidden.shape[:-1], 0)

    with replaced_forward(head, forward):
        model(**inputs)
    calls, name = len(found), type(inner).__name__
    assert calls == 1 or not len(trained.targets), f"{name} called its head {calls} times in a forward pass"
    return found[0] if found else torch.zeros((), dtype=torch.float64, device=trained.targets.device)


def _from_logits(model: Any, inner: Any, inputs: dict[str, torch.Tensor], trained: _Trained) -> torch.Tensor:
    """The loss of any other model: from the logits of columns with a trained token, or of all if it cannot select them."""
    columns, choice = trained.columns, {}
    if "logits_to_keep" in inspect.signature(inner.forward).parameters:
        kept, columns = columns.unique(return_inverse=True)  # (K,), and the index of each trained token among them
        choice = {"logits_to_keep": kept.to(trained.targets.device)}
    logits = model(**inputs, **choice).logits  # (B, K or T, V)
    indices = torch.stack([trained.rows, columns], 1).to(logits.device)  # (L, 2)
    return _summed(lambda some: logits[some[:, 0], some[:, 1]], indices, trained, 1)


def _summed(
    logits_of: Callable[[torch.Tensor], torch.Tensor], items: torch.Tensor, trained: _Trained, chunks: int
) -> torch.Tensor:
    """The summed loss of all trained tokens; ``logits_of`` maps a chunk of ``items`` (L, …) to its logits (C, V)."""
    own = -(-len(items) // loss.ROWS) or 1  # chunks of equal size, the same for any number of ranks
    total = torch.zeros((), dtype=torch.float64, device=trained.targets.device)
    chunked = (part.chunk(own) for part in (items, trained.targets, trained.row_of))
    for some, target, row in zip(*chunked, strict=True):
        log_p = torch.nn.functional.log_softmax(logits_of(some).float(), -1)  # (C, V)
        total += torch.nn.functional.nll_loss(log_p, target, reduction="sum")
        each = torch.nn.functional.nll_loss(log_p, target, reduction="none")  # (C,)
        del log_p  # before the next chunk's are allocated
        trained.sums.index_add_(0, row.to(each.device), each.double())
    for _ in range(chunks - own):
        logits_of(items[:0])
    return total


@contextmanager
def replaced_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the ``forward`` of ``module``, but not its hooks, for a block."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own

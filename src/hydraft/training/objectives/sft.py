"""Supervised fine-tuning: cross-entropy of the answers' tokens, given everything before them. No torch at module level."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hydraft.config.choices import Format
from hydraft.config.data import DataConfig
from hydraft.config.objective import ObjectiveConfig
from hydraft.config.schema import Config, KernelsConfig
from hydraft.data.formats import conversation_of
from hydraft.data.labels import IGNORE
from hydraft.data.records import Record
from hydraft.training.objectives.base import Batch, Loss

if TYPE_CHECKING:
    import torch

    from hydraft.data.encoding import Encoding
    from hydraft.data.examples import Item
    from hydraft.evaluation.evaluator import Measured


class SupervisedFineTuning:
    """The loss of the models in transformers: the mean over all trained tokens of an optimizer step."""

    measures = ("loss",)
    trained: tuple[str, ...] = ()

    def __init__(self, config: ObjectiveConfig) -> None:
        """Takes no settings."""

    def uninformed(self, vocabulary: int) -> float:
        """That of guessing among all tokens."""
        return math.log(vocabulary)

    def check(self, config: Config) -> None:
        """Every config that passes ``config/rules.py`` can be trained."""

    def read(self, values: dict[str, Any], form: Format, place: str, number: int) -> Record:
        """A conversation, or plain text."""
        return conversation_of(values, form, place, number)

    @property
    def encoding(self) -> Encoding:
        """One example for each conversation, in most chat templates."""
        from hydraft.data.encoding import SFT

        return SFT

    def prepare(self, model: torch.nn.Module, chunked: bool) -> None:
        """The model computes the loss itself."""

    def collator(self, data: DataConfig, kernels: KernelsConfig, pad_id: int) -> Callable[[list[Item]], Batch]:
        """The collator of ``data.batching``."""
        from hydraft.data.batch import collator

        return collator(data, pad_id, kernels.kind)

    def count(self, batch: Batch) -> torch.Tensor:
        """The trained tokens."""
        labels = batch["shift_labels"] if "shift_labels" in batch else batch["labels"][..., 1:]
        return labels.ne(IGNORE).sum()  # type: ignore[no-any-return]

    def begin_step(self, model: torch.nn.Module, batches: list[Batch], device: torch.device) -> None:
        """Nothing spans micro-batches."""

    def loss(self, model: torch.nn.Module, batch: Batch, count: torch.Tensor | None) -> Loss:
        """As the model computes it."""
        outputs = model(**batch) if count is None else model(**batch, num_items_in_batch=count)
        return Loss(outputs["loss"])

    def measure(self, model: torch.nn.Module, batch: Batch, peers: list[list[Item]]) -> Measured:
        """The summed cross-entropy of the trained tokens, and their number."""
        from hydraft.evaluation.evaluator import Measured
        from hydraft.models import loss_scored

        chunks = max(loss_scored.chunks_of([example for item in items for example in item]) for items in peers)
        found = loss_scored.losses(model, batch, chunks)
        return Measured([found.total], found.tokens, found.of_rows, found.tokens_of_rows)

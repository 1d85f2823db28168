"""What a training objective provides. No torch at module level: a command reads records before torch is imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from hydraft.config.choices import Format
from hydraft.config.data import DataConfig
from hydraft.config.schema import Config, KernelsConfig
from hydraft.data.records import Record

if TYPE_CHECKING:
    import torch

    from hydraft.data.encoding import Encoding
    from hydraft.data.examples import Item
    from hydraft.evaluation.evaluator import Measured

Batch = dict[str, Any]
"""What a collator returns: tensors by name."""


@dataclass(frozen=True)
class Loss:
    """The loss of a micro-batch."""

    value: torch.Tensor
    """A scalar, with a gradient."""
    sums: torch.Tensor | None = None  # (measures, 2)
    """Of each measure of ``Objective.trained``: its sum over the micro-batch, and what its mean is taken over."""


class Objective(Protocol):
    """How a run is trained: its records, examples, batches, loss and scores. Made from the section ``ObjectiveConfig``."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the values that ``measure`` computes; the first one is ``loss``."""

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the values besides the loss that are logged in training."""

    def uninformed(self, vocabulary: int) -> float:
        """The loss of a model that has learned nothing, by which divergence is detected. ``vocabulary``: tokens."""

    def check(self, config: Config) -> None:
        """Raise ``ConfigError`` if a run with this config cannot be trained with this objective."""

    def read(self, values: dict[str, Any], form: Format, place: str, number: int) -> Record:
        """Make a record from an object in a source; ``place`` names it in messages.

        Raises:
            ConfigError: it is not a record of this objective.
        """

    @property
    def encoding(self) -> Encoding:
        """``read``, and how a record is encoded as examples."""

    def prepare(self, model: torch.nn.Module, chunked: bool) -> None:
        """Called once with the loaded model, before there is an optimizer.

        Args:
            chunked: whether logits are computed in chunks of trained tokens (``models/loss.py``).
        """

    def collator(self, data: DataConfig, kernels: KernelsConfig, pad_id: int) -> Callable[[list[Item]], Batch]:
        """What makes a micro-batch of items."""

    def count(self, batch: Batch) -> torch.Tensor:
        """How many elements of a micro-batch the loss is averaged over, such as its trained tokens."""

    def begin_step(self, model: torch.nn.Module, batches: list[Batch], device: torch.device) -> None:
        """Called with this rank's micro-batches of an optimizer step, still in main memory, before the first ``loss``.

        All ranks have as many, so this may make forward passes and reduce over ranks.
        """

    def loss(self, model: torch.nn.Module, batch: Batch, count: torch.Tensor | None) -> Loss:
        """The loss of a micro-batch.

        Args:
            count: the sum of ``count`` over all micro-batches and ranks of the optimizer step, by which the summed loss is divided.
                None if the model does not support that; the loss is then the mean over the micro-batch.
        """

    def measure(self, model: torch.nn.Module, batch: Batch, peers: list[list[Item]]) -> Measured:
        """Measure a held-out batch: the sums of ``measures``, what their means are taken over, and the part of each item.

        Args:
            batch: padded tensors of shape (B, T), labels on the CPU and the others on the model's device.
            peers: the items of the batches that all ranks evaluate at the same time, this one among them.
        """

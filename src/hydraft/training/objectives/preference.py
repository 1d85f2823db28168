"""What preference objectives share: the batches of answers, their log-probabilities, rewards and scores. No torch at module level.

A row of a micro-batch has chosen and rejected answers as documents of their own, in turn. The prompt before an answer is not trained.
The reference is the model before training (without an adapter that is the base; with ``lora.start``, the adapter as it was). Its
log-probabilities of all answers are computed once (``training/reference.py``), so no second model is held.

Shapes: P pairs (or judged answers) of a micro-batch, D documents, L trained tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from hydraft.config.choices import Format, Kernels
from hydraft.config.data import DataConfig
from hydraft.config.objective import ObjectiveConfig
from hydraft.config.schema import Config, KernelsConfig
from hydraft.data.records import Record
from hydraft.errors import ConfigError
from hydraft.training.objectives.base import Batch, Loss

if TYPE_CHECKING:
    import torch

    from hydraft.data.encoding import Encoding
    from hydraft.data.examples import Item
    from hydraft.evaluation.evaluator import Measured

INDEX = "index"
"""Of a batch: the document of each row in the reference's log-probabilities, (D,); -1 for a filler."""


TIE = 1e-3
"""Nats: log-probabilities of an answer that are this close are equal. Sums of a hundred tokens in fp32 are exact to 1e-4."""


@dataclass(frozen=True)
class Answers:
    """The answers on one side of P pairs."""

    log_probs: torch.Tensor  # (P,), fp64
    """Summed over the tokens of each answer."""
    tokens: torch.Tensor  # (P,)
    """Trained tokens of each answer."""
    reference: torch.Tensor | None  # (P,), fp64
    """``log_probs`` of the reference; None for an objective without one."""

    @property
    def ratio(self) -> torch.Tensor:  # (P,)
        """The log of the ratio of the model's probability to the reference's."""
        assert self.reference is not None
        return self.log_probs - self.reference

    def per_token(self, sums: torch.Tensor) -> torch.Tensor:  # (P,)
        """``sums`` over answers as means over their tokens."""
        return sums / self.tokens.clamp(min=1)


class PreferenceObjective(ABC):
    """An objective whose records have answers that are better and worse."""

    trained: ClassVar[tuple[str, ...]]
    measures: ClassVar[tuple[str, ...]]

    def __init__(self, config: ObjectiveConfig) -> None:
        self.config = config
        self.chunked = False
        self.reference: torch.Tensor | None = None
        """The reference's log-probability of each document, (documents,), in fp64; set before the first step."""

    @property
    @abstractmethod
    def encoding(self) -> Encoding:
        """How a record is encoded."""

    @abstractmethod
    def uninformed(self, vocabulary: int) -> float:
        """The loss without a preference."""

    @abstractmethod
    def read(self, values: dict[str, Any], form: Format, place: str, number: int) -> Record:
        """A record of this objective."""

    @property
    def needs_reference(self) -> bool:
        """Whether ``reference`` must be set."""
        return self.config.requirements.reference

    def check(self, config: Config) -> None:
        """Raise ``ConfigError`` if the kernels compute their own loss."""
        if config.kernels.kind is Kernels.unsloth:
            raise ConfigError(
                f"objective={self.config.kind.value}: the models of kernels=unsloth compute the loss of sft themselves: use kernels=torch"
            )

    def prepare(self, model: torch.nn.Module, chunked: bool) -> None:
        """There is no second model."""
        self.chunked = chunked

    def collator(self, data: DataConfig, kernels: KernelsConfig, pad_id: int) -> Callable[[list[Item]], Batch]:
        """The collator of ``data.batching``."""
        from hydraft.data.batch import collator

        return collator(data, pad_id, kernels.kind)

    def documents(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The sums of log-probabilities of the documents of a batch, their trained tokens, and ``INDEX``; each (D,)."""
        import torch

        from hydraft.data.examples import BESIDE
        from hydraft.models.log_probs import token_log_probs

        inputs = {name: value for name, value in batch.items() if name not in BESIDE}
        found = token_log_probs(model, inputs, self.chunked)
        index = batch.get(INDEX)  # held-out answers without a reference have none
        index = torch.arange(found.length) if index is None else index
        return found.summed(), found.tokens(), index.to(found.values.device)

    def referred(self, index: torch.Tensor) -> torch.Tensor | None:
        """The reference's log-probabilities of documents, (D,); any value for a filler."""
        if not self.needs_reference:
            return None
        assert self.reference is not None, "ReferenceCallback sets it"
        return self.reference.to(index.device)[index]


class PairObjective(PreferenceObjective):
    """An objective over pairs of a chosen and a rejected answer to the same prompt. Losses are means over pairs.

    ``reward_accuracy`` is the share of pairs whose chosen answer has the larger reward (before training, none has: 50 %), and
    ``preference_accuracy`` that of pairs whose chosen answer is more likely under the model itself.
    """

    trained: ClassVar[tuple[str, ...]] = (
        "chosen_reward",
        "rejected_reward",
        "margin",
        "reward_accuracy",
        "preference_accuracy",
    )
    measures: ClassVar[tuple[str, ...]] = ("loss", *trained)

    @abstractmethod
    def losses(self, chosen: Answers, rejected: Answers) -> torch.Tensor:  # (P,)
        """The loss of each pair, without the cross-entropy of ``objective.sft_weight``."""

    def rewards(self, answers: Answers) -> torch.Tensor:  # (P,)
        """The implicit reward of each answer: beta times the log ratio to the reference."""
        return self.config.beta * answers.ratio

    def likelihood(self, answers: Answers) -> torch.Tensor:  # (P,)
        """The log-probability of each answer, by which the model prefers one."""
        return answers.log_probs

    @property
    def encoding(self) -> Encoding:
        """Two examples for each record."""
        from hydraft.data.encoding import PAIRS

        return PAIRS

    def read(self, values: dict[str, Any], form: Format, place: str, number: int) -> Record:
        """A prompt with a chosen and a rejected answer."""
        from hydraft.data.preferences import read_pair

        return read_pair(values, form, place, number)

    def begin_step(self, model: torch.nn.Module, batches: list[Batch], device: torch.device) -> None:
        """Nothing of a pair depends on other pairs."""

    def uninformed(self, vocabulary: int) -> float:
        """The loss of two answers that are equal to the model, and no likelier than guessing."""
        import torch

        sums, tokens = torch.tensor([-math.log(vocabulary)], dtype=torch.float64), torch.tensor([1])
        same = Answers(sums, tokens, sums)
        return float(self.losses(same, same)) + self.config.sft_weight * math.log(vocabulary)

    def count(self, batch: Batch) -> torch.Tensor:
        """The pairs, without fillers."""
        return (batch[INDEX][0::2] >= 0).sum()  # type: ignore[no-any-return]

    def loss(self, model: torch.nn.Module, batch: Batch, count: torch.Tensor | None) -> Loss:
        """The mean loss of the pairs."""
        import torch

        kept, losses, scores = self._of_pairs(model, batch)
        total = torch.where(kept, losses, 0.0).sum()
        return Loss(total / (self.count(batch) if count is None else count), sums(scores, kept))

    def measure(self, model: torch.nn.Module, batch: Batch, peers: list[list[Item]]) -> Measured:
        """The summed losses, rewards, margins, and pairs in the right order."""
        from hydraft.evaluation.evaluator import Measured

        kept, losses, scores = self._of_pairs(model, batch)
        return Measured([losses.sum(), *sums(scores, kept)[:, 0]], len(losses), losses, kept)

    def _of_pairs(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Which pairs are no fillers, (P,), their losses, and the values of ``trained``; each (P,)."""
        log_probs, tokens, index = self.documents(model, batch)
        reference = self.referred(index)
        chosen, rejected = (
            Answers(log_probs[side::2], tokens[side::2], None if reference is None else reference[side::2])
            for side in (0, 1)
        )
        losses = self.losses(chosen, rejected)
        if self.config.sft_weight:
            losses = losses - self.config.sft_weight * chosen.per_token(chosen.log_probs)
        good, bad = (self.rewards(side).detach() for side in (chosen, rejected))
        likelier = above(self.likelihood(chosen).detach() - self.likelihood(rejected).detach())
        scores = [good, bad, good - bad, above((good - bad) / self.config.beta), likelier]
        return index[0::2] >= 0, losses, scores


def above(difference: torch.Tensor) -> torch.Tensor:
    """1 for a difference above 0, 1/2 for one that rounding explains, such as that of a model from its own reference, and 0 below."""
    return (difference > TIE).double() + (difference.abs() <= TIE).double() / 2


def to(value: Any, device: torch.device) -> Any:
    """A part of a batch on ``device``, if it is a tensor."""
    return value.to(device) if hasattr(value, "to") else value


def sums(scores: list[torch.Tensor], kept: torch.Tensor) -> torch.Tensor:
    """Of each of ``scores`` (P,), its sum over the ``kept`` ones (P,) and their number, (scores, 2)."""
    import torch

    count = kept.sum().double()
    return torch.stack([torch.stack([torch.where(kept, value.double(), 0.0).sum(), count]) for value in scores])

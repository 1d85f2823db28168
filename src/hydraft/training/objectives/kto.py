"""Kahneman-Tversky optimization (KTO; Ethayarajh et al. 2024, arXiv:2402.01306). No torch at module level."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from hydraft.config.choices import Format
from hydraft.config.data import DataConfig
from hydraft.config.objective import ObjectiveConfig
from hydraft.config.schema import KernelsConfig
from hydraft.data.records import Record
from hydraft.training.objectives.base import Batch, Loss
from hydraft.training.objectives.preference import INDEX, Answers, PreferenceObjective, above, sums, to

if TYPE_CHECKING:
    import torch

    from hydraft.data.encoding import Encoding
    from hydraft.data.examples import Item
    from hydraft.evaluation.evaluator import Measured

DESIRABLE, OTHERS = "desirable", "others"
"""Of a batch: whether each answer is good, (D,), and the batch of the answers to other prompts."""


class KahnemanTverskyOptimization(PreferenceObjective):
    """``w_D (1 - sigmoid(beta (h - z)))`` of a good answer and ``w_U (1 - sigmoid(beta (z - h)))`` of a bad one (equations 7 and 8).

    ``h = log p - log r`` of the answer, for the model p and the reference r. ``z`` estimates the divergence of p from r: the mean of
    ``h`` over answers of other prompts, at least 0, without a gradient: each prompt is followed by the answer of the record before
    it. The mean is over the whole optimizer step (TRL: over a micro-batch), so it depends neither on the number of ranks nor on
    accumulation.
    """

    measures: ClassVar[tuple[str, ...]] = ("loss", "reward_accuracy")
    trained: ClassVar[tuple[str, ...]] = ("chosen_reward", "rejected_reward", "reward_accuracy", "kl")

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__(config)
        self.divergence = 0.0
        """``z`` of the current optimizer step."""

    @property
    def encoding(self) -> Encoding:
        """One example for each record."""
        from hydraft.data.encoding import JUDGED

        return JUDGED

    def read(self, values: dict[str, Any], form: Format, place: str, number: int) -> Record:
        """A conversation, and whether its last answer is good."""
        from hydraft.data.preferences import read_judged

        return read_judged(values, form, place, number)

    def collator(self, data: DataConfig, kernels: KernelsConfig, pad_id: int) -> Callable[[list[Item]], Batch]:
        """The collator of ``data.batching`` for the answers, and again for those of other prompts."""
        collate = super().collator(data, kernels, pad_id)

        def both(items: list[Item]) -> Batch:
            own, others = ([item[side::2] for item in items] for side in (0, 1))
            return {**collate(own), OTHERS: collate(others)}

        return both

    def uninformed(self, vocabulary: int) -> float:
        """The loss of answers that are as likely as to the reference."""
        return max(self.config.desirable_weight, self.config.undesirable_weight) / 2

    def count(self, batch: Batch) -> torch.Tensor:
        """The answers, without fillers."""
        return (batch[INDEX] >= 0).sum()  # type: ignore[no-any-return]

    def begin_step(self, model: torch.nn.Module, batches: list[Batch], device: torch.device) -> None:
        """Estimate the divergence from the reference over the optimizer step."""
        was_training = model.training
        model.eval()
        others = ({name: to(value, device) for name, value in batch[OTHERS].items()} for batch in batches)
        self.divergence = self.estimate(model, others)
        model.train(was_training)

    def estimate(self, model: torch.nn.Module, others: Iterable[Batch]) -> float:
        """``z`` from batches of answers to other prompts; the same on all ranks, if there are several."""
        import torch
        import torch.distributed as dist

        with torch.no_grad():
            total = torch.stack([self._divergence(model, batch) for batch in others]).sum(0)
        if dist.is_initialized():
            dist.all_reduce(total)
        return _at_least_0(total)

    def _divergence(self, model: torch.nn.Module, others: Batch) -> torch.Tensor:
        """The sum of log ratios, and their number, (2,)."""
        import torch

        log_probs, _, index = self.documents(model, others)
        reference, kept = self.referred(index), index >= 0
        assert reference is not None
        return torch.stack([torch.where(kept, log_probs - reference, 0.0).sum(), kept.sum().double()])

    def loss(self, model: torch.nn.Module, batch: Batch, count: torch.Tensor | None) -> Loss:
        """The mean loss of the answers."""
        import torch

        good = batch[DESIRABLE]
        own = {name: value for name, value in batch.items() if name != OTHERS}
        log_probs, tokens, index = self.documents(model, own)
        answers, kept = Answers(log_probs, tokens, self.referred(index)), index >= 0
        losses, scores = self._of_answers(answers, good, self.divergence)
        total = torch.where(kept, losses, 0.0).sum()
        return Loss(total / (self.count(batch) if count is None else count), self._sums(scores, good, kept))

    def measure(self, model: torch.nn.Module, batch: Batch, peers: list[list[Item]]) -> Measured:
        """The summed losses, and the answers whose reward has the right sign. The divergence is that of this batch."""
        import torch

        from hydraft.evaluation.evaluator import Measured

        good = batch[DESIRABLE][0::2]
        log_probs, tokens, index = self.documents(model, batch)
        reference = self.referred(index)
        assert reference is not None
        others = torch.stack([(log_probs - reference)[1::2].sum(), torch.tensor(float(len(good))).to(log_probs)])
        answers = Answers(log_probs[0::2], tokens[0::2], reference[0::2])
        losses, scores = self._of_answers(answers, good.to(log_probs.device), _at_least_0(others))
        kept = torch.ones_like(good)
        return Measured([losses.sum(), scores[1].sum()], len(good), losses, kept)

    def _of_answers(self, answers: Answers, good: torch.Tensor, z: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The loss of each answer, (P,), its reward, and whether that has the right sign (0: half)."""
        import torch

        config, ratio = self.config, answers.ratio
        desired = config.desirable_weight * (1 - torch.sigmoid(config.beta * (ratio - z)))
        undesired = config.undesirable_weight * (1 - torch.sigmoid(config.beta * (z - ratio)))
        reward = config.beta * ratio.detach()
        right = above(torch.where(good, ratio, -ratio).detach())
        return torch.where(good, desired, undesired), [reward, right]

    def _sums(self, scores: list[torch.Tensor], good: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """The sums of ``trained`` and their numbers, (measures, 2)."""
        import torch

        reward, right = scores
        parts = [sums([reward], kept & good), sums([reward], kept & ~good), sums([right], kept)]
        return torch.cat([*parts, sums([torch.full_like(reward, self.divergence)], kept)])


def _at_least_0(total: torch.Tensor) -> float:
    """The mean of a sum and a number, (2,); 0 for none, and for less."""
    return max(0.0, float(total[0]) / max(1.0, float(total[1])))

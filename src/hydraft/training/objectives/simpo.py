"""Simple preference optimization (SimPO; Meng et al. 2024, arXiv:2405.14734). No torch at module level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydraft.training.objectives.preference import Answers, PairObjective

if TYPE_CHECKING:
    import torch


class SimplePreferenceOptimization(PairObjective):
    """``-log sigmoid(reward(w) - reward(l) - gamma)`` with ``reward = beta log p / tokens`` (equation 6). There is no reference."""

    def losses(self, chosen: Answers, rejected: Answers) -> torch.Tensor:
        """The loss of each pair, (P,)."""
        from torch.nn.functional import logsigmoid

        return -logsigmoid(self.rewards(chosen) - self.rewards(rejected) - self.config.gamma)

    def rewards(self, answers: Answers) -> torch.Tensor:
        """Beta times the mean log-probability of a token, (P,)."""
        return self.config.beta * answers.per_token(answers.log_probs)

    def likelihood(self, answers: Answers) -> torch.Tensor:
        """The mean log-probability of a token, (P,)."""
        return answers.per_token(answers.log_probs)

"""Odds ratio preference optimization (ORPO; Hong et al. 2024, arXiv:2403.07691). No torch at module level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydraft.training.objectives.preference import Answers, PairObjective

if TYPE_CHECKING:
    import torch


class OddsRatioPreferenceOptimization(PairObjective):
    """``-beta log sigmoid(log odds(w) - log odds(l))`` beside the cross-entropy of the chosen answer w (equations 6 and 7, lambda = beta).

    ``odds = p / (1 - p)``, with log p the mean over the tokens of an answer. There is no reference.
    """

    def losses(self, chosen: Answers, rejected: Answers) -> torch.Tensor:
        """The loss of each pair, (P,)."""
        import torch
        from torch.nn.functional import logsigmoid

        # Of an answer with probability 1 the odds would be infinite.
        good, bad = (side.per_token(side.log_probs).clamp(max=-1e-12) for side in (chosen, rejected))
        log_odds = good - bad - (torch.log1p(-good.exp()) - torch.log1p(-bad.exp()))
        return -self.config.beta * logsigmoid(log_odds)

    def rewards(self, answers: Answers) -> torch.Tensor:
        """Beta times the mean log-probability of a token, (P,)."""
        return self.config.beta * answers.per_token(answers.log_probs)

    def likelihood(self, answers: Answers) -> torch.Tensor:
        """The mean log-probability of a token, (P,)."""
        return answers.per_token(answers.log_probs)

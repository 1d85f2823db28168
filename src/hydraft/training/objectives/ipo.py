"""Identity preference optimization (IPO; Azar et al. 2023, arXiv:2310.12036). No torch at module level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydraft.training.objectives.preference import Answers, PairObjective

if TYPE_CHECKING:
    import torch


class IdentityPreferenceOptimization(PairObjective):
    """``(h - 1 / (2 beta))**2`` with ``h`` the difference of the log ratios to the reference (equation 17, with beta for tau).

    The ratios are means over the tokens of an answer, as the authors confirmed that they computed them (TRL, dpo_trainer.py).
    """

    def losses(self, chosen: Answers, rejected: Answers) -> torch.Tensor:
        """The loss of each pair, (P,)."""
        difference = chosen.per_token(chosen.ratio) - rejected.per_token(rejected.ratio)
        return (difference - 1 / (2 * self.config.beta)) ** 2

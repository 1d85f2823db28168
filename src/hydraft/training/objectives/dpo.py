"""Direct preference optimization (DPO; Rafailov et al. 2023, arXiv:2305.18290). No torch at module level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydraft.training.objectives.preference import Answers, PairObjective

if TYPE_CHECKING:
    import torch


class DirectPreferenceOptimization(PairObjective):
    """``-log sigmoid(beta ((log p(w) - log r(w)) - (log p(l) - log r(l))))`` for the chosen answer w and the rejected one l (equation 7).

    p is the model and r the reference. With ``label_smoothing`` e, a share e of the pairs is taken to be in the wrong order (conservative
    DPO, Mitchell 2023, https://ericmitchell.ai/cdpo.pdf): ``-(1 - e) log sigmoid(x) - e log sigmoid(-x)``. With ``length_normalized``,
    each log ratio is divided by the tokens of its answer (as in Tülu 3, arXiv:2411.15124, section 5.1).
    """

    def losses(self, chosen: Answers, rejected: Answers) -> torch.Tensor:
        """The loss of each pair, (P,)."""
        from torch.nn.functional import logsigmoid

        x = self.rewards(chosen) - self.rewards(rejected)
        e = self.config.label_smoothing
        return -(1 - e) * logsigmoid(x) - e * logsigmoid(-x)

    def rewards(self, answers: Answers) -> torch.Tensor:
        """Beta times the log ratio, (P,)."""
        ratio = answers.per_token(answers.ratio) if self.config.length_normalized else answers.ratio
        return self.config.beta * ratio

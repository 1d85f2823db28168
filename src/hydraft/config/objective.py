"""The objective section of the schema: what a run is trained on, and what the plan must count for it. No torch here."""

from dataclasses import dataclass, fields
from enum import Enum

from hydraft.config.bounds import setting


class ObjectiveKind(Enum):
    sft = "sft"
    dpo = "dpo"
    ipo = "ipo"
    orpo = "orpo"
    simpo = "simpo"
    kto = "kto"


@dataclass(frozen=True)
class Requirements:
    """What an objective needs beyond supervised fine-tuning, and the settings that it reads."""

    sequences: int = 1
    """Sequences that a record has in a batch: 2 for a preference pair. ``plan/`` counts them."""
    reference: bool = False
    """Whether the log-probabilities of the model before training are needed. They are computed once, so there is no second model."""
    settings: tuple[str, ...] = ()
    """The settings of this section that it reads, besides ``kind``."""


REQUIREMENTS = {
    ObjectiveKind.sft: Requirements(),
    ObjectiveKind.dpo: Requirements(2, True, ("beta", "label_smoothing", "length_normalized", "sft_weight")),
    ObjectiveKind.ipo: Requirements(2, True, ("beta", "sft_weight")),
    ObjectiveKind.orpo: Requirements(2, False, ("beta", "sft_weight")),
    ObjectiveKind.simpo: Requirements(2, False, ("beta", "gamma", "sft_weight")),
    ObjectiveKind.kto: Requirements(1, True, ("beta", "desirable_weight", "undesirable_weight")),
}


@dataclass
class ObjectiveConfig:
    """The training objective."""

    kind: ObjectiveKind = ObjectiveKind.sft
    """What is trained: ``sft`` (supervised fine-tuning) is the cross-entropy of the answers; ``dpo``, ``ipo``, ``orpo`` and ``simpo`` train on
    pairs of a chosen and a rejected answer, ``kto`` on answers that are good or bad."""
    beta: float = setting(0.1, above=0)
    """Scale of the rewards: a large one keeps the model close to the reference. With ``orpo``, the weight of the odds ratio (lambda in the
    paper)."""
    label_smoothing: float = setting(0.0, at_least=0, below=0.5)
    """``dpo``: share of the pairs whose order is taken to be wrong (conservative DPO)."""
    length_normalized: bool = False
    """``dpo``: compare log-probabilities per token instead of summed over the answer."""
    gamma: float = setting(0.0, at_least=0)
    """``simpo``: the margin by which the reward of the chosen answer is to be larger."""
    sft_weight: float = setting(0.0, at_least=0)
    """Weight of the cross-entropy of the chosen answer, which is added to the loss of a pair."""
    desirable_weight: float = setting(1.0, above=0)
    """``kto``: weight of good answers."""
    undesirable_weight: float = setting(1.0, above=0)
    """``kto``: weight of bad answers."""

    @property
    def requirements(self) -> Requirements:
        """What the plan must count."""
        return REQUIREMENTS[self.kind]

    @property
    def described(self) -> str:
        """The objective and the settings that it reads, in one line."""
        return ", ".join([self.kind.value, *(f"{name} {getattr(self, name)}" for name in self.requirements.settings)])

    @property
    def unread(self) -> list[str]:
        """Settings that were given and that this objective does not read."""
        read = ("kind", *self.requirements.settings)
        return [one.name for one in fields(self) if one.name not in read and getattr(self, one.name) != one.default]

    @property
    def readers(self) -> str:
        """The objectives that read the first of ``unread``."""
        return " or ".join(kind.value for kind, needed in REQUIREMENTS.items() if self.unread[0] in needed.settings)

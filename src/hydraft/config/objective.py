"""The objective section of the schema: what a run is trained on, and what the plan must count for it. No torch here."""

from dataclasses import dataclass
from enum import Enum


class ObjectiveKind(Enum):
    sft = "sft"


@dataclass(frozen=True)
class Requirements:
    """What an objective needs beyond supervised fine-tuning; ``plan/`` counts it."""

    sequences: int = 1
    """Sequences that a record has in a batch: 2 for a preference pair."""
    reference_model: bool = False
    """Whether the model before training computes log-probabilities too. With an adapter it is the base, which is there already;
    in full fine-tuning it is a frozen copy."""


REQUIREMENTS = {ObjectiveKind.sft: Requirements()}


@dataclass
class ObjectiveConfig:
    """The training objective."""

    kind: ObjectiveKind = ObjectiveKind.sft
    """What is trained: ``sft`` (supervised fine-tuning) is the cross-entropy of the answers."""

    @property
    def requirements(self) -> Requirements:
        """What the plan must count."""
        return REQUIREMENTS[self.kind]

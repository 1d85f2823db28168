"""The objectives by their kind. No torch at module level."""

from collections.abc import Callable

from hydraft.config.objective import ObjectiveConfig, ObjectiveKind
from hydraft.training.objectives.base import Objective
from hydraft.training.objectives.sft import SupervisedFineTuning

OBJECTIVES: dict[ObjectiveKind, Callable[[ObjectiveConfig], Objective]] = {
    ObjectiveKind.sft: SupervisedFineTuning,
}


def make_objective(config: ObjectiveConfig) -> Objective:
    """The objective of a run."""
    return OBJECTIVES[config.kind](config)

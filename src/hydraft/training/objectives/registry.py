"""The objectives by their kind. No torch at module level."""

from collections.abc import Callable

from hydraft.config.objective import ObjectiveConfig, ObjectiveKind
from hydraft.training.objectives.base import Objective
from hydraft.training.objectives.dpo import DirectPreferenceOptimization
from hydraft.training.objectives.ipo import IdentityPreferenceOptimization
from hydraft.training.objectives.kto import KahnemanTverskyOptimization
from hydraft.training.objectives.orpo import OddsRatioPreferenceOptimization
from hydraft.training.objectives.sft import SupervisedFineTuning
from hydraft.training.objectives.simpo import SimplePreferenceOptimization

OBJECTIVES: dict[ObjectiveKind, Callable[[ObjectiveConfig], Objective]] = {
    ObjectiveKind.sft: SupervisedFineTuning,
    ObjectiveKind.dpo: DirectPreferenceOptimization,
    ObjectiveKind.ipo: IdentityPreferenceOptimization,
    ObjectiveKind.orpo: OddsRatioPreferenceOptimization,
    ObjectiveKind.simpo: SimplePreferenceOptimization,
    ObjectiveKind.kto: KahnemanTverskyOptimization,
}


def make_objective(config: ObjectiveConfig) -> Objective:
    """The objective of a run."""
    return OBJECTIVES[config.kind](config)

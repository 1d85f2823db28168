"""What a plan knows of a run's model and records. No torch."""

from dataclasses import dataclass

from hydraft.config.choices import Precision
from hydraft.plan.parameters import Layout, Trained


@dataclass(frozen=True, eq=False)
class ModelSize:
    """The model and records of a run: what a search for settings does not change."""

    layout: Layout
    learns: Trained
    labelled: int
    """The most trained tokens of a record."""
    stored: Precision = Precision.bf16
    """The data type of the checkpoint."""

"""The dashboard of a run: wandb, TensorBoard, MLflow or SwanLab, on global rank 0 only, one run a run however many ranks.

Each gets what metrics.jsonl gets, held-out scores included, and the objective at the end; that is why the Trainer's own
callbacks for them are not used: they would have the training loss alone, and begin a second run on resume.
"""

from pathlib import Path

from hydraft.config.choices import TrackerKind
from hydraft.config.schema import Config
from hydraft.tracking.base import Tracker


def make_tracker(config: Config, folder: Path, rank: int, identity: str | None = None) -> Tracker:
    """The tracker that ``config`` asks for, on rank 0; ``identity`` is the run to go on with."""
    kind = config.tracker.kind
    if rank != 0 or kind is TrackerKind.none:
        return Tracker()
    if kind is TrackerKind.wandb:
        from hydraft.tracking.wandb import WandbTracker

        return WandbTracker(config, folder, identity)
    if kind is TrackerKind.tensorboard:
        from hydraft.tracking.tensorboard import TensorboardTracker

        return TensorboardTracker(config, folder)
    if kind is TrackerKind.mlflow:
        from hydraft.tracking.mlflow import MlflowTracker

        return MlflowTracker(config, folder, identity)
    from hydraft.tracking.swanlab import SwanlabTracker

    return SwanlabTracker(config, folder, identity)

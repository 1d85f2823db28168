"""Makes the dashboard client that ``tracker=`` selects, on global rank 0 only: one dashboard run per training run. No torch.

A tracker logs what metrics.jsonl gets, held-out scores included, and the objective at the end. The Trainer's own callbacks are
not used: they would log only the training loss, and start a second dashboard run on resume.
"""

from importlib import import_module
from pathlib import Path

from hydraft.config.choices import TrackerKind
from hydraft.config.schema import Config
from hydraft.tracking.base import Tracker

TRACKERS = {
    TrackerKind.none: "hydraft.tracking.base:Tracker",
    TrackerKind.wandb: "hydraft.tracking.wandb:WandbTracker",
    TrackerKind.tensorboard: "hydraft.tracking.tensorboard:TensorboardTracker",
    TrackerKind.mlflow: "hydraft.tracking.mlflow:MlflowTracker",
    TrackerKind.swanlab: "hydraft.tracking.swanlab:SwanlabTracker",
}
"""The class of each kind, imported when a run uses it."""


def make_tracker(
    config: Config, folder: Path, rank: int, identity: str | None = None, name: str | None = None
) -> Tracker:
    """The tracker of ``config.tracker`` on rank 0, one that logs nothing elsewhere; ``identity`` is a run to resume, ``name`` its name."""
    kind = config.tracker.kind if rank == 0 else TrackerKind.none
    module, _, kind_name = TRACKERS[kind].partition(":")
    tracker: Tracker = getattr(import_module(module), kind_name)(config, folder, identity, name)
    return tracker

"""The dashboard of a run: wandb, TensorBoard, MLflow or SwanLab, on global rank 0 only, one run a run however many ranks.

Each gets what metrics.jsonl gets, held-out scores included, and the objective at the end; that is why the Trainer's own
callbacks for them are not used: they would have the training loss alone, and begin a second run on resume.
"""

from pathlib import Path
from typing import Any

from hydraft.choices import TrackerKind
from hydraft.config import Config


class Tracker:
    """Sends metrics nowhere."""

    identity: str | None = None
    """What the dashboard calls this run, to go on with it."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Values of one step."""

    def go_on(self, lines: list[dict[str, Any]]) -> None:
        """The run was resumed; ``lines`` of metrics.jsonl were logged before."""

    def upload(self, folder: Path) -> None:
        """Keep what was trained."""

    def finish(self, summary: dict[str, Any]) -> None:
        """The run is over; ``summary`` is what tables sort by."""


def make_tracker(config: Config, folder: Path, rank: int, identity: str | None = None) -> Tracker:
    """The tracker that ``config`` asks for, on rank 0; ``identity`` is the run to go on with."""
    kind = config.tracker.kind
    if rank != 0 or kind is TrackerKind.none:
        return Tracker()
    if kind is TrackerKind.wandb:
        from hydraft.track.on_wandb import WandbTracker

        return WandbTracker(config, folder, identity)
    if kind is TrackerKind.tensorboard:
        from hydraft.track.on_tensorboard import TensorboardTracker

        return TensorboardTracker(config, folder)
    if kind is TrackerKind.mlflow:
        from hydraft.track.on_mlflow import MlflowTracker

        return MlflowTracker(config, folder, identity)
    from hydraft.track.on_swanlab import SwanlabTracker

    return SwanlabTracker(config, folder, identity)


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """What of a line of metrics.jsonl can be drawn."""
    return {name: value for name, value in line.items() if name != "step" and isinstance(value, (int, float))}

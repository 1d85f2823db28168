"""The dashboard of a run: wandb, on global rank 0 only."""

import dataclasses
import os
from enum import Enum
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

    def finish(self, summary: dict[str, Any]) -> None:
        """The run is over; ``summary`` is what tables sort by."""


class WandbTracker(Tracker):
    """One wandb run a training run, with the whole resolved config."""

    def __init__(self, config: Config, folder: Path, identity: str | None) -> None:
        import wandb

        # A prompt would hang a run that no one watches; without a key, the files are kept for `wandb sync`.
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        self.run = wandb.init(
            project=config.tracker.project,
            name=folder.name,
            dir=str(folder),
            config=plain(dataclasses.asdict(config)),
            mode=mode,  # type: ignore[arg-type]
            id=identity,
            resume="allow",
            job_type="train",
            tags=[config.model.name, config.quant.kind.value, f"zero{config.zero.stage}"],
        )
        self.identity = self.run.id
        self.offline = mode == "offline"
        self.run.define_metric("loss", summary="min")

    def log(self, values: dict[str, float], step: int) -> None:
        """Values of one step."""
        self.run.log(values, step=step)

    def go_on(self, lines: list[dict[str, Any]]) -> None:
        """Offline, each start has a file of its own; the last has every step once. Online, the server knows them."""
        for line in lines if self.offline else []:
            self.log(numbers(line), line["step"])

    def finish(self, summary: dict[str, Any]) -> None:
        """Close the run; every file is on the disk after."""
        self.run.summary.update(summary)
        self.run.finish()


def make_tracker(config: Config, folder: Path, rank: int, identity: str | None = None) -> Tracker:
    """The tracker that ``config`` asks for, on rank 0; ``identity`` is the run to go on with."""
    if rank == 0 and config.tracker.kind is TrackerKind.wandb:
        return WandbTracker(config, folder, identity)
    return Tracker()


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """What of a line of metrics.jsonl can be drawn."""
    return {name: value for name, value in line.items() if name != "step" and isinstance(value, (int, float))}


def plain(value: Any) -> Any:
    """Enums by their value, inside dicts and lists too."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value

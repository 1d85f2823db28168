"""``tracker=tensorboard``: event files in the run's folder; ``tensorboard --logdir multirun/…`` shows a whole sweep."""

import json
from pathlib import Path
from typing import Any

from hydraft.config.schema import Config
from hydraft.tracking import metadata
from hydraft.tracking.base import Tracker

FOLDER = "tensorboard"


class TensorboardTracker(Tracker):
    """One folder of events a run; a run that goes on adds a file to it."""

    def __init__(self, config: Config, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / FOLDER))
        self.settings = metadata.settings(config, folder)
        self.writer.add_text("config", f"```\n{json.dumps(self.settings, indent=2, ensure_ascii=False)}\n```", 0)

    def log(self, values: dict[str, float], step: int) -> None:
        """Values of one step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self, summary: dict[str, Any]) -> None:
        """What the table of hyperparameters compares."""
        known = {
            key: value for key, value in metadata.flat(self.settings).items() if isinstance(value, (int, float, str))
        }
        scores = {key: float(value) for key, value in summary.items() if isinstance(value, (int, float))}
        if scores:
            self.writer.add_hparams(known, scores, name=".")
        self.writer.close()

"""``tracker=tensorboard``: writes event files to the run's folder; ``tensorboard --logdir multirun/…`` shows a whole sweep."""

import json
import os
from pathlib import Path
from typing import Any

from hydraft.config.schema import Config
from hydraft.tracking import metadata
from hydraft.tracking.base import Tracker

FOLDER = "tensorboard"


class TensorboardTracker(Tracker):
    """One folder of event files per run; a resumed run adds a file to it."""

    def __init__(self, config: Config, folder: Path, identity: str | None = None, name: str | None = None) -> None:
        from tensorboardX import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder / FOLDER), filename_suffix=f".{os.getpid()}")
        self.settings = metadata.settings(config, folder)
        self.writer.add_text("config", f"```\n{json.dumps(self.settings, indent=2, ensure_ascii=False)}\n```", 0)

    def log(self, values: dict[str, float], step: int) -> None:
        """Log the metrics of one step."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def table(self, name: str, columns: list[str], rows: list[list[str]]) -> None:
        """Log the table as text in Markdown."""
        lines = [_row(columns), _row(["---"] * len(columns)), *map(_row, rows)]
        self.writer.add_text(name, "\n".join(lines), 0)

    def finish(self, summary: dict[str, Any]) -> None:
        """Log the settings and final values for the HParams table, and close the file."""
        known = {
            key: value for key, value in metadata.flat(self.settings).items() if isinstance(value, (int, float, str))
        }
        scores = {key: float(value) for key, value in summary.items() if isinstance(value, (int, float))}
        if scores:
            # add_hparams would open a second file, of the same name if both are opened within one second.
            from tensorboardX.summary import hparams

            for entry in hparams(known, scores):
                self.writer.file_writer.add_summary(entry)
            for name, value in scores.items():
                self.writer.add_scalar(name, value)
        self.writer.close()


def _row(cells: list[str]) -> str:
    """A row of a table in Markdown, in which a cell is one line without bars."""
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

"""``tracker=swanlab``: the mode is SWANLAB_MODE, else online with a key (SWANLAB_API_KEY or swanlab login) and offline without one."""

import os
from pathlib import Path
from typing import Any

from hydraft.config import printed
from hydraft.config.schema import Config
from hydraft.tracking import metadata, names
from hydraft.tracking.base import Tracker


class SwanlabTracker(Tracker):
    """One SwanLab run per training run; offline, its files are in the run's folder for ``swanlab sync``."""

    def __init__(self, config: Config, folder: Path, identity: str | None = None, name: str | None = None) -> None:
        import swanlab

        self.swanlab: Any = swanlab
        logged_in = (Path(os.environ.get("SWANLAB_SAVE_DIR") or Path.home() / ".swanlab") / ".netrc").exists()
        keyed = bool(os.environ.get("SWANLAB_API_KEY")) or logged_in
        mode: Any = os.environ.get("SWANLAB_MODE") or ("online" if keyed else "offline")
        group = metadata.group(config, folder)
        logs = folder / "swanlog"
        self.name = names.title(config, folder, name)
        logs.mkdir(exist_ok=True)
        with metadata.published_arguments():
            self.run = swanlab.init(
                project=config.tracker.project,
                name=self.name,
                description=config.tracker.notes,
                config=metadata.settings(config, folder),
                mode=mode,
                log_dir=str(logs),
                id=identity,
                resume="allow" if identity else None,
                group=group,
                job_type="train",
                tags=metadata.tags(config, group is not None),
            )
        self.identity = getattr(self.run, "id", None)
        written = sorted(logs.glob("run-*"), key=lambda run: run.stat().st_mtime)
        if mode == "offline" and written:
            self.upload_command = f"swanlab sync {printed.shell_word(printed.short_path(written[-1]))}"

    def log(self, values: dict[str, float], step: int) -> None:
        """Log the metrics of one step."""
        self.swanlab.log(values, step=step)

    def finish(self, summary: dict[str, Any]) -> None:
        """Log the final values as ``summary/…`` and finish the run."""
        scores = {f"summary/{key}": float(value) for key, value in summary.items() if isinstance(value, (int, float))}
        if scores:
            self.swanlab.log(scores)
        self.swanlab.finish()

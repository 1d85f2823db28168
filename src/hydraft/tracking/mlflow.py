"""``tracker=mlflow``: logs to the server of MLFLOW_TRACKING_URI, or to mlflow.db in the working directory (``mlflow ui``)."""

import os
from pathlib import Path
from typing import Any

from filelock import FileLock

from hydraft.config.schema import Config
from hydraft.tracking import metadata, names
from hydraft.tracking.base import Tracker

LONGEST = 500
"""The longest parameter value, in characters, that every server accepts."""


class MlflowTracker(Tracker):
    """One MLflow run per training run."""

    def __init__(self, config: Config, folder: Path, identity: str | None = None, name: str | None = None) -> None:
        import mlflow

        self.mlflow: Any = mlflow
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(f"sqlite:///{Path('mlflow.db').resolve()}")
        with FileLock("mlflow.db.lock"):  # concurrent jobs must not all create its tables
            mlflow.set_experiment(config.tracker.project)
        group = metadata.group(config, folder)
        tags = {"group": group} if group else {}
        tags |= {f"tag.{tag}": "true" for tag in metadata.tags(config, group is not None)}
        self.name = names.title(config, folder, name)
        shown = self.name if identity is None or config.tracker.name else None
        with metadata.published_arguments():
            self.run = mlflow.start_run(run_id=identity, run_name=shown, tags=tags, description=config.tracker.notes)
        self.identity = str(self.run.info.run_id)
        if identity is None:  # a parameter cannot be logged twice
            known = metadata.flat(metadata.settings(config, folder))
            mlflow.log_params({key: str(value)[:LONGEST] for key, value in known.items()})

    def log(self, values: dict[str, float], step: int) -> None:
        """Log the metrics of one step."""
        self.mlflow.log_metrics({name: float(value) for name, value in values.items()}, step=step)

    def upload(self, folder: Path) -> None:
        """Upload ``folder`` to the run's artifacts."""
        self.mlflow.log_artifacts(str(folder), artifact_path=folder.name)

    def table(self, name: str, columns: list[str], rows: list[list[str]]) -> None:
        """Log the artifact ``<name>.json``, in the form of mlflow's own tables, whose ``log_table`` needs pandas."""
        self.mlflow.log_dict({"columns": columns, "data": rows}, f"{name}.json")

    def finish(self, summary: dict[str, Any]) -> None:
        """Log the final values and end the run."""
        self.mlflow.log_metrics(
            {key: float(value) for key, value in summary.items() if isinstance(value, (int, float))}
        )
        self.mlflow.end_run()

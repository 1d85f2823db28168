"""The interface of a dashboard client. No torch."""

from pathlib import Path
from typing import Any

from hydraft.config.schema import Config


class Tracker:
    """Logs a run to a dashboard; this base class logs nothing."""

    identity: str | None = None
    """The dashboard's id of this run, with which it is resumed."""
    name: str | None = None
    """Its name there."""
    upload_command: str | None = None
    """The command that uploads an offline run later; None if there is nothing to upload."""

    def __init__(self, config: Config, folder: Path, identity: str | None = None, name: str | None = None) -> None:
        """Start a dashboard run for the run in ``folder``, or resume the one that ``identity`` and ``name`` are of."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Log the metrics of one step."""

    def resume(self, lines: list[dict[str, Any]]) -> None:
        """The run was resumed; ``lines`` of metrics.jsonl were logged before."""

    def upload(self, folder: Path) -> None:
        """Upload what was trained as an artifact."""

    def table(self, name: str, columns: list[str], rows: list[list[str]]) -> None:
        """Log a table of texts; a dashboard that has no tables logs none."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Close the dashboard run; ``summary`` holds its final values."""


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """The numeric metrics of a line of metrics.jsonl, by their names on a dashboard."""
    return {
        sectioned(name): value for name, value in line.items() if name != "step" and isinstance(value, (int, float))
    }


def sectioned(name: str) -> str:
    """``train/…`` and ``eval/…``, which dashboards show as sections; of each rank ``ranks/memory_gib 0``."""
    if name.startswith("eval_"):
        return f"eval/{name.removeprefix('eval_')}"
    if name.startswith("rank "):
        rank, _, metric = name.removeprefix("rank ").partition("/")
        return f"ranks/{metric} {rank}"
    return name if "/" in name else f"train/{name}"

"""What every dashboard implements. No torch."""

from pathlib import Path
from typing import Any


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


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """What of a line of metrics.jsonl can be drawn."""
    return {name: value for name, value in line.items() if name != "step" and isinstance(value, (int, float))}

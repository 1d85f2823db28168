"""What a checkpoint holds beside weights, optimizer and random states: the numbers in ``state.json``. No torch.

To add something to a checkpoint, add a field with a default, which is what older checkpoints are read with, and fill and restore
it in ``training/callbacks/checkpoint.py``.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hydraft.errors import ConfigError
from hydraft.system import files

FILE = "state.json"
VERSION = 1
"""Increased if a checkpoint can no longer be resumed by the versions before. Those before 1 had no number."""

KEYS = {"divergence": "health", "skipped_steps": "pass_over"}
"""Keys in the file that differ from the field's name."""


@dataclass(frozen=True)
class TrainingState:
    """The state of the training after an optimizer step. What is of one rank is here for all of them."""

    step: int
    """Optimizer steps."""
    records: str
    """The key of the encoded records in the cache."""
    epoch: float
    adam_step: int
    """The step count of Adam."""
    schedule_step: int | None = None
    """Steps of the learning rate schedule; fp16 skips those whose gradients overflow. None: as many as ``step``."""
    loss_scale: dict[str, float] = field(default_factory=dict)
    """The dynamic loss scaler of fp16."""
    loss_sums: list[float] = field(default_factory=list)
    """Of each rank: the sum of losses since the last logged step."""
    measured: list[list[float]] = field(default_factory=list)
    """Of each measure of the objective: the sum over all ranks since the last logged step, and what its mean is taken over."""
    loss_total: float = 0.0
    """The sum of losses up to the last logged step."""
    last_logged: int = 0
    """The last logged step."""
    tokens: int = 0
    """Tokens of all ranks, without padding."""
    seconds: float = 0.0
    """Time that the optimizer steps took."""
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """Scores on the held-out records, by step."""
    best_step: int | None = None
    """The step of the best evaluation whose weights are kept (``checkpoint/best_weights.py``); None if none are."""
    tracker: Any = None
    """Identifies the run on the dashboard."""
    tracker_name: str | None = None
    """The run's name there."""
    divergence: dict[str, Any] = field(default_factory=dict)
    """The losses and counts by which divergence is detected."""
    skipped_steps: list[int] = field(default_factory=list)
    """``train.pass_over`` when the checkpoint was saved."""
    version: int = VERSION

    def save(self, folder: Path) -> None:
        """Write the state to a checkpoint's folder."""
        files.write_json(folder / FILE, {KEYS.get(name, name): value for name, value in asdict(self).items()})

    @classmethod
    def load(cls, folder: Path) -> "TrainingState":
        """Read the state of a checkpoint, also one that an earlier version wrote.

        Raises:
            ConfigError: a newer version wrote it.
        """
        values: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        version = values.setdefault("version", 0)
        if version > VERSION:
            raise ConfigError(
                f"{folder}: was saved by a newer version of hydraft (its state has version {version}, and this one reads up to "
                f"{VERSION}): update hydraft"
            )
        known = {part.name: KEYS.get(part.name, part.name) for part in fields(cls)}
        return cls(**{name: values[key] for name, key in known.items() if key in values})

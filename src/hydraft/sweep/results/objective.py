"""Objectives of a sweep: which numbers of ``result.json`` they are, and whether lower or higher is better. No torch."""

import math
from typing import Any, Literal

from hydraft.config import score

LOSS = score.LOSS
"""The held-out loss after training, or the training loss without held-out records."""

COSTS = {"memory": "peak_memory_bytes", "seconds": "train_seconds"}
"""Objectives for which less is better, and their keys in result.json: peak memory of a rank in bytes, and seconds of training."""

SPEED = "tokens_per_second"


def direction(name: str) -> Literal["minimize", "maximize"]:
    """``minimize`` for losses and costs, ``maximize`` for scores and speed, as Optuna calls them."""
    return "minimize" if name in COSTS else score.direction(name)


def value(name: str, result: dict[str, Any]) -> float | None:
    """The objective ``name`` in a run's ``result.json``; None if it is missing or not finite.

    ``name`` is loss, memory, seconds, tokens_per_second, or a held-out score such as ``exact_match`` or ``rouge_l``.
    """
    if name == LOSS:
        found = result.get("objective")
    elif name in COSTS:
        found = result.get(COSTS[name])
    elif name == SPEED:
        found = result["tokens"] / result["train_seconds"] if result.get("train_seconds") else None
    else:
        found = result.get("after", {}).get(name)
    return float(found) if found is not None and math.isfinite(found) else None


def values(names: list[str], result: dict[str, Any]) -> list[float] | None:
    """The objectives ``names``; None if one is missing."""
    found = [value(name, result) for name in names]
    return None if None in found else [number for number in found if number is not None]


def shown(name: str, value: float) -> str:
    """A value of the objective ``name`` as text; memory in GiB."""
    if name == "memory":
        return f"{value / 2**30:.3f} GiB"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"

"""What a sweep compares its jobs by: numbers of a run's ``result.json``, and which way each is better. No torch."""

import math
from typing import Any, Literal

LOSS = "loss"
"""The held-out loss after training, or the training loss where nothing is held out."""

COSTS = {"memory": "peak_memory_bytes", "seconds": "train_seconds"}
"""What is better when it is less, by the key of result.json that has it: bytes of the rank that has most; seconds of training."""

SPEED = "tokens_per_second"


def direction(name: str) -> Literal["minimize", "maximize"]:
    """``minimize`` or ``maximize``, as Optuna calls them: losses and costs are to fall, scores of answers to rise."""
    return "minimize" if name == LOSS or name in COSTS else "maximize"


def value(name: str, result: dict[str, Any]) -> float | None:
    """The number that ``name`` stands for in a run's ``result.json``; None where the run has none, or it is not finite.

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
    """All of ``names``; None where one is missing."""
    found = [value(name, result) for name in names]
    return None if None in found else [number for number in found if number is not None]


def shown(name: str, value: float) -> str:
    """A number that ``name`` stands for, as a person reads it: memory in GiB."""
    if name == "memory":
        return f"{value / 2**30:.3f} GiB"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"

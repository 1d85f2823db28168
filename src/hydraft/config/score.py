"""Held-out scores: whether lower or higher is better. No torch."""

from typing import Literal

LOSS = "loss"
LOWER = (LOSS, "empty")
"""Scores of which less is better: the held-out loss, and the share of empty answers. Of all others, more is better."""


def direction(name: str) -> Literal["minimize", "maximize"]:
    """``minimize`` or ``maximize``, as Optuna calls them."""
    return "minimize" if name in LOWER else "maximize"

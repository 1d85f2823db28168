"""Held-out scores: whether lower or higher is better. No torch."""

from typing import Literal

LOSS = "loss"
LOWER = (LOSS, "empty")
"""Scores of which less is better: the held-out loss, and the share of empty answers. Of all others, more is better."""


BENCHMARK = "benchmark/"
"""Scores of benchmarks: ``benchmark/<task>``, and ``benchmark/<task>/<metric>`` for further metrics."""
LOWER_METRICS = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter")
"""Metrics of lm-evaluation-harness of which less is better."""


def direction(name: str) -> Literal["minimize", "maximize"]:
    """``minimize`` or ``maximize``, as Optuna calls them."""
    if name.startswith(BENCHMARK):
        return "minimize" if name.split("/")[2:3] and name.split("/")[2] in LOWER_METRICS else "maximize"
    return "minimize" if name in LOWER else "maximize"

"""Held-out scores: whether lower or higher is better. No torch."""

from collections.abc import Collection
from typing import Literal

LOSS = "loss"
LOWER = (LOSS, "empty")
"""Scores of which less is better: the held-out loss, and the share of empty answers. Of all others, more is better."""


OF_TASK = {"sentiment": "accuracy", "qa": "f1", "summary": "rougel", "general": "rougel"}
"""The score that a task is usually compared by, without the task's name; other tasks by the exact match of all records."""
BENCHMARK = "benchmark/"
"""Scores of benchmarks: ``benchmark/<task>``, and ``benchmark/<task>/<metric>`` for further metrics."""
LOWER_METRICS = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter")
"""Metrics of lm-evaluation-harness of which less is better."""


def direction(name: str) -> Literal["minimize", "maximize"]:
    """``minimize`` or ``maximize``, as Optuna calls them."""
    if name.startswith(BENCHMARK):
        return "minimize" if name.split("/")[2:3] and name.split("/")[2] in LOWER_METRICS else "maximize"
    return "minimize" if name in LOWER else "maximize"


def main(names: Collection[str]) -> str | None:
    """The score of the task that a run is trained for; None if it has only a loss and measures of preferences."""
    if "accuracy" in names:  # answers chosen among labels
        return "accuracy"
    own = {name.partition("_")[0]: name for name in names if name.endswith(("_exact_match", "sentiment_accuracy"))}
    if len(own) == 1:
        (task, name), *_ = own.items()
        usual = f"{task}_{OF_TASK.get(task)}"
        return usual if usual in names else "exact_match" if "exact_match" in names else name
    return "exact_match" if "exact_match" in names else None


def ordered(names: Collection[str]) -> list[str]:
    """Names of scores, the task's own first, the loss after all scores of answers; without such scores as they are."""
    first = main(names)
    if first is None:
        return list(names)
    last = [name for name in names if name == LOSS or name.endswith(("reward", "margin", "reward_accuracy"))]
    empty = [name for name in names if name == "empty"]
    return [first, *(name for name in names if name not in (first, *last, *empty)), *last, *empty]

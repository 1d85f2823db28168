"""Which evaluation is the best, and when there was none better for too long: compared with the callback of transformers."""

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import EarlyStoppingCallback

from hydraft.evaluation import standing


def stalls_of_transformers(values: list[float], greater: bool, threshold: float) -> list[int]:
    """What the callback of transformers counts after each evaluation; the best value is the last one that it counted as better."""
    callback = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=threshold)
    arguments: Any = SimpleNamespace(greater_is_better=greater)
    state: Any = SimpleNamespace(best_metric=None)
    control: Any = None
    found = []
    for value in values:
        callback.check_metric_value(arguments, state, control, value)
        if callback.early_stopping_patience_counter == 0:
            state.best_metric = value
        found.append(callback.early_stopping_patience_counter)
    return found


@pytest.mark.parametrize("name", ["loss", "exact_match"])
@pytest.mark.parametrize("threshold", [0.0, 0.125])
def test_evaluations_without_an_improvement_are_counted_as_in_transformers(name: str, threshold: float) -> None:
    for seed in range(50):
        values = [random.Random(seed * 100 + step).randrange(12) / 16 for step in range(20)]  # exact, with ties
        found = [
            standing.stall({step + 1: {name: value} for step, value in enumerate(values[:count])}, name, threshold)
            for count in range(1, 21)
        ]
        assert [one.evaluations for one in found] == stalls_of_transformers(values, name != "loss", threshold)


def test_the_best_is_the_earliest_of_equals_and_none_of_what_is_not_finite() -> None:
    missing: Any = None  # how JSON has a NaN
    scores = {
        0: {"loss": 0.1, "exact_match": 1.0}, 4: {"loss": math.nan, "exact_match": 0.5}, 8: {"loss": 2.0, "exact_match": 0.75},
        12: {"loss": 2.0, "exact_match": 0.75}, 16: {"loss": missing, "exact_match": 0.25}, 20: {"loss": 3.0},
    }  # fmt: skip
    assert standing.best(scores, "loss") == standing.best(scores, "exact_match") == 8
    assert standing.best(scores, "loss", scores) == 0  # with the evaluation before training
    assert standing.best(scores, "loss", {12, 20}) == 12
    assert standing.best(scores, "loss", {4, 16}) is None is standing.best({}, "loss")
    assert standing.stall(scores, "loss", 0) == (3, 8)
    assert standing.stall({4: {"loss": math.nan}}, "loss", 0) == (1, None)
    assert standing.best({1: {"empty": 0.5}, 2: {"empty": 0.25}}, "empty") == 2

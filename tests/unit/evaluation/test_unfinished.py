"""Thoughts that did not end within ``data.eval_max_new_tokens`` are reported once, with the setting."""

from types import SimpleNamespace
from typing import Any

from hydraft.config.train import TrainConfig
from hydraft.training.callbacks.evaluation import EvaluationCallback


def test_unfinished_thoughts_are_said_once() -> None:
    said: list[str] = []
    evaluator: Any = SimpleNamespace(
        records=[1], questions=[1] * 8, unfinished=3, sizes=SimpleNamespace(max_new_tokens=64), parts=lambda: 8,
        evaluate=lambda *_: {"loss": 1.0}, found={},
    )  # fmt: skip
    screen = SimpleNamespace(say=said.append, phase=lambda *_: None, advance=lambda _: None)
    logging: Any = SimpleNamespace(screen=screen, write=lambda *_: None, rank=0, count_tokens=lambda: 0)
    anything: Any = SimpleNamespace(end=lambda _: None)
    callback = EvaluationCallback(anything, evaluator, TrainConfig(), logging, anything, anything)
    for step in (0, 10):
        assert callback.evaluate_all("now", step) == {"loss": 1.0}
    assert said == [
        "data.eval_max_new_tokens=64: the thoughts of 3 of 8 answers did not end within it, so these count as empty: give more"
    ]

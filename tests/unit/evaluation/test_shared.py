"""The scores before training, which runs with the same base and the same records have in common."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hydraft.config.data import DataConfig
from hydraft.config.lora import VARIANTS
from hydraft.config.train import TrainConfig
from hydraft.data.records import Conversation
from hydraft.evaluation.batches import BatchSizes
from hydraft.evaluation.evaluator import Evaluated, Evaluator
from hydraft.training.callbacks.evaluation import EvaluationCallback

DATA = DataConfig(name="own", train="x.json")
SIZES = BatchSizes(4, 256, 8)
LOSS = 1.5


class Counting(Evaluator):
    """Counts its evaluations, of which each finds another loss."""

    total = 0

    def __init__(self, text: str = "床前明月光", data: DataConfig = DATA, sizes: BatchSizes = SIZES) -> None:
        objective: Any = SimpleNamespace(
            encoding=SimpleNamespace(judged=False, encode=lambda *_: [], cut=lambda *_: [], sequences=1)
        )
        tokenizer: Any = None
        super().__init__([Conversation(plain=text)], tokenizer, data, torch.device("cpu"), sizes, objective)

    def evaluate(self, model: torch.nn.Module, done: Any, loss_only: bool = False) -> dict[str, float]:
        Counting.total += 1
        self.scores, self.unfinished = {"loss": LOSS + Counting.total}, Counting.total
        return self.scores


def callback(evaluator: Evaluator, known: dict[str, Evaluated] | None) -> EvaluationCallback:
    screen = SimpleNamespace(say=lambda _: None, phase=lambda *_: None, advance=lambda _: None)
    logging: Any = SimpleNamespace(screen=screen, write=lambda *_: None, rank=0, count_tokens=lambda: 0)
    anything: Any = SimpleNamespace(end=lambda _: None, stops=lambda: False)
    made = EvaluationCallback(anything, evaluator, TrainConfig(), logging, anything, anything)
    made.known = known
    return made


def test_the_second_run_takes_what_the_first_has_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "total", 0)
    known: dict[str, Evaluated] = {}
    first, second = (callback(Counting(), known) for _ in range(2))
    assert first.evaluate_all("before training", 0) == second.evaluate_all("before training", 0) == {"loss": LOSS + 1}
    assert second.evaluator.unfinished == 1
    assert second.evaluate_all("after training", 8) == {"loss": LOSS + 2}
    assert callback(Counting(), None).evaluate_all("before training", 0) == {"loss": LOSS + 3}


@pytest.mark.parametrize(
    "other",
    [
        Counting("疑是地上霜"),
        Counting(data=replace(DATA, max_length=99)),
        Counting(data=replace(DATA, eval_max_new_tokens=3)),
        Counting(sizes=replace(SIZES, micro_batch_size=2)),
    ],
    ids=["records", "length", "answers", "batch"],
)
def test_another_evaluation_has_its_own_scores(other: Evaluator) -> None:
    assert Counting().key(False) == Counting().key(False)
    assert len({Counting().key(False), Counting().key(True), other.key(False)}) == 3


def test_only_adapters_that_begin_as_the_base_share_them() -> None:
    exact = {method.value for method, variant in VARIANTS.items() if variant.starts_as_base}
    assert exact == {"lora", "rslora", "eva", "lora_fa", "vera"}

"""Loading, training and evaluation have separate peaks, read from CUDA's counter at the right moments."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from bench.equivalence import train
from bench.memory import finished
from conftest import config_of, run_script
from hydraft.training.callbacks.evaluation import EvaluationCallback
from hydraft.training.memory_peaks import MemoryPeaks


class Counter:
    """A simulation of CUDA's counter: currently allocated bytes, and the peak since the last reset."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def take(self, most: int, then: int) -> None:
        """As many at once for a while, and ``then`` left."""
        self.most, self.now = max(self.most, most), then

    def reset(self) -> None:
        self.most = self.now


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter()
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: counter.most)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", counter.reset)
    return counter


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Nothing:
    """Accepts every call, without effect."""

    number = 0

    @property
    def screen(self) -> "Nothing":
        return self

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class Records:
    """An evaluator that takes a given number of bytes."""

    def __init__(self, card: Counter, takes: list[int]) -> None:
        self.card, self.takes, self.records = card, takes, [None]
        self.unfinished, self.note, self.found = 0, None, {}

    def parts(self, loss_only: bool = False) -> int:
        return 1

    def evaluate(self, *_: Any) -> dict[str, float]:
        self.card.take(self.takes.pop(0), self.card.now)
        return {"loss": 1.0}


def test_each_phase_has_its_own_peak(card: Counter, alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks, nothing = MemoryPeaks(torch.device("cpu")), Nothing()
    peaks.device = torch.device("cuda")  # nothing is put there before ``result``
    settings, held_out = config_of("train.eval_every=2").train, Records(card, [900, 1200, 700])
    anything: Any = nothing
    callback = EvaluationCallback(anything, held_out, settings, anything, anything, peaks)  # type: ignore[arg-type]
    evaluate = lambda self, state, control: self._evaluate(state.global_step, True)  # noqa: E731
    monkeypatch.setattr(EvaluationCallback, "_during_training", evaluate)
    card.take(2000, 300)  # loading
    callback.on_train_begin(anything, TrainerState(global_step=0, max_steps=4), TrainerControl())
    card.take(600, 400)  # a step, whose optimizer state stays
    card.take(650, 400)
    callback.on_step_end(anything, TrainerState(global_step=2, max_steps=4), TrainerControl())
    card.take(640, 400)
    peaks.end("training")
    callback.evaluate_all("after training", 4)
    assert peaks.bytes == {"loading": 2000, "training": 650, "scoring": 1200}
    peaks.device = torch.device("cpu")
    found = peaks.result()
    assert found["peak_memory_bytes"] > 1 << 20 and found["peak_memory_scoring_bytes"] == 1200  # type: ignore[operator]


def test_main_memory_has_no_separate_peaks(records: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = run_script(
        "train.py", f"data.train={records}", f"data.eval={records}", "data.eval_limit=2", "data.eval_max_new_tokens=2",
        "train.max_steps=1", f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert result["peak_memory_bytes"] > 1 << 27
    assert result["peak_memory_scoring_bytes"] is result["peak_memory_loading_bytes"] is None
    assert "resident memory a rank" in done.stderr + done.stdout
    assert finished(folder, "tiny").startswith("| tiny (resident at its end) |")


def test_peaks_are_compared_with_the_plan_of_their_phase(tmp_path: Path) -> None:
    plan = {
        "gpu_memory": 1 << 34,
        "cost": {
            "memory": {
                moment: {"weights": size << 20, "overhead": 99}
                for moment, size in (("loading", 10), ("training", 30), ("scoring", 20))
            }
        },
    }
    result = {
        "peak_memory_bytes": 30 << 20,
        "peak_memory_scoring_bytes": 25 << 20,
        "peak_memory_loading_bytes": 8 << 20,
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert finished(tmp_path, "run").splitlines() == [
        "| run, loading | 10 | 8 | +25% |",
        "| run, training | 30 | 30 | +0% |",
        "| run, scoring | 20 | 25 | -20% |",
    ]
    result["peak_memory_scoring_bytes"] = None  # type: ignore[assignment]
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert len(finished(tmp_path, "run").splitlines()) == 2


@pytest.mark.gpu
def test_a_gpu_has_separate_peaks_of_training_and_evaluation(records: Path, tmp_path: Path) -> None:
    run = [
        f"data.train={records}", f"data.eval={records}", "data.eval_limit=4", "data.eval_max_new_tokens=4", "train.max_steps=2",
        "train.log_every=1",
    ]  # fmt: skip
    train(run, tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert all(result[f"peak_memory_{name}bytes"] > 0 for name in ("", "scoring_", "loading_"))
    assert len(finished(tmp_path / "run", "run").splitlines()) == 3

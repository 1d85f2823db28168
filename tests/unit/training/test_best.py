"""When a run ends early and which weights it keeps, for sequences of scores; a resumed run decides as one that was not interrupted."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from transformers import TrainerControl, TrainerState

from conftest import config_of
from hydraft.checkpoint import best_weights, manifest
from hydraft.checkpoint.training_state import TrainingState
from hydraft.config.choices import Keep
from hydraft.config.schema import Config
from hydraft.data.records import ask
from hydraft.errors import ConfigError
from hydraft.training.callbacks.best import BestEvaluation, check
from hydraft.training.callbacks.early_stop import EarlyStopCallback
from hydraft.training.callbacks.pause import PauseCallback


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/.store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Said(list[str]):
    """A screen that keeps its lines."""

    say = list.append


class Simulated:
    """A run whose evaluation after each step has a given loss."""

    def __init__(self, folder: Path, state: TrainingState | None = None, **settings: Any) -> None:
        self.said = Said()
        self.scores = {int(step): found for step, found in ({} if state is None else state.scores).items()}
        train = dataclasses.replace(config_of().train, **settings)
        logging: Any = SimpleNamespace(file=folder / "metrics.jsonl", screen=self.said)
        self.best = BestEvaluation(train, logging, self.scores)
        self.best.write = self._write
        self.best.begin(state)

    def _write(self, target: Path, more: Any) -> None:
        target.mkdir(parents=True, exist_ok=True)
        (target / "adapter_model.safetensors").write_text(target.name)
        more(target)
        manifest.seal(target)

    def train(self, losses: list[float]) -> int:
        """Train up to the end of the losses, or to an early end; returns the step."""
        begin = max(self.scores, default=0)
        for step, loss in enumerate(losses[begin:], begin + 1):
            if self.best.is_over:
                break
            self.scores[step] = {"loss": loss}
            self.best.evaluated(step)
        return max(self.scores)

    def state(self) -> TrainingState:
        """Of a checkpoint."""
        step = max(self.scores)
        found = {str(step): scores for step, scores in self.scores.items()}
        return TrainingState(step, "", 0.0, step, scores=found, best_step=self.best.kept)


LOSSES = [5.0, 4.0, 4.5, 3.9, 3.95, 3.9, 4.1, 3.0]


@pytest.mark.parametrize(
    ("patience", "min_delta", "ended", "kept"),
    [(1, 0.0, 3, 2), (2, 0.0, 6, 4), (3, 0.0, 7, 4), (4, 0.0, 8, 8), (2, 0.2, 4, 4), (None, 0.0, 8, 8)],
)
def test_a_run_ends_when_it_stands_still_wherever_it_was_interrupted(
    patience: int | None, min_delta: float, ended: int, kept: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"patience": patience, "min_delta": min_delta, "keep": Keep.best}
    whole = Simulated(tmp_path / "whole", **settings)
    assert whole.train(LOSSES) == ended and whole.best.kept == kept and whole.said == []
    for cut in range(1, ended):
        folder = tmp_path / f"cut-{cut}"
        first = Simulated(folder, **settings)
        first.train(LOSSES[:cut])
        state = first.state()
        checkpoint = folder / "checkpoints" / f"step-{cut:06d}"
        checkpoint.mkdir(parents=True)
        state.save(checkpoint)
        first.train(LOSSES[: cut + 2])  # and was killed after this checkpoint
        resumed = Simulated(folder, TrainingState.load(checkpoint), **settings)
        assert resumed.train(LOSSES) == ended and resumed.best.kept == kept and resumed.said == []
        assert resumed.best.result(ended, 8) == whole.best.result(ended, 8)
        best_weights.install(folder, kept, folder / "adapter")
        assert (folder / "adapter/adapter_model.safetensors").read_text() == f"step-{kept:06d}"


def test_what_is_said_of_an_early_end(tmp_path: Path) -> None:
    run = Simulated(tmp_path, patience=2)
    assert run.train(LOSSES) == 6
    assert run.best.result(6, 8) == {"ended_early": {"step": 6, "of": 8, "patience": 2, "best_step": 4}}
    assert run.best.result(6, 6) == {}  # the last step all the same
    assert run.best.why_over(6, 8) == (
        "train.patience=2: 2 evaluations without a better loss since step 4 (3.9): the training ends at step 6 of 8"
    )
    assert not (tmp_path / "best").exists()


def test_weights_that_are_lost_are_named_and_later_ones_are_compared_without_them(tmp_path: Path) -> None:
    first = Simulated(tmp_path, keep=Keep.best)
    first.train(LOSSES[:2])
    state = first.state()
    (best_weights.folder_of(tmp_path, 2) / "adapter_model.safetensors").write_text("?")
    resumed = Simulated(tmp_path, state, keep=Keep.best)
    assert "weights of step 2, the best so far, are not there (adapter_model.safetensors was changed" in resumed.said[0]
    resumed.train(LOSSES[:3])
    assert resumed.best.kept == 3
    last = Simulated(tmp_path, dataclasses.replace(resumed.state(), best_step=None), keep=Keep.last)
    assert last.said == [] and last.best.kept is None  # a run that keeps none misses none


def test_a_score_that_the_records_do_not_have_is_refused() -> None:
    records = [dataclasses.replace(ask("1+1=?"), task="qa")]

    def checked(best_by: str, **more: Any) -> None:
        config: Config = config_of(f"train.best_by={best_by}")
        check(dataclasses.replace(config, train=dataclasses.replace(config.train, **more)), records, ("loss", "margin"))

    for name in ("loss", "margin", "exact_match", "qa_f1"):
        checked(name)
    with pytest.raises(ConfigError, match=r"train\.best_by=rouge: .*: use one of loss, margin, exact_match, empty, "):
        checked("rouge")
    with pytest.raises(ConfigError, match=r"train\.best_by=qa_f1: .*: use one of loss, margin$"):
        checked("qa_f1", eval_loss_only=True)


def test_a_run_that_ends_early_at_a_rung_is_complete() -> None:
    early: EarlyStopCallback = object.__new__(EarlyStopCallback)
    early.number = 0
    control, arguments = TrainerControl(should_training_stop=True), None
    PauseCallback(4, early).on_step_end(arguments, TrainerState(global_step=4, max_steps=8), control)  # type: ignore[arg-type]
    assert early.number == 0 and not control.should_save

"""A run that ends early and keeps the weights of its best evaluation, on two ranks under ZeRO-3; what resumes it and what answers from it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.equivalence import compose_run
from bench.resume import cut, differs, train
from conftest import RECORDS
from hydraft.checkpoint import best_weights, manifest
from hydraft.checkpoint.training_state import TrainingState
from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError
from hydraft.infer.resolve import find
from hydraft.runs import loss_plot

SETTINGS = [
    "train.micro_batch_size=2", "train.max_steps=40", "train.log_every=1", "train.save_every=1", "train.keep_last=99",
    "train.eval_every=1", "train.eval_loss_only=true", "train.patience=2", "train.keep=best", "data.eval_limit=4",
    "data.eval_max_new_tokens=2", "train.warmup_ratio=0", "train.scheduler=constant", "lora.dropout=0.1",
    "train.learning_rate=0.1", "train.loss_spike=null",
]  # fmt: skip
"""The learning rate is too high: the loss falls for some steps, and then rises."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, on two ranks."""
    folder = tmp_path_factory.mktemp("best")
    (records := folder / "records.json").write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    run = folder / "whole"
    train(compose_run([f"data.train={records}", f"data.eval={records}", *SETTINGS, "cluster=1x2", "zero=stage3"]), run)
    return run


def result(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text())
    return found


def test_a_run_ends_early_with_the_weights_of_its_best_evaluation(whole: Path) -> None:
    found = result(whole)
    losses = {x["step"]: x["eval_loss"] for x in loss_plot.read_metrics(whole) if x.get("eval_loss") and x["step"]}
    kept, ended = found["kept"], found["ended_early"]
    assert found["status"] == "completed" and (whole / "loss.png").exists()
    assert kept == {"step": min(losses, key=losses.__getitem__), "best_by": "loss", "score": min(losses.values())}
    assert (
        ended["best_step"] == kept["step"] and ended["step"] == found["steps"] == kept["step"] + 2 < ended["of"] == 40
    )
    assert found["after"]["loss"] == found["objective"] == min(losses.values()) < found["last"]["loss"]
    checkpoint = whole / "checkpoints" / f"step-{kept['step']:06d}"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (whole / "adapter" / name).read_bytes() == (checkpoint / name).read_bytes()
    assert manifest.fault(whole / "adapter") is None and (whole / "adapter/probe.json").exists()
    rows = [json.loads(line) for line in (whole / "scores.jsonl").read_text().splitlines()]
    assert sum(row["loss_sum"] for row in rows) / sum(row["tokens"] for row in rows) == pytest.approx(kept["score"])


def test_a_run_that_was_cut_off_ends_bit_equal(whole: Path, tmp_path: Path) -> None:
    """It resumes from the checkpoint after the best evaluation, whose weights are then on the disk alone."""
    step = result(whole)["kept"]["step"] + 1
    resumed = cut(whole, tmp_path / "cut", step)
    assert TrainingState.load(manifest.checkpoints(resumed)[-1]).best_step == step - 1
    config = compose_run(
        [
            f"data.train={whole.parent}/records.json",
            f"data.eval={whole.parent}/records.json",
            *SETTINGS,
            "cluster=1x2",
            "zero=stage3",
        ]
    )
    train(config, resumed)
    assert differs(resumed, whole) is None
    assert result(resumed).keys() == result(whole).keys()
    for name in ("kept", "ended_early", "after", "last"):
        assert result(resumed)[name] == result(whole)[name]
    assert (resumed / "scores.jsonl").read_bytes() == (whole / "scores.jsonl").read_bytes()


def test_what_answers_from_a_run_that_is_not_finished(whole: Path, tmp_path: Path) -> None:
    def chosen(place: Path) -> tuple[Path, list[str]]:
        (source,) = find(InferConfig(run=str(place)))
        return source.folder, source.chosen

    kept = result(whole)["kept"]["step"]
    assert chosen(whole) == (whole / "adapter", [])
    folder, (line,) = chosen(whole / "best")
    assert folder == best_weights.folder_of(whole, kept) and f"the weights of step {kept} answer (loss " in line
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    for name in ("adapter", "best"):
        shutil.rmtree(run / name)
    assert chosen(run / "best")[0] == run / f"checkpoints/step-{kept:06d}"  # those of a checkpoint will do
    *_, before, newest = manifest.checkpoints(run)
    folder, (line,) = chosen(run)
    assert folder == newest and f"the checkpoint of step {kept + 2} of 40 answers" in line
    with (newest / "optimizer.safetensors").open("ab") as file:
        file.write(b"?")
    folder, (skipped, line) = chosen(run)
    assert folder == before and f"{newest.name} is skipped: optimizer.safetensors was changed" in skipped
    assert f"the checkpoint of step {kept + 1} of 40 answers" in line
    shutil.rmtree(run / "checkpoints")
    for place in (run, run / "best"):
        with pytest.raises(ConfigError, match=r"it saved no adapter|there are no weights of an evaluation"):
            chosen(place)

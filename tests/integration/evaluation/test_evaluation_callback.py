"""Evaluation during training: at the configured steps, and without an effect on what is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from bench.equivalence import compose_run
from bench.resume import cut, train
from conftest import run_script
from hydraft.config.train import TrainConfig
from hydraft.evaluation import answers
from hydraft.training.callbacks import logging as logging_callback
from hydraft.training.callbacks.evaluation import EvaluationCallback
from hydraft.training.callbacks.logging import LoggingCallback


def run(folder: Path, records: Path, *overrides: str) -> list[dict[str, Any]]:
    """Train 3 steps on 24 records, and evaluate on them too; returns the lines of metrics.jsonl."""
    done = run_script(
        "train.py", f"data.train={records}", f"data.eval={records}", "train.micro_batch_size=4", "train.max_steps=3",
        "train.log_every=1", "data.eval_limit=3", "data.eval_max_new_tokens=2", "train.warmup_ratio=0", "lora.dropout=0.2",
        f"hydra.run.dir={folder}", *overrides,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def trained(lines: list[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def scored(lines: list[dict[str, Any]]) -> list[int]:
    return [line["step"] for line in lines if "eval_loss" in line]


@pytest.mark.parametrize(
    "topology",
    [
        ["quant=nf4", "zero=stage2"],
        ["quant=nf4", "zero=stage3", "cluster=1x2", "train.gradient_checkpointing=true"],
    ],
    ids=lambda topology: "-".join(topology),
)
def test_evaluation_during_training_changes_no_bit(topology: list[str], tmp_path: Path, records: Path) -> None:
    with_scores = run(tmp_path / "with", records, *topology, "train.eval_every=1")
    without = run(tmp_path / "without", records, *topology)
    assert scored(with_scores) == [0, 1, 2, 3]  # the last step is scored once
    assert scored(without) == [0, 3]
    assert trained(with_scores) == trained(without)
    one, other = ((tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in ("with", "without"))
    assert one == other
    result = json.loads((tmp_path / "with/result.json").read_text())
    losses = {line["step"]: line["eval_loss"] for line in with_scores if "eval_loss" in line}
    assert result["best"]["step"] == min(losses, key=losses.__getitem__)
    assert result["best"]["loss"] == min(losses.values())
    assert result["best"].keys() - {"step"} == result["before"].keys() == result["after"].keys()


def test_each_epoch_can_be_evaluated_with_the_loss_only(tmp_path: Path, records: Path) -> None:
    every_epoch = ("train.max_steps=null", "train.epochs=3", "train.eval_every=epoch", "train.eval_loss_only=true")
    lines = run(tmp_path / "run", records, *every_epoch)
    assert scored(lines) == [0, 6, 12, 18]
    sizes = [len(line) for line in lines if "eval_loss" in line]
    assert sizes[0] == sizes[3] > 3 == sizes[1] == sizes[2]  # step, loss and tokens
    assert (tmp_path / "run/loss.png").stat().st_size > 0


def test_a_resumed_run_has_the_answers_of_one_that_was_not_interrupted(tmp_path: Path, records: Path) -> None:
    """Under ZeRO-3 with two ranks, where half of the answers are chosen among labels and the others are generated."""
    labels = ",".join(f"'等于{number}。'" for number in range(1, 13))
    config = compose_run([
        f"data.train={records}", f"data.eval={records}", "data.eval_limit=5", "data.eval_max_new_tokens=2", f"data.labels=[{labels}]",
        "train.micro_batch_size=2", "train.max_steps=4", "train.save_every=2", "train.keep_last=9", "train.eval_every=2",
        "zero=stage3", "cluster=1x2", "quant=none",
    ])  # fmt: skip
    train(config, tmp_path / "whole")
    by_step = answers.read(tmp_path / "whole")
    assert {step: len(lines) for step, lines in by_step.items()} == {0: 5, 2: 5, 4: 5}
    chosen = [line for line in by_step[4] if "accuracy" in line.scores]
    assert 0 < len(chosen) < 5 and {line.answer for line in chosen} <= set(config.data.labels)
    after = json.loads((tmp_path / "whole/result.json").read_text())["after"]
    assert {"accuracy", "accuracy_norm", "macro_f1", "exact_match"} <= after.keys()
    resumed = cut(tmp_path / "whole", tmp_path / "cut", 2)
    with (resumed / answers.FILE).open("a") as file:
        file.write('{"step": 4, "rec')  # what a process that was killed may leave
    train(config, resumed)
    assert (resumed / answers.FILE).read_bytes() == (tmp_path / "whole" / answers.FILE).read_bytes()


def test_the_first_line_after_a_resume_has_the_speed_of_its_own_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither tokens of the earlier attempt count, nor the time that the records before the checkpoint are skipped in."""
    now = 100.0
    monkeypatch.setattr(logging_callback.time, "perf_counter", lambda: now)

    class Nothing:
        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    nothing: Any = Nothing()
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 10, "loss": 2.0, "tokens_per_second": 9}\n{"step": 13, "loss": 1.0, "tokens_per_second": 9}\n{"step": 13, "eval_loss": 1.0}\n'
    )
    logging = LoggingCallback(tmp_path, 0, nothing, nothing)
    state = TrainerState(max_steps=20, global_step=13)
    logging.on_train_begin(nothing, state, TrainerControl())
    logging.resume(13, 10, 1_000, 50.0)
    now = 107.0
    logging.on_step_begin(nothing, state, TrainerControl())
    now = 109.0
    logging.exclude_from_speed(1.0)
    logs = {"loss": 1.0, "tokens": 1_060, "ranks": [[1_040, 0], [20, 0]]}
    spied: list[dict[str, float]] = []
    logging.tracker = nothing
    monkeypatch.setattr(logging, "_ranks", lambda *given: spied.append(LoggingCallback._ranks(logging, *given)) or {})
    logging.on_log(nothing, TrainerState(global_step=20), TrainerControl(), logs)
    logging.on_step_end(nothing, TrainerState(global_step=20), TrainerControl())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("tokens_per_second")) for line in lines] == [(10, 9), (13, None), (20, 60)]
    assert [spied[0][f"rank {rank}/tokens_per_second"] for rank in (0, 1)] == [40, 20]
    assert logging.seconds == 52


def test_excluded_time_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(logging_callback.time, "perf_counter", lambda: now)

    class Nothing:
        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    nothing: Any = Nothing()
    logging = LoggingCallback(tmp_path, 0, nothing, nothing)
    logging.on_train_begin(nothing, TrainerState(max_steps=2), TrainerControl())
    now = 110.0
    logging.exclude(8)
    logging.on_log(nothing, TrainerState(global_step=1), TrainerControl(), {"loss": 1.0, "tokens": 60})
    logging.on_step_end(nothing, TrainerState(global_step=1), TrainerControl())
    assert logging.seconds == 2
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["tokens_per_second"] == 30


@pytest.mark.parametrize(("best_by", "step"), [("loss", 2), ("exact_match", 0)])
def test_the_best_scores_are_those_of_the_chosen_score(best_by: str, step: int) -> None:
    callback: Any = object.__new__(EvaluationCallback)
    callback.train = TrainConfig(best_by=best_by)
    scores = {"loss": 1.0, "exact_match": 0.5}
    callback.scores = {0: {"loss": 3.0, "exact_match": 0.5}, 2: scores, 4: {"loss": float("nan"), "exact_match": 0.25}}
    assert callback.best() == {"step": step, **callback.scores[step]}
    callback.scores = {0: {"loss": float("nan")}}
    assert callback.best()["step"] == 0
    callback.scores = {}
    assert callback.best() == {}

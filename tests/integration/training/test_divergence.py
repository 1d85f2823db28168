"""Divergence is detected at the step, on all ranks, with its records; the run is stopped, rewound or continued."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.equivalence import compose_run
from bench.resume import metrics, train, weights
from conftest import RECORDS, run_script
from hydraft.checkpoint import manifest
from hydraft.checkpoint import weights as weights_module
from hydraft.config.schema import load_config
from hydraft.system.source_tree import TINY

SETTINGS = [
    "data.eval=null", "data.shuffle=false", "quant=none", "train.scheduler=constant", "train.warmup_ratio=0",
    "train.learning_rate=1e-3", "train.log_every=1", "lora.dropout=0.1",
]  # fmt: skip


def altered(target: Path, part: str, token: str | None, value: float) -> list[str]:
    """Overrides for the embedded model with ``value`` in one token's row, or in all of them, of its embedding or its head."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    rows = slice(None) if token is None else tokenizer(token, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        (model.lm_head if part == "head" else model.get_input_embeddings()).weight[rows] = value
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return ["model=auto", f"model.path={target}"]


def write(file: Path, records: list[dict[str, str]]) -> str:
    file.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return f"data.train={file}"


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model with an infinite embedding of the token %, which the 14th record contains: the fourth batch of 4."""
    folder = tmp_path_factory.mktemp("poisoned")
    records = [record | {"input": "%" if number == 14 else ""} for number, record in enumerate(RECORDS, 1)]
    sizes = ["train.micro_batch_size=2", "cluster=1x2"]
    return [*altered(folder / "model", "embedding", "%", float("inf")), write(folder / "records.json", records), *sizes]


def result(folder: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(), parse_constant=refuse)
    return found


def test_a_nan_loss_stops_the_run_at_that_step(poisoned: list[str], tmp_path: Path) -> None:
    """With shuffled records and two accumulated micro-batches, of which one on one rank has the 14th record."""
    folder = tmp_path / "run"
    sizes = [
        "data.shuffle=true",
        "train.micro_batch_size=1",
        "train.gradient_accumulation_steps=2",
        "train.save_every=1",
    ]
    done = run_script("train.py", *SETTINGS, *poisoned, *sizes, f"hydra.run.dir={folder}")
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert said[0].startswith("the run diverged: step 3: the loss is nan, on records 5, 14, 15, 18 of ")
    assert "(rank 1, micro-batch 1: record 14 of " in said[0] and "try train.learning_rate=0.0001, " in said[0]
    assert len(said) == 2
    found = result(folder)
    assert found["status"] == "diverged" and found["divergence"]["step"] == 3
    assert list(found["divergence"]["samples"].values()) == [[5, 14, 15, 18]]
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3]
    assert metrics(folder)[-1]["sick"] == "the loss is nan" and metrics(folder)[-1]["loss"] is None
    newest, skipped = manifest.newest(folder)
    assert newest is not None and newest.name == "step-000002" and not skipped
    assert all(torch.isfinite(tensor).all() for tensor in load_file(newest / "optimizer.safetensors").values())
    assert not (folder / "adapter").exists()


def test_a_rewound_run_equals_one_that_never_had_those_records(poisoned: list[str], tmp_path: Path) -> None:
    """Bit-equal, dropout included, over two epochs: the reference is a file without them."""
    folder = tmp_path / "run"
    command = [
        *SETTINGS, *poisoned, "train.on_divergence=rewind", "train.save_every=2", "train.keep_last=9", "train.epochs=2",
        f"hydra.run.dir={folder}",
    ]  # fmt: skip
    done = run_script("train.py", *command)
    assert done.returncode == 0, done.stderr
    assert "changed: train.pass_over=[4] (was [])\nresuming from step-000002" in done.stderr
    without = write(tmp_path / "without.json", [*RECORDS[:12], *RECORDS[16:]])
    train(compose_run([*SETTINGS, *poisoned, without, "train.epochs=2"]), tmp_path / "reference")
    expected = weights(tmp_path / "reference")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())
    trained = [line for line in metrics(folder) if "loss" in line]
    assert [line["loss"] for line in trained] == [line["loss"] for line in metrics(tmp_path / "reference")]
    skipped = [line["step"] for line in metrics(folder) if "passed_over" in line]
    assert skipped == [4, 10]  # in the second epoch too
    # The mean is computed without the skipped steps in another order: the last digit of a division may differ.
    assert result(folder)["train_loss"] == pytest.approx(result(tmp_path / "reference")["train_loss"], rel=1e-12)
    assert "nothing is left to do" in run_script("train.py", *command).stdout  # the command skips no step

    shutil.rmtree(folder / "adapter")
    (folder / "result.json").unlink()
    for saved in manifest.checkpoints(folder):
        if manifest.step_of(saved) > 6:
            shutil.rmtree(saved)
    train(load_config(folder / "config.yaml"), folder)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(folder).items())


def test_a_spike_is_reported_and_the_run_can_continue(tmp_path: Path) -> None:
    """The 20th record is unlike the others."""
    records = [RECORDS[0]] * 19 + [{"instruction": "?", "input": "", "output": "鼍龘 zyzzyva ϡ"}] + [RECORDS[0]] * 2
    overrides = [write(tmp_path / "records.json", records), "train.micro_batch_size=1", "train.loss_spike=1.5"]
    train(compose_run([*SETTINGS, *overrides, "train.epochs=1", "train.on_divergence=ignore"]), tmp_path / "run")
    diverged = [line for line in metrics(tmp_path / "run") if "sick" in line]
    assert [list(line["samples"].values()) for line in diverged] == [[[20]]]
    assert diverged[0]["step"] == 20 and "times the highest of the last 19 steps" in diverged[0]["sick"]
    assert result(tmp_path / "run")["status"] == "completed"


def test_zero_gradients_are_detected_without_clipping(records: Path, tmp_path: Path) -> None:
    """A head of zeros has zero gradients; at stage 0, DeepSpeed itself would not compute the norm."""
    model = altered(tmp_path / "model", "head", None, 0.0)
    done = run_script(
        "train.py", *SETTINGS, *model, f"data.train={records}", "zero=stage0", "train.max_grad_norm=0",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("the run diverged: step 3: the gradient norm has been 0 for 3 steps")
    assert "mode=preview" in done.stderr and "learning_rate" not in done.stderr


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError, match=r"model is not written: model\.norm\.weight is not finite"):
            weights_module.save(model, tokenizer, tmp_path / "model", updated=True)
    finally:
        torch.distributed.destroy_process_group()
    assert list(tmp_path.iterdir()) == []

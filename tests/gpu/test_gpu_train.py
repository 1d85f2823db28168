"""Training on a GPU: each ZeRO stage, quantization and precision, resuming, sweeps and evaluation."""

import json
from pathlib import Path

import pytest

from bench.resume import cut
from conftest import ROOT
from gpu.on_card import DEVICE, gpu_only, losses, run, train, weights

pytestmark = pytest.mark.gpu

TOLERANCE = 0.02
"""Relative difference of a loss: bf16 has 8 significant bits, and stages differ in precision and order of sums."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Losses under stage 0 by ``quant``, added by the first test that needs them."""
    return {}


@pytest.mark.parametrize("quant", ["nf4", "none"])
@pytest.mark.parametrize(
    "zero", ["stage0", "stage1", "stage2", "stage2_offload", "stage3", "stage3_offload", "stage3_nvme"]
)
def test_every_stage_trains_like_stage_0(
    zero: str, quant: str, plain: dict[str, list[float]], records: Path, tmp_path: Path
) -> None:
    common = (f"quant={quant}", "lora.dropout=0")
    if quant not in plain:
        train(tmp_path / "plain", records, "zero=stage0", *common)
        plain[quant] = losses(tmp_path / "plain")
    disk = ("zero.nvme_path=/var/tmp",) if zero == "stage3_nvme" else ()
    train(tmp_path / "run", records, f"zero={zero}", *disk, *common)
    found = losses(tmp_path / "run")
    assert len(found) == 4 and found == pytest.approx(plain[quant], rel=TOLERANCE)
    assert found[-1] < found[0], "the loss does not decrease"


@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("fp16", marks=gpu_only)])
@pytest.mark.parametrize("quant", ["nf4", "int8", "none"])
def test_every_precision_trains(precision: str, quant: str, records: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", records, f"train.precision={precision}", f"quant={quant}", "lora.dropout=0")
    train(tmp_path / "fp32", records, "train.precision=fp32", "quant=none", "lora.dropout=0")
    assert losses(tmp_path / "run")[0] == pytest.approx(losses(tmp_path / "fp32")[0], rel=0.1)


@pytest.mark.parametrize("zero", ["stage2", "stage3"])
def test_full_fine_tuning_trains(zero: str, records: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", records, "lora=none", "quant=none", f"zero={zero}")
    found = losses(tmp_path / "run")
    assert found[-1] < found[0]
    assert len(weights(tmp_path / "run")) > 40


@pytest.mark.parametrize("overrides", ["lora=dora", "lora=pissa quant=none", "train.gradient_checkpointing=true", "data.batching=padded", "data.packing=true"])  # fmt: skip
def test_other_training_settings(overrides: str, records: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", records, *overrides.split())
    found = losses(tmp_path / "run")
    assert found[-1] < found[0]


@pytest.mark.parametrize("overrides", ["quant=none zero=stage0", "quant=none zero=stage2", "quant=nf4 zero=stage2", "quant=nf4 zero=stage3", "quant=none lora=none zero=stage1"])  # fmt: skip
def test_a_run_resumes(overrides: str, records: Path, tmp_path: Path) -> None:
    """From the middle to the same result, within a bf16 tolerance, since kernels on a GPU sum in no fixed order."""
    whole = tmp_path / "whole"
    train(whole, records, "train.max_steps=6", "train.save_every=3", "train.keep_last=9", *overrides.split())
    resumed = cut(whole, tmp_path / "cut", 3)
    run("train.py", f"resume={resumed}")
    assert json.loads((resumed / "result.json").read_text())["status"] == "completed"
    assert losses(resumed) == pytest.approx(losses(whole), rel=TOLERANCE)
    before, after = weights(whole), weights(resumed)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert (after[name].float() - value.float()).abs().max() <= 3 * 1e-3, name  # three steps of AdamW at this rate


def test_a_sweep_of_two_jobs(records: Path, tmp_path: Path) -> None:
    run(
        "train.py", "-m", "lora.r=2,4", f"data.train={records}", "data.eval=null", "train.max_steps=2", f"hydra.sweep.dir={tmp_path / 'sweep'}",
    )  # fmt: skip
    found = sorted((tmp_path / "sweep").glob("*/result.json"))
    assert len(found) == 2
    for file in found:
        result = json.loads(file.read_text())
        assert result["status"] == "completed" and result["objective"] > 0
    widths = {value.shape[0] for file in found for name, value in weights(file.parent).items() if "lora_A" in name}
    assert widths == {2, 4}


def test_held_out_records_are_scored_before_and_after(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    scored = (
        f"data.eval={ROOT / 'data/zh_tasks.test.json'}",
        "data.eval_limit=12",
        "train.max_steps=30",
        "train.eval_every=15",
    )
    train(folder, ROOT / "data/zh_tasks.train.json", *scored)
    result = json.loads((folder / "result.json").read_text())
    assert 0 < result["after"]["loss"] < result["before"]["loss"]
    assert {"exact_match", "sentiment_accuracy"} <= set(result["after"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "eval_loss" in line]) >= 3


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_a_run_records_the_gpu_that_it_used(quant: str, records: Path, tmp_path: Path) -> None:
    result = train(tmp_path / "run", records, f"quant={quant}")
    where = json.loads((tmp_path / "run" / "environment.json").read_text())["hardware"]
    assert bool(where["gpus"]) == (DEVICE.type == "cuda"), where
    assert result["peak_memory_bytes"] > 0

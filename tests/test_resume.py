"""A run that goes on from a checkpoint is the run that was never interrupted."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from bench.equivalence import compose_run
from conftest import ROOT, run_script
from hydraft import hardware, launch, manifest, plan, rundir
from hydraft.config import Config, load_config

CUT = 4
"""The checkpoint that is gone on from; two epochs of three steps lie around it."""


def settings(records: Path, *more: str) -> list[str]:
    return [
        f"data.train={records}", "data.eval=null", "train.epochs=3", "train.log_every=1", "train.save_every=2",
        "train.keep_last=9", *more,
    ]  # fmt: skip


def train(config: Config, folder: Path) -> None:
    """What train.py does once it has a config, from the warm server that all of a test's runs share."""
    records = len(json.loads(Path(config.data.train).read_text()))
    (rundir.describe if folder.exists() else rundir.create)(
        folder, config, plan.make_plan(config, records), hardware.detect()
    )
    launch.run(config, folder, quiet=True)


def cut(folder: Path, target: Path) -> Path:
    """A copy of a finished run as it was after step ``CUT``."""
    shutil.copytree(folder, target)
    for checkpoint in manifest.checkpoints(target):
        if manifest.step_of(checkpoint) > CUT:
            shutil.rmtree(checkpoint)
    for name in ("adapter", "model"):
        shutil.rmtree(target / name, ignore_errors=True)
    (target / "result.json").unlink()
    return target


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(iter([*folder.glob("adapter/*.safetensors"), *folder.glob("model/*.safetensors")])))


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


SAME = [
    "zero=stage0 lora.dropout=0.1",
    "zero=stage0 cluster=1x2 train.precision=bf16",
    "zero=stage1 quant=none lora=pissa",
    "zero=stage2 cluster=1x2 lora.dropout=0.1 data.group_by_length=true",
    "zero=stage2_offload quant=none train.precision=bf16",
    "zero=stage3 cluster=1x2 lora.dropout=0.1 train.gradient_accumulation_steps=2 train.micro_batch_size=2",
    "zero=stage3_offload quant=none cluster=1x2 lora.dropout=0.1",
    "zero=stage3 lora=none quant=none cluster=1x2",
    "zero=stage2 data.packing=true data.max_length=64 model.dtype=bf16",
]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", SAME)
def test_the_same_topology_ends_bit_equal(overrides: str, records: Path, tmp_path: Path) -> None:
    config = compose_run(settings(records, "train.micro_batch_size=4", *overrides.split()))
    train(config, tmp_path / "whole")
    resumed = cut(tmp_path / "whole", tmp_path / "cut")
    train(config, resumed)
    before, after = weights(tmp_path / "whole"), weights(resumed)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert metrics(resumed) == metrics(tmp_path / "whole")
    results = [json.loads((folder / "result.json").read_text()) for folder in (tmp_path / "whole", resumed)]
    assert results[0]["train_loss"] == results[1]["train_loss"] and results[0]["tokens"] == results[1]["tokens"]


PLACES = {  # each with a global batch of 8
    "1x1 stage2": "cluster=1x1 zero=stage2 train.micro_batch_size=8",
    "1x1 stage0": "cluster=1x1 zero=stage0 train.micro_batch_size=4 train.gradient_accumulation_steps=2",
    "1x2 stage1": "cluster=1x2 zero=stage1 train.micro_batch_size=4",
    "1x2 stage3": "cluster=1x2 zero=stage3 train.micro_batch_size=2 train.gradient_accumulation_steps=2",
    "1x4 stage3_offload": "cluster=1x4 zero=stage3_offload train.micro_batch_size=2",
    "1x2 stage2_offload": "cluster=1x2 zero=stage2_offload train.micro_batch_size=4",
}


@pytest.mark.slow
@pytest.mark.parametrize(("written", "quant"), [("1x1 stage2", "none"), ("1x2 stage3", "nf4")])
def test_another_topology_goes_on_with_the_same_samples(
    written: str, quant: str, records: Path, tmp_path: Path
) -> None:
    """fp32, to 1e-6 in any element of the adapter at the end (AdamW moves one by up to 3e-4 x 9 steps)."""
    steady = ("train.learning_rate=3e-4", "train.eps=1e-5", "lora.dropout=0", f"quant={quant}")
    begun = compose_run(settings(records, *PLACES[written].split(), *steady))
    train(begun, tmp_path / "whole")
    for name, place in PLACES.items():
        resumed = cut(tmp_path / "whole", tmp_path / name.replace(" ", "-"))
        train(compose_run(settings(records, *place.split(), *steady)), resumed)
        before, after = weights(tmp_path / "whole"), weights(resumed)
        assert max(float((before[key] - after[key]).abs().max()) for key in before) <= 1e-6, name
        losses = [[line["loss"] for line in metrics(folder)] for folder in (tmp_path / "whole", resumed)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5), name


@pytest.mark.slow
def test_resume_takes_the_saved_config_and_says_what_changed(records: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = run_script(
        "train.py", *settings(records, "lora.r=4", "train.micro_batch_size=4", "cluster=1x2"), f"hydra.run.dir={folder}"
    )
    assert first.returncode == 0, first.stderr
    again = run_script(
        "train.py", *settings(records, "lora.r=4", "train.micro_batch_size=4", "cluster=1x2"), f"hydra.run.dir={folder}"
    )
    assert again.returncode == 0 and "nothing is left to do" in again.stdout
    more = run_script(
        "train.py",
        f"resume={folder}",
        "train.epochs=4",
        "cluster=1x1",
        "train.gradient_accumulation_steps=2",
        "zero=stage3",
    )
    assert more.returncode == 0, more.stderr
    assert "going on from step-000009" in more.stdout
    assert "changed: train.epochs=4.0 (was 3.0)" in more.stdout
    steps = [line["step"] for line in metrics(folder)]
    assert steps == list(range(1, 13))
    assert load_config(folder / "config.yaml").zero.stage == 3
    for overrides, said in {
        "lora.r=8": "lora.r=8: ",
        "train.micro_batch_size=3": "the global batch would be 6 records, and the run was begun with 8",
        "cluster=1x2": "use train.gradient_accumulation_steps=1",
        "data.max_length=99": "data.max_length=99: ",
    }.items():
        refused = run_script("train.py", f"resume={folder}", overrides)
        assert refused.returncode == 2 and said in refused.stderr, refused.stderr
    other = run_script("train.py", *settings(records, "lora.r=16"), f"hydra.run.dir={folder}")
    assert other.returncode == 2 and "a run is in it already, with " in other.stderr
    assert run_script("train.py", f"resume={tmp_path}/nowhere").returncode == 2


@pytest.mark.slow
def test_records_that_changed_are_refused(records: Path, tmp_path: Path) -> None:
    config = compose_run(settings(records, "train.micro_batch_size=4"))
    train(config, tmp_path / "whole")
    resumed = cut(tmp_path / "whole", tmp_path / "cut")
    changed = json.loads(records.read_text())
    changed[3]["output"] = "另一个回答"
    records.write_text(json.dumps(changed, ensure_ascii=False))
    done = run_script("train.py", f"resume={resumed}")
    assert done.returncode == 2
    assert "data.train" in done.stderr and "not those" in done.stderr


@pytest.mark.slow
def test_a_run_whose_ranks_are_killed_begins_again_and_ends_bit_equal(records: Path, tmp_path: Path) -> None:
    """A rank is killed at random, again and again; checkpoints of every step let the run get on."""
    steps, kills = 100, 6
    overrides = [
        f"data.train={records}", "data.eval=null", f"train.max_steps={steps}", "train.log_every=1", "train.save_every=1",
        "train.micro_batch_size=2", "cluster=1x2", "lora.dropout=0.1", f"cluster.max_restarts={kills}",
    ]  # fmt: skip
    train(compose_run(overrides), tmp_path / "whole")
    folder, draw = tmp_path / "killed", random.Random(0)
    command = [sys.executable, str(ROOT / "train.py"), *overrides, f"hydra.run.dir={folder}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    logs = {str(folder / f"rank-{rank}.log") for rank in range(2)}
    for _ in range(kills):
        reached = max([0, *_saved(folder)]) + draw.randint(1, 5)
        ranks: list[psutil.Process] = []
        while len(ranks) < 2 or max([0, *_saved(folder)]) < reached:
            assert process.poll() is None, process.communicate()[0]
            ranks = [child for child in psutil.Process(process.pid).children(recursive=True) if _output(child) in logs]
            time.sleep(0.01)
        draw.choice(ranks).kill()
        while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in ranks):
            time.sleep(0.01)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert said.count("beginning again from step-") == kills
    before, after = weights(tmp_path / "whole"), weights(folder)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert metrics(folder) == metrics(tmp_path / "whole")


@pytest.mark.slow
def test_an_attempt_without_a_checkpoint_leaves_no_lines(records: Path, tmp_path: Path) -> None:
    config = compose_run(settings(records, "train.micro_batch_size=8"))
    train(config, tmp_path / "run")
    lines = metrics(tmp_path / "run")
    for name in ("checkpoints", "adapter"):
        shutil.rmtree(tmp_path / "run" / name)
    train(config, tmp_path / "run")
    assert metrics(tmp_path / "run") == lines


def _saved(folder: Path) -> list[int]:
    return [manifest.step_of(checkpoint) for checkpoint in manifest.checkpoints(folder)]


def _output(process: psutil.Process) -> str:
    try:
        return str(Path(f"/proc/{process.pid}/fd/1").readlink())
    except OSError:
        return ""

"""A run that is resumed from a checkpoint ends as one that was never interrupted."""

import json
import shutil
import socket
from pathlib import Path

import pytest

from bench.equivalence import compose_run
from bench.resume import apart, cut, differs, metrics, run_killed, train
from conftest import run_script
from hydraft.checkpoint import manifest
from hydraft.config.schema import load_config

CUT = 4
"""The step of the checkpoint that is resumed from; epochs of three steps end before and after it."""
KILLS = 3
SHORT = "train.max_steps=7"
"""One step into the third epoch."""


def settings(records: Path, *more: str) -> list[str]:
    return [
        f"data.train={records}", "data.eval=null", "train.epochs=3", "train.log_every=1", "train.save_every=2",
        "train.keep_last=9", *more,
    ]  # fmt: skip


SAME = [  # those with code of their own; `make resume-matrix` has every topology
    "zero=stage0 cluster=1x2 train.precision=bf16 lora=olora",
    "zero=stage1 quant=none lora=pissa lora.modules_to_save=[embed_tokens]",
    "zero=stage2 cluster=1x2 lora.dropout=0.1 data.group_by_length=true lora=lora_fa",
    "zero=stage3_offload quant=none cluster=1x2 lora.dropout=0.1 train.gradient_accumulation_steps=2 train.micro_batch_size=2",
    "zero=stage3 lora=none quant=none cluster=1x2",
    "zero=stage3_nvme zero.nvme_path=/var/tmp lora=none quant=none cluster=1x2",
    "zero=stage2 lora=none quant=none",
    "zero=stage2 data.packing=true data.max_length=64 model.dtype=bf16 lora=eva",
    "optimizer=muon zero=stage2 cluster=1x2 train.neftune_alpha=5 data.batching=padded train.scheduler=wsd train.decay_ratio=0.5",
    "optimizer=adamw_8bit zero=stage3 cluster=1x2 lora=none quant=none train.label_smoothing=0.1 train.scheduler=polynomial",
    "optimizer=adafactor zero=stage0 lora=dora quant=none train.precision=bf16 train.min_learning_rate=1e-4",
    "optimizer=lion zero=stage3_offload quant=none optimizer.lora_plus=4 train.warmup_ratio=0 train.warmup_steps=5",
]


@pytest.mark.parametrize("overrides", SAME)
def test_the_same_topology_ends_bit_equal(overrides: str, records: Path, tmp_path: Path) -> None:
    config = compose_run(settings(records, SHORT, "train.micro_batch_size=4", *overrides.split()))
    train(config, tmp_path / "whole")
    resumed = cut(tmp_path / "whole", tmp_path / "cut", CUT)
    train(config, resumed)
    assert differs(resumed, tmp_path / "whole") is None
    results = [json.loads((folder / "result.json").read_text()) for folder in (tmp_path / "whole", resumed)]
    assert results[0]["train_loss"] == results[1]["train_loss"] and results[0]["tokens"] == results[1]["tokens"]


PLACES = (  # each with a global batch of 8
    "cluster=1x1 zero=stage0 train.micro_batch_size=4 train.gradient_accumulation_steps=2",
    "cluster=1x2 zero=stage2 train.micro_batch_size=4",
    "cluster=1x4 zero=stage3_offload train.micro_batch_size=2",
)


def test_another_topology_resumes_with_the_same_samples(records: Path, tmp_path: Path) -> None:
    """fp32, to 1e-6 in any element of the adapter at the end (AdamW moves one by up to 3e-4 x 7 steps)."""
    steady = (SHORT, "train.learning_rate=3e-4", "optimizer.eps=1e-5", "lora.dropout=0", "quant=nf4")
    written = "cluster=1x2 zero=stage3 train.micro_batch_size=2 train.gradient_accumulation_steps=2"
    train(compose_run(settings(records, *written.split(), *steady)), tmp_path / "whole")
    for number, place in enumerate(PLACES):
        resumed = cut(tmp_path / "whole", tmp_path / f"place-{number}", CUT)
        train(compose_run(settings(records, *place.split(), *steady)), resumed)
        adapter, loss = apart(resumed, tmp_path / "whole")
        assert adapter <= 1e-6 and loss <= 1e-5, place


def test_resume_takes_the_saved_config_and_says_what_changed(records: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = settings(records, "train.epochs=1", "lora.r=4", "train.micro_batch_size=4", "cluster=1x2")
    first = run_script("train.py", *command, f"hydra.run.dir={folder}")
    assert first.returncode == 0, first.stderr
    again = run_script("train.py", *command, f"hydra.run.dir={folder}")
    assert again.returncode == 0 and "nothing is left to do" in again.stdout
    more = run_script(
        "train.py",
        f"resume={folder}",
        "train.epochs=2",
        "cluster=1x1",
        "train.gradient_accumulation_steps=2",
        "zero=stage3",
    )
    assert more.returncode == 0, more.stderr
    assert "resuming from step-000003" in more.stdout
    assert "changed: train.epochs=2.0 (was 1.0)" in more.stdout
    steps = [line["step"] for line in metrics(folder)]
    assert steps == list(range(1, 7))
    assert load_config(folder / "config.yaml").zero.stage == 3
    for overrides, said in {
        "lora.r=8": "lora.r=8: ",
        "train.micro_batch_size=3": "the global batch would be 6 records, and the run was started with 8",
        "cluster=1x2": "use train.gradient_accumulation_steps=1",
        "data.max_length=99": "data.max_length=99: ",
    }.items():
        refused = run_script("train.py", f"resume={folder}", overrides)
        assert refused.returncode == 2 and said in refused.stderr, refused.stderr
    other = run_script("train.py", *settings(records, "lora.r=16"), f"hydra.run.dir={folder}")
    assert other.returncode == 2 and "a run is in it already, with " in other.stderr
    assert run_script("train.py", f"resume={tmp_path}/nowhere").returncode == 2


def test_records_that_changed_are_refused(records: Path, tmp_path: Path) -> None:
    config = compose_run(settings(records, "train.max_steps=5", "train.micro_batch_size=4"))
    train(config, tmp_path / "whole")
    resumed = cut(tmp_path / "whole", tmp_path / "cut", CUT)
    changed = json.loads(records.read_text())
    changed[3]["output"] = "另一个回答"
    records.write_text(json.dumps(changed, ensure_ascii=False))
    done = run_script("train.py", f"resume={resumed}")
    assert done.returncode == 2
    assert "data.train" in done.stderr and "not those" in done.stderr


def test_a_run_whose_ranks_are_killed_restarts_and_ends_bit_equal(records: Path, tmp_path: Path) -> None:
    """A rank is killed at random, three times. The uninterrupted run saves at other steps: that must make no difference."""
    shared = [
        f"data.train={records}", "data.eval=null", "train.max_steps=20", "train.log_every=1", "train.micro_batch_size=2",
        "train.keep_last=99", "cluster=1x2", "lora.dropout=0.1",
    ]  # fmt: skip
    train(compose_run([*shared, "train.save_minutes=0.01"]), tmp_path / "whole")
    assert len(manifest.checkpoints(tmp_path / "whole")) >= 2  # the last step's is there in any case

    def refused() -> None:
        """While a process runs it, no other may."""
        second = run_script("train.py", f"resume={tmp_path / 'killed'}", "zero=stage3")
        assert second.returncode == 2 and second.stderr.count("\n") == 1
        assert f"process {process_of(tmp_path / 'killed')} on {socket.gethostname()} is running it" in second.stderr

    run_killed(
        [*shared, "train.save_every=1"], tmp_path / "killed", KILLS, lambda done: refused() if done == 1 else None
    )
    assert differs(tmp_path / "killed", tmp_path / "whole") is None


def process_of(folder: Path) -> int:
    return int(json.loads((folder / ".holder.json").read_text())["pid"])


def test_an_attempt_without_a_checkpoint_leaves_no_lines(records: Path, tmp_path: Path) -> None:
    config = compose_run(settings(records, "train.epochs=1", "train.micro_batch_size=8"))
    train(config, tmp_path / "run")
    lines = metrics(tmp_path / "run")
    for name in ("checkpoints", "adapter"):
        shutil.rmtree(tmp_path / "run" / name)
    train(config, tmp_path / "run")
    assert metrics(tmp_path / "run") == lines

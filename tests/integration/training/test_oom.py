"""An out-of-memory error names the phase, the plan and what to try; or the micro-batch is halved and the run is resumed."""

import json
from pathlib import Path

import pytest
import torch

from bench.equivalence import compose_run
from bench.resume import metrics, train
from conftest import ROOT, run_script
from hydraft.config.schema import load_config
from hydraft.errors import OutOfMemory, Phase
from hydraft.plan import plan
from hydraft.runs import run_folder
from hydraft.system import hardware
from hydraft.training.oom import PASSES, OutOfMemoryHandler, Usage

# Read by every Python that starts with its folder on the path: a rank, forked from the server, gets so many more bytes.
LIMIT = """
import os, resource, sys

def limit():
    if "forkserver" in open("/proc/self/cmdline").read():
        status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
        most = int(status["VmData"].split()[0]) * 1024 + int(os.environ["RANK_MAY_TAKE"])
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

os.register_at_fork(after_in_child=limit)
"""


def test_the_micro_batch_is_halved_and_every_step_stays_what_it_was(tmp_path: Path) -> None:
    """The third step has long records: two ranks resume from the second with smaller micro-batches and the same losses."""
    asked = [
        {"instruction": f"{i}加一等于几？", "input": "", "output": f"等于{i + 1}。" * (60 if i >= 64 else 1)}
        for i in range(96)
    ]
    records = tmp_path / "records.json"
    records.write_text(json.dumps(asked, ensure_ascii=False), encoding="utf-8")
    overrides = [
        f"data.train={records}", "data.eval=null", "data.shuffle=false", "data.batching=padded", "quant=none", "cluster=1x2",
        "train.micro_batch_size=16", "train.max_steps=3", "train.save_every=2", "train.log_every=1", "optimizer.eps=1e-5",
        "zero.reduce_bucket_size=1000000", "zero.allgather_bucket_size=1000000",
    ]  # fmt: skip
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(LIMIT)
    limits = {"PYTHONPATH": f"{ROOT / 'src'}:{tmp_path / 'hook'}", "RANK_MAY_TAKE": str(520 << 20)}
    folder = tmp_path / "run"
    done = run_script("train.py", *overrides, "train.auto_micro_batch=true", f"hydra.run.dir={folder}", **limits)
    assert done.returncode == 0, done.stderr
    assert "OutOfMemory: in the " in done.stderr and "with the limit of a process (ulimit -d) at " in done.stderr
    assert "planned: " in done.stderr
    assert (
        "changed: train.micro_batch_size=8 (was 16)\nchanged: train.gradient_accumulation_steps=2 (was 1)"
        in done.stderr
    )
    assert "resuming from step-000002" in done.stderr
    after = load_config(folder / "config.yaml")
    assert after.train.micro_batch_size < 16 and after.global_batch_size == 32
    train(compose_run(overrides), tmp_path / "reference")
    losses, expected = ([line["loss"] for line in metrics(run)] for run in (folder, tmp_path / "reference"))
    assert losses == pytest.approx(expected, rel=1e-6)
    again = run_script("train.py", *overrides, "train.auto_micro_batch=true", f"hydra.run.dir={folder}")
    assert "nothing is left to do" in again.stdout  # with the micro-batch that the run has come to


def test_the_message_names_the_limit_and_what_to_try(records: Path, tmp_path: Path) -> None:
    config = compose_run(
        [f"data.train={records}", "data.eval=null", "train.micro_batch_size=64", "data.max_length=512"]
    )
    run_folder.create(tmp_path / "run", config, plan.make_plan(config, 24), hardware.detect())
    with pytest.raises(OutOfMemory) as caught, OutOfMemoryHandler(config, tmp_path / "run"):
        torch.empty(10**14, dtype=torch.uint8)
    said = str(caught.value)
    assert said.startswith("outside of training: 90.9 TiB more did not fit beside ")
    assert "activations, logits, gradients and buffers exceeded the plan by 90.9 TiB" in said
    assert "try a smaller model or more memory" in said  # nothing saves that much
    there = {"weights": 8 << 20, "adapter": 1 << 20, "optimizer": 1 << 20, PASSES: 900 << 20}
    usage = Usage(there, base=500 << 20, requested=200 << 20, available=1500 << 20, limit="of the machine's 1.5 GiB")
    tried = OutOfMemoryHandler(config, tmp_path / "run").explain(Phase.forward, usage)[1]
    assert tried is not None
    assert tried.startswith("train.micro_batch_size=") and "train.gradient_accumulation_steps=" in tried
    assert tried.endswith("or train.auto_micro_batch=true, which halves the micro-batch automatically")
    with pytest.raises(ValueError, match="as it was"), OutOfMemoryHandler(config, tmp_path / "run"):
        raise ValueError("as it was")

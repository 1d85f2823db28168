"""Runs with preference objectives: every topology trains the same, and a resumed run ends bit-equal."""

import json
import shutil
from pathlib import Path

import pytest

from bench import equivalence, resume
from bench.equivalence import TOLERANCE, apart, overrides_for, write_data
from hydraft.system import files
from hydraft.training.reference import NAME


@pytest.mark.parametrize(
    ("objective", "quant", "stage"), [("dpo", "nf4", "stage3"), ("kto", "none", "stage2")], ids=["dpo", "kto"]
)
def test_every_topology_trains_the_same(objective: str, quant: str, stage: str, tmp_path: Path) -> None:
    """Two of the cells of ``bench/equivalence.py --objective``."""
    data, more = write_data(tmp_path, objective), [f"objective={objective}", "train.max_steps=4"]
    reference = equivalence.train([*overrides_for("stage0", 1, quant, "fp32", data), *more], tmp_path / "reference")
    curve = equivalence.train([*overrides_for(stage, 2, quant, "fp32", data), *more], tmp_path / "run")
    assert max(apart(curve, reference)) <= TOLERANCE["fp32"]


def test_a_resumed_run_ends_bit_equal(tmp_path: Path) -> None:
    """The log-probabilities of the reference are in the run's folder: after step 0 no model has them."""
    overrides = [
        "objective=kto", "zero=stage3", "cluster=1x2", "lora.dropout=0.1", f"data.train={write_data(tmp_path, 'kto')}",
        f"data.eval={_few(tmp_path)}", "data.eval_max_new_tokens=2", "train.max_steps=4", "train.log_every=3", "train.save_every=2",
        "train.keep_last=9", "train.eval_every=2", "train.micro_batch_size=4",
    ]  # fmt: skip
    config = equivalence.compose_run(overrides)
    whole = tmp_path / "whole"
    resume.train(config, whole)
    resumed = resume.cut(whole, tmp_path / "cut", 2)
    shutil.rmtree(files.cache_folder("reference"))
    resume.train(config, resumed)
    assert resume.differs(resumed, whole) is None
    logged = [line for line in resume.metrics(whole) if "loss" in line]
    assert [line["step"] for line in logged] == [1, 3, 4]
    assert all({"chosen_reward", "rejected_reward", "reward_accuracy", "kl"} <= line.keys() for line in logged)
    shutil.rmtree(files.cache_folder("reference"))
    again = resume.cut(whole, tmp_path / "again", 2)
    (again / NAME).unlink()
    with pytest.raises(Exception, match=f"{NAME}: is needed to resume objective=kto"):
        resume.train(config, again)


def _few(folder: Path) -> Path:
    records = json.loads(write_data(folder, "kto").read_text())[:6]
    file = folder / "few.json"
    file.write_text(json.dumps(records, ensure_ascii=False))
    return file

"""The experiments on the shipped records: each learns its task. Margins are well inside what a run shows."""

import json
from pathlib import Path

import pytest

from conftest import run_script
from hydraft.system.source_tree import ROOT

AT_LEAST = {  # after training; before, none is above 0.15
    "zh_sentiment": {"sentiment_accuracy": 0.65},
    "zh_qa": {"qa_exact_match": 0.45, "qa_f1": 0.5},
    "zh_summary": {"summary_exact_match": 0.45, "summary_bleu4": 0.5, "summary_rouge1": 0.6, "summary_rougel": 0.6},
}


FASTER = ("quant=none", "zero=stage0", "train.eval_loss_only=true")
"""Halves the time of a run; the answers before and after training are scored all the same. One experiment is run as it is."""


@pytest.mark.parametrize("name", AT_LEAST)
def test_an_experiment_learns_its_task(name: str, tmp_path: Path) -> None:
    faster = () if name == "zh_sentiment" else FASTER
    done = run_script("train.py", f"experiment={name}", *faster, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run/result.json").read_text())
    before, after = result["before"], result["after"]
    for score, least in AT_LEAST[name].items():
        assert before[score] <= 0.15
        assert after[score] >= least
    task = name.removeprefix("zh_")
    assert all(score.startswith(task) for score in after if score not in ("loss", "exact_match", "empty"))
    assert result["best"]["loss"] <= after["loss"] < 0.5 * before["loss"]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    scored = [line["step"] for line in lines if "eval_loss" in line]
    assert len(scored) >= 4  # before, after each of three epochs or more
    assert scored[-1] == result["steps"]


def test_preference_training_goes_on_from_a_fine_tuned_adapter(tmp_path: Path) -> None:
    """A third of a default run is enough to start from. It does not unlearn its tasks for it."""
    start, tuned = tmp_path / "start", tmp_path / "tuned"
    done = run_script("train.py", "train.epochs=1", "data.eval=null", f"hydra.run.dir={start}")
    assert done.returncode == 0, done.stderr
    least = ("data.eval_max_new_tokens=1", f"lora.start={start}", f"hydra.run.dir={tuned}")
    done = run_script("train.py", "experiment=zh_preference", *least)
    assert done.returncode == 0, done.stderr
    result = json.loads((tuned / "result.json").read_text())
    before, after = result["before"], result["after"]
    assert before["reward_accuracy"] == 0.5
    assert after["reward_accuracy"] >= 0.8
    assert before["preference_accuracy"] <= 0.6
    assert after["preference_accuracy"] >= before["preference_accuracy"] + 0.2
    some = tmp_path / "tasks.json"  # of each task, every other record
    some.write_text(json.dumps(json.loads((ROOT / "data/zh_tasks.test.json").read_text())[::2], ensure_ascii=False))
    assert exact_match(tuned, some) >= exact_match(start, some) - 0.05


def exact_match(run: Path, records: Path) -> float:
    """The share of records that a run answers as their reference does."""
    output = run.with_suffix(".jsonl")
    done = run_script("infer.py", "mode=batch", f"run={run}", f"input={records}", f"output={output}")
    assert done.returncode == 0, done.stderr
    return float(json.loads(output.with_suffix(".summary.json").read_text())["scores"]["exact_match"])

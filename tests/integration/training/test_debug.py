"""``debug=``: one batch until it is learned, with a verdict; a profile of the operators; a run that shows that everything works."""

import gzip
import itertools
import json
from pathlib import Path

import pytest

from conftest import run_script
from hydraft.errors import ConfigError
from hydraft.runs import run_folder


def test_one_batch_is_learned(tmp_path: Path) -> None:
    done = run_script("train.py", "debug=overfit", "quant=none", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert result["debug"]["losses"] == [losses[0], losses[-1]] and result["steps"] == len(losses) < 300
    assert losses[-1] <= 0.05 < min(losses[:-1]) and result["debug"]["verdict"] in done.stdout
    tokens = [line["tokens"] for line in lines if "loss" in line]
    assert {after - before for before, after in itertools.pairwise(tokens)} == {tokens[0]}  # the same batch
    assert {line["learning_rate"] for line in lines if "loss" in line} == {0.003}


def test_a_batch_that_is_not_learned_fails(tmp_path: Path) -> None:
    typed = [
        "debug=overfit",
        "train.learning_rate=1e-7",
        "train.max_steps=3",
        "quant=none",
        f"hydra.run.dir={tmp_path}",
    ]
    done = run_script("train.py", *typed)
    assert done.returncode == 1
    assert (
        "not learned: loss " in done.stderr
        and "in 3 steps" in done.stderr
        and "train.learning_rate=1e-06" in done.stderr
    )


def test_a_profile_has_the_operators_of_three_steps(tmp_path: Path) -> None:
    done = run_script("train.py", "debug=profile", "quant=none", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0 and "steps 3 to 5" in done.stdout, done.stderr
    with gzip.open(tmp_path / "profile" / "trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    count = sum(event.get("name") == "aten::mm" and event.get("ph") == "X" for event in events)
    row = next(
        line for line in (tmp_path / "profile" / "operators.txt").read_text().splitlines() if " aten::mm " in line
    )
    assert count > 0 and row.split()[-1] == str(count)
    shown = next(line for line in done.stdout.splitlines() if "aten::mm " in line)
    assert f" {count / 3:,.0f} " in shown


def test_fast_writes_all_that_a_run_writes_and_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "outputs" / "mine"
    done = run_script("train.py", "debug=fast", "experiment=zh_qa", "quant=none", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 1 and result["before"]["loss"] != result["after"]["loss"]
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert (folder / "checkpoints" / "step-000001").is_dir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="outputs/mine is one of debug="):
        run_folder.find("last")

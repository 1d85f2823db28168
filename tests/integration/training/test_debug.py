"""``debug=``: one batch until it is learned, with a verdict; a profile of the operators; a run that shows that everything works."""

import gzip
import itertools
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
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


def test_a_profile_has_the_parts_and_operators_of_three_steps(tmp_path: Path) -> None:
    typed = ["debug=profile", "quant=none", "cluster=1x2", "zero=stage3", f"hydra.run.dir={tmp_path}"]
    done = run_script("train.py", *typed)
    assert done.returncode == 0 and "steps 3 to 5" in done.stdout, done.stderr
    trace = tmp_path / "profile" / "trace.json.gz"
    with gzip.open(trace, "rt") as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    count = sum(event["name"] == "aten::mm" for event in events)
    row = next(
        line for line in (tmp_path / "profile" / "operators.txt").read_text().splitlines() if " aten::mm " in line
    )
    assert count > 0 and row.split()[-1] == str(count)
    shown = next(line for line in done.stdout.splitlines() if "aten::mm " in line)
    assert f" {count / 3:,.0f} " in shown
    rows = {line.split("│")[1].strip(): line.split("│") for line in done.stdout.splitlines() if line.count("│") == 5}
    for part in ("data", "forward", "backward", "optimizer"):
        times = [event["dur"] for event in events if event["name"] == part and event["cat"] == "user_annotation"]
        assert len(times) == 3 and f"{sum(times) / 3000:,.1f} ms" == rows[part][2].strip(), part
    sent = [event["dur"] for event in events if event["name"].startswith("gloo:")]
    assert 0 < float(rows["a step"][4].split()[0]) <= sum(sent) / 3000 + 0.1  # those at the same time count once
    _opens(trace)


def _opens(trace: Path) -> None:
    """``hydraft trace`` gives the page the trace, and nothing to other hosts, and ends when it was read."""
    command = [sys.executable, "-m", "hydraft", "trace", str(trace.parent.parent)]
    environment = {name: value for name, value in os.environ.items() if "DISPLAY" not in name}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip().partition("url=")[2]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(urllib.request.Request(url, headers={"Host": "elsewhere"}), timeout=10)
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.read() == trace.read_bytes()
            assert answer.headers["Access-Control-Allow-Origin"] == "https://ui.perfetto.dev"
        assert process.wait(timeout=10) == 0


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

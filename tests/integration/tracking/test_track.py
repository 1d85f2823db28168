"""Dashboards: the logged values, read from their files without a network."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import config_of, run_script
from hydraft.config import rules
from hydraft.config.schema import save_config
from hydraft.errors import ConfigError
from hydraft.sweep.results import wandb_workspace
from hydraft.sweep.results.ledger import Job, Ledger, begin
from hydraft.system import files, program
from hydraft.tracking.factory import make_tracker
from hydraft.tracking.wandb import _git_remote

SWEEP = {"id": "f00dfeed", "name": "2026-11-22/rank", "axes": ["lora.r", "zero"], "direction": "minimize"}


def prepared(folder: Path, *overrides: str) -> Any:
    """The config of a run in a sweep, whose folder exists."""
    begin(folder.parent, SWEEP)
    config = config_of(*overrides)
    folder.mkdir()
    save_config(config, folder / "config.yaml")
    files.write_json(folder / "plan.json", {"steps": 3})
    return config


def _inspect(file: Path, *options: str) -> str:
    """What wandb's own program reads from the file of an offline run."""
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", *options, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_wandb_without_a_key_is_offline_and_complete(tmp_path: Path, records: Path) -> None:
    """One run for any number of ranks, in its sweep's group, with all values that a table sorts by, and no secrets."""
    begin(tmp_path / "sweep", SWEEP)
    folder = tmp_path / "sweep" / "r=8"
    done = run_script(
        "train.py", "tracker=wandb", "train.show_answers=1", "tracker.upload=true", "tracker.tags=[mine]", f"data.train={records}", f"data.eval={records}",
        "data.eval_limit=2", "train.max_steps=3", "train.log_every=1", "cluster=1x2", "cluster.slurm.setup=['export HF_TOKEN=hush']",
        f"hydra.run.dir={folder}", WANDB_API_KEY="", HOME=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    summary = json.loads(_inspect(file, "--summary"))
    config, metrics = summary["config"], json.dumps(summary)
    result = json.loads((folder / "result.json").read_text())
    assert config["lora"]["r"] == 8
    assert config["plan"]["steps"] == 3
    assert config["environment"]["packages"]["torch"]
    assert "hush" not in metrics
    assert [file.name for file in folder.rglob("*") if file.is_file() and b"hush" in file.read_bytes()] == [
        "config.yaml"
    ]
    assert str(result["objective"])[:8] in metrics
    for name in (
        "ranks/tokens_per_second 0",
        "ranks/tokens_per_second 1",
        "ranks/memory_gib 1",
        "train/memory_gib",
        "train/grad_norm",
        "train/learning_rate",
        "train/tokens",
        "eval/exact_match",
        "tokens_per_second",
        "after/loss",
        "before/loss",
    ):
        assert f'"{name}"' in metrics, name
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/answers*.table.json")
    shown = json.loads(table.read_text())
    assert shown["columns"] == ["prompt", "reference", "before", "after"]
    assert len(shown["data"]) == 1 and "加一等于几" in shown["data"][0][0] and shown["data"][0][0] in done.stdout
    command = done.stdout[done.stdout.index("wandb sync") :].replace("\n", "")
    sync = [str(Path(sys.executable).parent / "wandb"), "sync", "--dry-run", str(file.parent)]
    assert file.parent.name in command
    found = subprocess.run(sync, capture_output=True, text=True, check=True, env={**os.environ, "HOME": str(tmp_path)})
    assert "Would sync 1 run(s)" in found.stdout + found.stderr
    lines = _inspect(file)
    assert '"tiny-nf4-lora8-stage2 · r=8"' in lines
    for word in ('"rank-f00dfeed"', '"train"', '"mine"', '"sweep"', '"nf4"', "adapter-"):
        assert word in lines, word


@pytest.mark.parametrize(
    ("remote", "shown"),
    [
        ("https://ab12cd34:x-oauth-basic@github.com/o/r.git", "https://…@github.com/o/r.git"),
        ("https://ab12cd34@github.com/o/r.git", "https://…@github.com/o/r.git"),
        ("git@github.com:o/r.git", None),
    ],
)
def test_wandb_gets_the_git_remote_without_its_token(
    remote: str, shown: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (["init", "-q"], ["remote", "add", "origin", remote]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    assert _git_remote() == shown


def test_tensorboard_has_scalars_and_hyperparameters(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "sweep" / "run"
    tracker = make_tracker(prepared(folder, "tracker=tensorboard"), folder, rank=0)
    tracker.log({"loss": 2.0}, 1)
    tracker.log({"loss": 1.0}, 2)
    tracker.table("answers", ["prompt", "after"], [["a|b\nc", "✓ d"]])
    tracker.finish({"objective": 0.5})
    events = reader.EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 2.0), (2, 1.0)]
    assert events.Scalars("objective")[0].value == 0.5
    (text,) = events.Tensors("answers/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "| prompt | after |\n| --- | --- |\n| a\\|b c | ✓ d |"
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_mlflow_resumes_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sweep" / "run"
    config = prepared(folder, "tracker=mlflow")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "x.txt").write_text("x")
    first = make_tracker(config, folder, rank=0)
    first.log({"loss": 2.0}, 1)
    first.finish({})
    resumed = make_tracker(config, folder, rank=0, identity=first.identity)
    resumed.log({"loss": 1.0}, 2)
    resumed.table("answers", ["prompt"], [["问"]])
    resumed.upload(folder / "adapter")
    resumed.finish({"objective": 0.5})
    (run,) = mlflow.search_runs(experiment_names=["hydraft"], output_format="list")
    assert run.data.metrics == {"loss": 1.0, "objective": 0.5}
    assert (run.data.params["lora.r"], run.data.params["plan.steps"], run.data.tags["group"]) == (
        "8",
        "3",
        "rank-f00dfeed",
    )
    assert json.loads((Path(run.info.artifact_uri) / "answers.json").read_text())["data"] == [["问"]]
    assert (Path(run.info.artifact_uri) / "adapter" / "x.txt").exists()


def test_swanlab_without_a_key_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("swanlab")
    monkeypatch.setenv("SWANLAB_SAVE_DIR", str(tmp_path / "home"))
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)
    folder = tmp_path / "sweep" / "run"
    tracker = make_tracker(prepared(folder, "tracker=swanlab"), folder, rank=0)
    tracker.log({"loss": 2.0}, 1)
    tracker.finish({"objective": 0.5})
    assert tracker.identity
    assert list(folder.glob("swanlog/run-*/files/config.yaml"))


def test_only_rank_0_has_a_dashboard(tmp_path: Path) -> None:
    assert make_tracker(config_of("tracker=wandb"), tmp_path, rank=1).identity is None


@pytest.mark.parametrize("kind", ["tensorboard", "mlflow", "swanlab"])
def test_a_dashboard_that_is_not_installed_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"^tracker={kind} needs a package .*{re.escape(program.install(kind))}"):
        rules.check(config_of(f"tracker={kind}"), None)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [(["tracker.upload=true"], "tracker.upload"), (["tracker=tensorboard", "tracker.tags=[a]"], "tracker.tags")],
)
def test_unsupported_settings_of_a_dashboard_are_refused(overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        rules.check(config_of(*overrides), None)


def test_wandbs_page_for_a_sweep_is_built_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    begin(tmp_path / "sweep", SWEEP)
    chosen = [[f"lora.r={r}", f"zero={zero}"] for r in (4, 16) for zero in ("stage2", "stage3")]
    for job in Ledger(tmp_path / "sweep").add([Job(",".join(line), ",".join(line), line) for line in chosen]):
        prepared(tmp_path / "sweep" / job.name, *job.overrides, "tracker=wandb")
    found = json.loads(wandb_workspace.spec(tmp_path / "sweep"))
    text = json.dumps(found)
    assert found["project"] == "hydraft"
    run_set = found["spec"]["section"]["runSets"][0]
    assert run_set["sort"]["keys"] == [{"key": {"section": "summary", "name": "objective"}, "ascending": True}]
    assert run_set["filters"]["filters"][0]["value"] == "rank-f00dfeed"
    for part in (
        "config:lora.value.r",
        "config:zero.value.stage",
        "summary:objective",
        "Parallel Coordinates Plot",
        "eval/loss",
    ):
        assert part in text, part


def test_a_resumed_run_stays_one_offline_run_of_wandb(
    tmp_path: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    done = run_script(
        "train.py", "tracker=wandb", f"data.train={records}", f"data.eval={records}", "data.eval_limit=2", "data.eval_max_new_tokens=2", "train.max_steps=3",
        "train.log_every=1", "train.save_every=2", "cluster=1x2", f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shutil.rmtree(folder / "checkpoints/step-000003")  # as if it had been killed after step 3
    (first,) = folder.glob("wandb/offline-run-*/run-*.wandb")  # one run, however many ranks
    assert '"objective"' in _inspect(first, "--summary")
    more = run_script("train.py", f"resume={folder}", "train.max_steps=4", "cluster=1x2")
    assert more.returncode == 0, more.stderr
    (again,) = set(folder.glob("wandb/offline-run-*/run-*.wandb")) - {first}
    assert again.name == first.name  # the dashboard's id is in it
    records_of = [json.loads(line) for line in _inspect(again).splitlines()]
    steps = [record["history"]["step"]["num"] for record in records_of if record["type"] == "history"]
    assert steps == list(range(5))
    losses = [
        line["loss"] for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ]
    logged = [record["history"]["item"] for record in records_of if record["type"] == "history"]
    assert [item["train/loss"] for item in logged if "train/loss" in item] == losses

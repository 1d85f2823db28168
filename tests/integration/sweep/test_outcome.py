"""The results of a sweep: the best jobs, the settings that differ, and the command that repeats a job."""

import csv
import io
import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import folders
from conftest import config_of, run_script
from hydraft.config.schema import load_config
from hydraft.sweep.results import outcome, table, write
from hydraft.sweep.results.axes import Axis, number, of_configs, split
from hydraft.sweep.results.ledger import State


def test_the_best_comes_first_and_those_without_an_objective_last(tmp_path: Path) -> None:
    jobs = [{"lora.r": r} for r in (4, 8, 16, 32, 64, 128)]
    goals = {4: 0.9, 8: float("nan"), 16: 0.5, 32: 0.7}
    states = [State.done] * 4 + [State.failed, State.pending]
    folder = folders.make(tmp_path / "ranked", jobs, states, goal=lambda values: goals.get(values["lora.r"], 0.1))
    found = outcome.read(folder)
    assert [(o.values["lora.r"], o.rank) for o in found.outcomes] == [
        (16, 1),
        (32, 2),
        (4, 3),
        (8, 4),
        (128, None),
        (64, None),
    ]
    assert found.counts == "4 done, 1 pending, 1 failed"


def test_with_two_objectives_the_pareto_front_comes_first(tmp_path: Path) -> None:
    goals = {4: [0.9, 100.0], 8: [0.5, 50.0], 16: [0.6, 40.0], 32: [0.7, 80.0]}  # loss, tokens/s
    about = {"objective": ["held-out loss", "tokens/s"], "direction": ["minimize", "maximize"]}
    jobs = [{"lora.r": r} for r in goals]
    folder = folders.make(tmp_path / "front", jobs, goal=lambda values: goals[values["lora.r"]], about=about)
    found = outcome.read(folder)
    assert [(o.values["lora.r"], o.on_front) for o in found.outcomes] == [(8, True), (32, True), (4, True), (16, False)]


@pytest.mark.parametrize(
    ("values", "geometric"),
    [
        ((1e-4, 1e-3, 1e-2), True), ((4, 8, 16), True), ((1, 2, 3, 4), False), ((0.0, 0.1, 0.2), False), ((1, 64), True),
        ((2, 3), False), (("a", "b"), False), ((-1, 1, 10), False),
    ],
)  # fmt: skip
def test_an_axis_is_geometric_if_its_values_are(values: tuple[Any, ...], geometric: bool) -> None:
    assert Axis("x", values).geometric is geometric


def test_settings_that_a_group_changes_together_are_one_axis() -> None:
    configs = [
        {"zero.stage": stage, "zero.offload_optimizer": place, "lora.r": r, "seed": 1}
        for stage, place in ((2, "none"), (3, "cpu")) for r in (4, 8)
    ]  # fmt: skip
    assert [(axis.key, axis.values) for axis in of_configs(configs)] == [("zero.stage", (2, 3)), ("lora.r", (4, 8))]


def test_values_are_read_and_written_as_typed() -> None:
    assert split("+train.learning_rate=1e-4") == ("train.learning_rate", 1e-4)
    assert split("data.template='{instruction}'") == ("data.template", "{instruction}")
    assert split("data.only=[qa,summary]") == ("data.only", "[qa,summary]")
    assert split("~tracker") == ("tracker", None)
    assert [number(value) for value in (1e-4, 0.004, 3.0, 123456.0, 8, True)] == [
        "1e-4",
        "0.004",
        "3",
        "1.235e5",
        "8",
        "True",
    ]


def test_summary_csv_has_one_line_per_job(tmp_path: Path) -> None:
    jobs = [{"lora.r": r, "data.template": t} for r in (4, 8) for t in ("chat", "说,“{instruction}”\n")]
    folder = folders.make(tmp_path / "csv", jobs, [State.done] * 3 + [State.failed], {3: 'no "such" thing, 坏'})
    stream = io.StringIO()
    write.report(folder, Console(file=stream, width=60))
    assert max(len(line) for line in stream.getvalue().splitlines() if line[:1] in "┏┃│└") <= 60
    assert '1 failed: no "such" thing, 坏' in stream.getvalue()
    rows = list(csv.DictReader((folder / table.FILE).read_text(encoding="utf-8").splitlines(keepends=True)))
    assert [row["rank"] for row in rows] == ["1", "2", "3", ""]
    assert rows[0]["held-out loss"] == rows[0]["after/loss"] and rows[0]["lora.r"] == "8"
    assert rows[-1]["error"] == 'no "such" thing, 坏'
    assert shlex.split(rows[-1]["command"]) == ["python", "train.py", "lora.r=8", "data.template=说,“{instruction}”\n"]


def test_a_sweep_of_hydras_own_launcher_is_read_from_its_folders(tmp_path: Path, records: Path) -> None:
    """It has no ledger: results are read from each run's folder, and the command of the best job from its config."""
    folder = tmp_path / "basic"
    done = run_script(
        "train.py", "-m", "hydra/launcher=basic", "hydra/sweeper=basic", "hydra.sweep.subdir=${hydra.job.num}", "lora.r=2,4",
        "zero=stage3", "train.learning_rate=1e-3", "train.max_steps=1", f"data.train={records}", "data.eval=null",
        f"hydra.sweep.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "0" / "result.json").unlink()  # as if it had been killed
    done = run_script("src/hydraft/__main__.py", "report", str(folder))
    assert done.returncode == 0, done.stderr
    assert "1 done, 1 interrupted" in done.stdout
    found = outcome.read(folder)
    assert [(axis.key, axis.values) for axis in found.axes] == [("lora.r", (2, 4))]
    assert found.objectives == ["training loss"]
    assert found.best is not None
    repeated = config_of(*shlex.split(found.best.command)[2:])
    saved = load_config(found.best.folder / "config.yaml")
    assert {**asdict(repeated), "train": None, "model": None} == {**asdict(saved), "train": None, "model": None}
    assert repeated.train.learning_rate == saved.train.learning_rate
    assert (folder / "report.html").stat().st_size > 1_000_000
    assert json.loads((found.best.folder / "result.json").read_text())["objective"] == found.best.objectives[0]


def test_a_missing_sweep_is_refused(tmp_path: Path) -> None:
    done = run_script("src/hydraft/__main__.py", "report", str(tmp_path / "nothing"))
    assert (done.returncode, done.stderr) == (2, f"hydraft report: {tmp_path / 'nothing'}: no such folder\n")

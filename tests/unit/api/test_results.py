"""Runs and sweeps in Python, read from folders as real ones write them."""

import csv
import json
import os
import socket
from pathlib import Path

import pytest

import hydraft
from bench.equivalence import compose_run
from folders import loss_of, make, run
from hydraft.api import sweeps
from hydraft.errors import ConfigError
from hydraft.sweep.results import reading, table
from hydraft.sweep.results.ledger import State


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    values = {"lora.r": 4, "train.learning_rate": 1e-3}
    run(tmp_path / "one", compose_run([]), values, State.done, loss_of(values), steps=20)
    return tmp_path / "one"


def test_metrics_are_the_lines_of_the_file_by_step(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')  # cut off
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()[:-1]]
    found = hydraft.Run(folder).metrics
    assert found.index.name == "step" and list(found.index) == list(range(21))
    for line in lines:
        for name, value in line.items():
            assert name == "step" or found.loc[line["step"], name] == value
    assert found["eval_loss"].notna().sum() == 3


def test_a_run_tells_its_state(folder: Path) -> None:
    found = hydraft.Run(folder)
    assert (found.status, found.config.lora.r, found.adapter, found.error) == ("completed", 4, None, None)
    assert found.objective == found.result["objective"] and found.result["steps"] == 20
    (folder / ".holder.json").write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    assert found.status == "running"
    (folder / ".holder.json").write_text(
        json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1})
    )  # none has that id
    (folder / "result.json").unlink()
    assert found.status == "ended" and found.result == {} and found.objective is None and found.answers.empty
    (folder / "adapter").mkdir()
    cause = "ValueError: <b>\n no"
    (folder / "result.json").write_text(json.dumps({"status": "failed", "error": {"rank": 0, "cause": cause}}))
    assert found.adapter == folder / "adapter" and found.error == "ValueError: <b> no"
    assert "&lt;b&gt; no" in found._repr_html_()


def test_runs_are_listed_and_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="not a run's folder"):
        hydraft.Run(folder.parent)
    with pytest.raises(ConfigError, match="no such folder"):
        hydraft.runs("nowhere")
    assert hydraft.runs(folder.parent) == [hydraft.Run(folder)]
    monkeypatch.chdir(folder.parent)
    assert hydraft.runs() == []
    folder.parent.joinpath("outputs").mkdir()
    folder.rename("outputs/one")
    assert hydraft.runs() == [hydraft.Run()] == [hydraft.Run("outputs/one")]


def test_a_sweep_has_the_table_of_its_csv(tmp_path: Path) -> None:
    jobs = [{"lora.r": rank, "quant": quant} for rank in (4, 8) for quant in ("none", "nf4")]
    place = make(
        tmp_path / "s",
        jobs,
        [State.done, State.done, State.failed, State.pending],
        goal=lambda values: 1 / values["lora.r"],
    )
    found = hydraft.Sweep(place)
    with table.write(reading.read(place)).open() as file:
        head, *rows = csv.reader(file)
    assert list(found.table.columns) == head
    values = found.table.astype(object).where(found.table.notna(), "")
    assert [[str(value) for value in row] for row in values.to_numpy().tolist()] == rows
    assert found.best.folder.parent == place and found.best == found.runs[0] and len(found.runs) == 3
    assert found.status == "2 done, 1 pending, 1 failed" and found.report.read_text().startswith("<!")
    assert "<table" in found._repr_html_()


def test_a_sweep_without_a_result_has_no_best(tmp_path: Path) -> None:
    place = make(tmp_path / "s", [{"lora.r": 4}, {"lora.r": 8}], [State.failed, State.pending])
    with pytest.raises(ConfigError, match="no job has a result"):
        _ = hydraft.Sweep(place).best
    with pytest.raises(ConfigError):
        hydraft.Sweep(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("given", "named", "message"),
    [
        (["-m"], {}, "flag"),
        (["hydra.sweep.dir=x"], {}, "folder="),
        (["mode=plan"], {}, "hydraft.plan"),
        (["sweep.name=a"], {"folder": "b"}, "leave one of them out"),
        (["sweep.resume=nowhere"], {}, "no such sweep"),
        ([], {"params": {"lora.r": 4}}, "give a list"),
        ([], {"params": {"lora.r": []}}, "no value"),
        ([{"lora.r": [4]}], {}, "params="),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused(given: list[str], named: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hydraft.sweep(hydraft.compose(), *given, **named)  # type: ignore[arg-type]


def test_values_of_a_sweep_are_written_for_hydra() -> None:
    assert sweeps._values("lora.r", [4, 8]) == "4,8"
    assert (
        sweeps._values("data.template", ["{instruction}", "a, b {instruction}"])
        == "'{instruction}','a, b {instruction}'"
    )
    assert sweeps._values("lora.target_modules", [["q_proj"], ["q_proj", "v_proj"]]) == "[q_proj],[q_proj,v_proj]"
    assert sweeps._values("train.learning_rate", "interval(1e-4, 1e-3)") == "interval(1e-4, 1e-3)"

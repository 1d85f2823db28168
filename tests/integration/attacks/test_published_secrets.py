"""What is published of a run holds no secret of its command, its config or its errors."""

import json
import logging
import sys
from pathlib import Path

import pytest

import folders
from conftest import config_of
from hydraft.config import cli
from hydraft.config.schema import load_config, saved
from hydraft.errors import ConfigError, RunFailed
from hydraft.infer.export import card_run
from hydraft.launch import run as launch
from hydraft.launch import run_log
from hydraft.plan import plan
from hydraft.runs import run_folder
from hydraft.sweep import job_status
from hydraft.sweep.results import outcome, table, write
from hydraft.sweep.results.ledger import State
from hydraft.system import hardware
from hydraft.system.plain_console import PlainConsole
from hydraft.tracking import metadata, names

SECRET = "hunter2Zz9"
SETUP = f"cluster.slurm.setup=['export MY_PASS={SECRET}','curl https://me:{SECRET}@h/x?sig={SECRET}']"
ARGUMENTS = ["train.py", SETUP, "--token", SECRET, f"+x.api_key={SECRET} {SECRET}", "lora.r=4"]


def test_the_files_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ARGUMENTS)
    machine = hardware.detect()
    config, folder = (
        plan.resolve(config_of(SETUP, "tracker=wandb", f"tracker.tags=['TOKEN={SECRET}']"), machine),
        tmp_path / f"token={SECRET}",
    )
    run_folder.create(folder, config, plan.make_plan(config, 24, machine), machine)
    run_folder.keep_private(folder)
    with run_log.writing(folder):
        logging.getLogger("hydraft.launch").error("ssh h 'export TOKEN=%s' failed", SECRET)
        launch._write_result(folder, 0.0, "failed", error={"cause": f"RuntimeError: --password {SECRET}", "rank": 0})
    for file in folder.iterdir():
        assert (SECRET in file.read_text()) is (file.name == "config.yaml"), file.name
    assert (folder / "config.yaml").stat().st_mode & 0o777 == 0o600
    assert load_config(folder / "config.yaml") == config  # the run is restarted from it
    assert json.loads((folder / "environment.json").read_text())["command"][-1] == "lora.r=4"
    shown = json.dumps([metadata.settings(config, folder), metadata.tags(config, False), names.title(config, folder)])
    assert SECRET not in shown
    assert "lora" in shown
    with metadata.published_arguments():
        assert SECRET not in " ".join(sys.argv)
    assert sys.argv is ARGUMENTS
    card = card_run.command(folder)
    assert SECRET not in card
    assert "lora.r=4" in card


def test_an_ordinary_config_stays_readable(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(saved(config_of()))
    before = file.stat().st_mode
    run_folder.keep_private(tmp_path)
    assert file.stat().st_mode == before


def test_the_report_of_a_sweep(tmp_path: Path) -> None:
    jobs = [{"lora.r": r, "+x.api_key": f"{SECRET}{r}", "x.url": f"https://u:{SECRET}@h"} for r in (4, 8)]
    about = {"command": ["train.py", "-m", *ARGUMENTS[1:]]}
    errors = {1: job_status.one_line(RunFailed(f"rank 0 failed: curl -H 'Authorization: Basic {SECRET}'"))}
    folder = folders.make(tmp_path / "sweep", jobs, [State.done, State.failed], errors, about)
    with (tmp_path / "out").open("w") as out:
        write.report(folder, PlainConsole(file=out, width=400))
    for file in (folder / "report.html", folder / table.FILE, tmp_path / "out"):
        text = file.read_text()
        assert SECRET not in text, file.name
        assert "lora.r=4" in text or "lora.r" in text
    best = outcome.read(folder).best
    assert best is not None
    assert best.command == "python train.py lora.r=4 '+x.api_key=…' 'x.url=https://…@h'"


@pytest.mark.parametrize("error", [ConfigError(f"x: TOKEN='{SECRET}'"), RunFailed(f"its command: --token {SECRET}")])
def test_errors_on_the_terminal(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: object) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert cli.run(failing, "train") in (1, 2)
    said = capsys.readouterr().err
    assert SECRET not in said
    assert "…" in said

"""Folders whose names mean something to a shell, to Hydra, to rich, to matplotlib, to HTML or to Slurm: shown and used as they are."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import folders
from conftest import ROOT, config_of
from hydraft.config import mistakes, printed
from hydraft.config.choices import Launcher
from hydraft.config.cluster import ClusterConfig
from hydraft.config.schema import save_config
from hydraft.errors import ConfigError
from hydraft.launch import run as launch
from hydraft.launch.slurm import job_script, monitor
from hydraft.runs import loss_plot, resume
from hydraft.sweep.results import outcome, write
from hydraft.sweep.results.live_table import Live
from hydraft.system.console import Screen
from hydraft.system.plain_console import PlainConsole
from hydraft.tracking.base import Tracker
from hydraft.training import report

NAMES = [
    "x[/]y", "a [bold] 'q'", ":smile: [red]", "a b\nc", "[a, b]", "{a: b}", "'a'", '"a"', "$HOME `id` $(id)", "${now:%Y}", "a,b=c", "a\\",
    "-x", "null", "choice(a,b)", "~*?#;&|<>", "é密", "it's \"so\"", "$x_{$", "</script><b>",
]  # fmt: skip

RESULT = {
    "before": {"loss": 2.0}, "after": {"loss": 1.0}, "best": {}, "tokens": 1, "train_seconds": 1.0, "train_loss": 1.0, "steps": 1,
    "trained_parameters": 1, "peak_memory_bytes": 1, "peak_memory_scoring_bytes": None, "peak_memory_loading_bytes": None,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_run_in_a_folder_of_this_name_is_shown(name: str, tmp_path: Path) -> None:
    screen = Screen(os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY), visible=True)
    with screen:
        screen.phase(name, 2)
        screen.advance(1, name, line=True)
        report.show_result(screen, Path(name), RESULT, 1.0, Tracker(config_of(), tmp_path))
    shown = (tmp_path / "out").read_text()
    assert shown.expandtabs().count(name) >= 4 or "\n" in name or "\t" in name
    words = shlex.split(shown.partition("try it: ")[2])
    assert words[:2] == ["python", "infer.py"]
    assert printed._read(words[2], commas=True) == name


@pytest.mark.parametrize("terminal", [False, True])
def test_a_bar_has_no_markup(terminal: bool, tmp_path: Path) -> None:
    screen = Screen(os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY), visible=True)
    screen.console._force_terminal = terminal
    screen.progress.disable = not terminal
    with screen:
        screen.phase("x[/]y [bold]", 2)
        screen.advance(1, ":smile: [/]")
        screen.say("[/]")
    shown = (tmp_path / "out").read_text()
    assert "x[/]y [bold]" in shown
    assert (":smile: [/]" in shown) is terminal


def test_only_plain_consoles_are_made() -> None:
    made = [f"{file}" for file in (ROOT / "src").rglob("*.py") if " Console(" in file.read_text()]
    assert made == []


def test_a_printed_command_means_the_folder_when_it_is_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "x[" / "]y 'q' \"d\" $HOME `id` ${now:%Y}, {a: b}\n\\z"
    folder.mkdir(parents=True)
    config = config_of("train.max_steps=7")
    save_config(config, folder / "config.yaml")
    with pytest.raises(ConfigError) as refused:
        resume.same(config_of("train.max_steps=8"), folder)
    line = str(refused.value).partition("or resume it: ")[2]
    command = f'"{sys.executable}" train.py {line} mode=plan'
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert " 7 steps" in done.stdout


@pytest.mark.parametrize("key", ["resume", "hydra.run.dir"])
def test_every_printed_override_means_its_text(key: str) -> None:
    for name in [*NAMES, " a ", "a\\'b", "???", "a\\${b}", "1e3", "outputs/2026-01-01/09-00-00"]:
        (word,) = shlex.split(printed.override(key, name))
        assert printed._read(word, commas=True) == printed._read(word, commas=False) == name
    assert printed.override(key, "outputs/2026-01-01/模型") == f"{key}=outputs/2026-01-01/模型"


def test_a_suggested_override_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for typed, meant in (
        ("model=./my model", "model=auto model.path='./my model'"),
        ("data=my $(x).json", "data.train='my $(x).json'"),
        ("resume_from_checkpoint=a b", "resume='a b'"),
    ):
        with pytest.raises(ConfigError) as refused:
            mistakes.refuse([typed], "train")
        assert str(refused.value).endswith(f"did you mean {meant}?")


def test_a_sweep_in_a_folder_with_markup_is_reported(tmp_path: Path) -> None:
    folder = folders.make(
        tmp_path / "x[" / "]y [bold] :smile:", [{"data.template": "[/]{prompt}"}, {"data.template": "$x_{$"}]
    )
    with (tmp_path / "out").open("w") as out:
        write.report(folder, PlainConsole(file=out, width=300))
        with Live(folder, console=PlainConsole(file=out, width=300, force_terminal=True)):
            pass
    shown = (tmp_path / "out").read_text()
    assert f"{folder}: 2 done" in shown
    assert "[/]{prompt}" in shown
    assert shown.count("]y [bold] :smile:") >= 4
    best = outcome.read(folder).best
    assert best is not None
    assert shlex.split(best.command)[:2] == ["python", "train.py"]


def test_a_plot_has_no_mathematics(tmp_path: Path) -> None:
    assert loss_plot.draw_loss(tmp_path, "$\\frac$ a_b $").is_file()


def test_a_batch_script_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, does in (
        ("sinfo", "true"), ("sbatch", "echo 7"), ("python3", "for word; do printf '%s\\0' \"$word\"; done"),
    ):  # fmt: skip
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    setup = "cluster.slurm.setup=['export HF_TOKEN=hush']"
    config = config_of("cluster=slurm_2x4", f"cluster.python={programs / 'python3'}", setup)
    for name in (name for name in NAMES if "\\" not in name and "\n" not in name):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "job.sbatch").write_text("of an earlier attempt, and longer" * 99)
        assert monitor._submit(config, folder, quiet=False) == "7"
        assert (folder / "job.sbatch").stat().st_mode & 0o777 == 0o600
        done = subprocess.run(["bash", str(folder / "job.sbatch")], capture_output=True, text=True, check=True)
        assert done.stdout.split("\0")[:-1] == ["-u", "-m", "hydraft.launch.slurm_job", str(folder.resolve())]
        path = str(folder.resolve()).replace("%", "%%").replace('"', '\\"')  # in sbatch's quotes only \ means something
        assert f'#SBATCH --output="{path}/slurm.log"' in (folder / "job.sbatch").read_text().split("\n")


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "a\rb"])
def test_a_folder_that_slurm_cannot_use_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ConfigError, match=r"(?s)^hydra\.run\.dir=.* give another folder$"):
        launch.hold(ClusterConfig(launcher=Launcher.slurm), tmp_path / name)
    assert not (tmp_path / name).exists()


def test_an_option_of_slurm_is_one_line() -> None:
    assert [job_script._option_value("comment", text) for text in ("a", 'a b"', "#x")] == ["a", '"a b\\""', '"#x"']
    with pytest.raises(ConfigError, match=r"^cluster\.slurm\.options: comment has a line break"):
        job_script._option_value("comment", "a\n#SBATCH --uid=0")


def test_rich_alone_would_fail() -> None:
    with pytest.raises(Exception, match="closing tag"):
        Console(file=None, quiet=True).render_str("x[/]y")

"""Earlier names of settings are understood wherever they may stand."""

from pathlib import Path

import pytest

import hydraft
from conftest import ROOT, config_of
from hydraft.config import agent_form, cli, help, moved
from hydraft.config.optimizer import OptimizerConfig, OptimizerKind
from hydraft.config.schema import load_config, save_config, saved
from hydraft.sweep.results import axes, config_text
from hydraft.sweep.results.ledger import ADDED, key_of

BEFORE = ROOT / "tests/fixtures/written_before"


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moved, "_noticed", set())


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an experiment that an earlier version read."""
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text(
        "# @package _global_\n# Mine.\ntrain: {weight_decay: 0.3, betas: [0.8, 0.9], max_steps: 3}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert moved.overrides(["++train.eps=1e-6", "train.weight_decay=0,0.1", "train.epochs=2"]) == [
        "++optimizer.eps=1e-6", "optimizer.weight_decay=0,0.1", "train.epochs=2",
    ]  # fmt: skip
    assert capsys.readouterr().err.splitlines() == [
        "notice: train.eps is now optimizer.eps", "notice: train.weight_decay is now optimizer.weight_decay",
    ]  # fmt: skip
    assert moved.override(agent_form.plain("--train.weight_decay=0.1", "train")) == "optimizer.weight_decay=0.1"
    assert cli.params({"train.weight_decay": "0,0.1"}) == ["optimizer.weight_decay=0,0.1"]
    assert config_of("train.betas=[0.7,0.8]").optimizer.betas == [0.7, 0.8]
    assert hydraft.compose("train.eps=1e-6").optimizer.eps == 1e-6


def test_a_file_of_settings(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = hydraft.compose("experiment=mine")
    assert (config.optimizer.weight_decay, config.optimizer.betas, config.train.max_steps) == (0.3, [0.8, 0.9], 3)
    assert "notice: train.weight_decay in a file of conf/ is now optimizer.weight_decay" in capsys.readouterr().err
    assert hydraft.compose("experiment=mine", "optimizer.weight_decay=0.2").optimizer.weight_decay == 0.2
    assert hydraft.compose("experiment=mine", "optimizer=lion").optimizer.betas == [0.9, 0.99]


def test_the_config_of_an_earlier_run(tmp_path: Path) -> None:
    text = (BEFORE / "run/nf4/config.yaml").read_text().replace("@ROOT@", str(ROOT))
    (tmp_path / "config.yaml").write_text(text)
    assert load_config(tmp_path / "config.yaml").optimizer == OptimizerConfig(eps=1e-5)
    assert config_text.settings(text)["optimizer.eps"] == 1e-5
    assert axes.split("train.weight_decay=0.1") == ("optimizer.weight_decay", 0.1)


def test_a_job_keeps_the_identity_that_an_earlier_sweep_gave_it(tmp_path: Path) -> None:
    """Its config has no line that they did not write, and their lines in their order."""
    config = config_of("optimizer.weight_decay=0.1")
    text = saved(config, leave_out=ADDED, earlier=True)
    assert "\noptimizer:" not in text
    assert "  weight_decay: 0.1\n  betas:\n  - 0.9\n  - 0.999\n  eps: 1.0e-08\n  max_grad_norm: " in text
    other = config_of()
    other.optimizer.kind = OptimizerKind.lion
    assert len({key_of(one) for one in (config, config_of(), other)}) == 3
    save_config(other, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == other


def test_help_finds_an_earlier_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert help.print_help("train", ["--help", "train.betas"]) == 0
    assert "optimizer.betas" in capsys.readouterr().out

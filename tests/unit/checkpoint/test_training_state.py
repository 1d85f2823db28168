"""state.json of a checkpoint: files of earlier versions are read, and those of newer versions are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import ROOT
from hydraft.checkpoint.training_state import FILE, VERSION, TrainingState
from hydraft.errors import ConfigError

EARLIER = ROOT / "tests/fixtures/written_before/run/none/checkpoints/step-000002"
STATE = TrainingState(
    step=4, records="a1", epoch=0.5, adam_step=3, schedule_step=3, loss_sums=[0.5, 0.25], scores={"2": {"loss": 1.5}},
    tracker="id", divergence={"losses": [1.0], "zeros": 0}, skipped_steps=[2],
)  # fmt: skip


def test_a_state_round_trips(tmp_path: Path) -> None:
    STATE.save(tmp_path)
    assert TrainingState.load(tmp_path) == STATE
    values = json.loads((tmp_path / FILE).read_text())
    assert values["version"] == VERSION and values["health"] == STATE.divergence and values["pass_over"] == [2]


def test_a_state_of_an_earlier_version_is_read() -> None:
    values = json.loads((EARLIER / FILE).read_text())
    assert "version" not in values
    state = TrainingState.load(EARLIER)
    assert state.version == 0 and state.step == 2
    assert state.divergence == values["health"] and state.loss_sums == values["loss_sums"]


def test_missing_values_have_defaults_and_unknown_ones_are_ignored(tmp_path: Path) -> None:
    values = {"step": 4, "records": "a1", "epoch": 0.5, "adam_step": 4, "another": 1}
    (tmp_path / FILE).write_text(json.dumps(values))
    assert TrainingState.load(tmp_path) == TrainingState(step=4, records="a1", epoch=0.5, adam_step=4, version=0)


def test_a_state_of_a_newer_version_is_refused_on_one_line(tmp_path: Path) -> None:
    replace(STATE, version=VERSION + 1).save(tmp_path)
    with pytest.raises(ConfigError, match="newer version of hydraft") as refusal:
        TrainingState.load(tmp_path)
    assert "\n" not in str(refusal.value) and str(tmp_path) in str(refusal.value)

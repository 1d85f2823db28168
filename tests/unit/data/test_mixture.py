"""Which records a run trains and scores."""

import json
from pathlib import Path

import pytest

from conftest import config_of
from hydraft.data import mixture
from hydraft.errors import ConfigError


def tasks(config_overrides: str) -> tuple[list[str | None], list[str | None]]:
    """The tasks of the training records and of the held-out records, in order."""
    data = config_of(config_overrides).data
    return [c.task for c in mixture.training(data, 0)], [c.task for c in mixture.held_out(data, 0)]


def test_only_records_of_the_chosen_tasks_are_trained_and_scored() -> None:
    everything, all_held_out = tasks("data.only=[]")
    for names in (["qa"], ["sentiment", "summary"]):
        trained, held_out = tasks(f"data.only=[{','.join(names)}]")
        assert trained == [task for task in everything if task in names]
        assert held_out == [task for task in all_held_out if task in names]


def test_a_limit_applies_to_the_remaining_records() -> None:
    data = config_of("data.only=[qa]", "data.eval_limit=10").data
    assert [c.task for c in mixture.held_out(data, 0)] == ["qa"] * 10


def test_a_task_that_no_record_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.only=poem: no record of data\.train .*qa, sentiment, summary, transl"
    ):
        tasks("data.only=[qa,poem]")
    file = tmp_path / "records.json"
    file.write_text(json.dumps([{"instruction": "问", "output": "答"}]), encoding="utf-8")
    data = config_of("data.only=[qa]", f"data.eval={file}").data
    with pytest.raises(ConfigError, match=r"data\.only=qa: no record of data\.eval .*'task' key"):
        mixture.held_out(data, 0)

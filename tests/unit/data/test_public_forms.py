"""Each published form of a record is read, or refused, as the tables in docs/data.md and docs/zh/data.md say."""

import json
from typing import Any

import pytest
import record_forms
import yaml

from hydraft.config.choices import Format
from hydraft.data.named import RecordSettings
from hydraft.data.record_reader import RecordReader
from hydraft.data.records import Conversation
from hydraft.errors import ConfigError


def reader(needs: list[str]) -> RecordReader:
    """A reader with these overrides."""
    given = {name: yaml.safe_load(value) for name, _, value in (each.partition("=") for each in needs)}
    settings = RecordSettings(given.get("data.columns", {}), given.get("data.labels", []))
    return RecordReader("my.json", Format(given.get("data.format", "auto")), settings)


def shown(record: Conversation) -> Any:
    """A record as the fixture has it."""
    if record.plain is not None:
        return record.plain
    turns = []
    for turn in record.turns:
        role = turn.role if turn.trained else "untrained"
        for call in turn.tool_calls:
            turns.append(["call", f"{call['name']} {json.dumps(call['arguments'])}"])
        if turn.content:
            turns.append([role, f"({turn.reasoning}) {turn.content}" if turn.reasoning else turn.text])
    return turns


@pytest.mark.parametrize("form", record_forms.FORMS, ids=lambda form: form["name"])
def test_a_published_form_is_read_or_refused_as_the_table_says(form: dict[str, Any]) -> None:
    if "refused" in form:
        with pytest.raises(ConfigError) as refusal:
            reader([]).record(form["record"], "my.json, record 1", 1)
        assert form["refused"] in str(refusal.value)
        assert "\n" not in str(refusal.value)
    if "reads" not in form:
        return
    used = reader(form.get("needs", []))
    record = used.record(form["record"], "my.json, record 1", 1)
    assert isinstance(record, Conversation)
    assert shown(record) == form["reads"]
    assert [tool["function"]["name"] for tool in record.tools] == form.get("tools", [])
    unread = [note for note in used.notes() if "not read" in note]
    noted = form.get("noted", [])
    listed = f"{', '.join(map(repr, noted))} {'is' if len(noted) == 1 else 'are'}"
    assert unread == ([f"my.json: {listed} not read (data.columns)"] if noted else [])


@pytest.mark.parametrize("language", record_forms.PAGES)
def test_the_documents_have_the_table(language: str) -> None:
    assert record_forms.table(language) in record_forms.PAGES[language].read_text(encoding="utf-8")

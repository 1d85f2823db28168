"""One bad record does not end a file: it is named, or with data.on_bad_record=skip skipped, the same in every process."""

import json
from pathlib import Path

import pytest

from conftest import config_of
from hydraft.config.choices import OnBadRecord
from hydraft.data import mixture
from hydraft.data.load import Records, load
from hydraft.data.named import RecordSettings
from hydraft.errors import ConfigError
from hydraft.plan import preflight
from hydraft.system.hardware import detect

GOOD = '{"instruction": "问", "output": "答"}'

BAD = {
    "surrogate": ('{"instruction": "问\\ud83d", "output": "答"}', r"record 2: .*has half of a character \(\\ud83d"),
    "surrogate in a list": ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\\udc00"}]}', "half of a"),
    "bytes": (b'{"instruction": "\xe9\x97", "output": "x"}', r"record 2: .*is not UTF-8 text \(has the byte 0xe9\)"),
    "number": ('{"instruction": "问", "output": ' + "9" * 5000 + "}", "record 2: 'output' must be text, and is a (float|number)"),
    "infinity": ('{"instruction": "问", "output": Infinity}', "'output' must be text, and is a (float|number)"),
    "NaN": ('{"instruction": "问", "output": NaN}', "'output' is empty"),
    "broken": ('{"instruction": "问", "output', r"line 2: not JSON \(Unterminated string"),
    "control": ('{"instruction": "问\t", "output": "x"}', r"line 2: not JSON \(Invalid control character"),
    "two on a line": (GOOD + " and", r"line 2: not JSON \(Expecting value"),
    "keys": ('{"instruction": "问", "output": "一", "output": "二"}', "line 2: has the key 'output' twice, with different values"),
    "inner keys": ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "has the key 'content' twice"),
    "deep": ('{"instruction": "问", "output": "x", "a": ' + "[" * 50000 + "]" * 50000 + "}", "line 2: nested too deeply"),
    "list": ('["问", "答"]', "record 2: must be an object, and is a list"),
    "null": ("null", "record 2: must be an object, and is null"),
    "empty": ('{"instruction": "问", "output": " "}', "record 2: 'output' is empty"),
    "assistant first": ('{"messages": [{"role": "assistant", "content": "a"}]}', "record 2: "),
}  # fmt: skip

SKIP = RecordSettings(on_bad=OnBadRecord.skip)


def write(file: Path, *rows: str | bytes) -> Path:
    file.write_bytes(b"".join((row.encode() if isinstance(row, str) else row) + b"\n" for row in rows))
    return file


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_named_with_the_setting_or_skipped(tmp_path: Path, kind: str) -> None:
    bad, reason = BAD[kind]
    good = (
        '{"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}'
        if "messages" in str(bad)
        else GOOD
    )
    file = write(tmp_path / "a.jsonl", good, bad, good, "", good)
    with pytest.raises(ConfigError, match=reason) as refusal:
        load(str(file), "data.train")
    assert str(refusal.value).startswith(f"data.train={file}, ")
    assert str(refusal.value).endswith("; data.on_bad_record=skip skips such records")
    records = Records(str(file), "data.train", settings=SKIP)
    at = 1 if kind == "two on a line" else 0  # its first value is a record
    assert [record.number for record in records] == [1, *([2] if at else []), 3 + at, 4 + at]
    (note,) = records.notes
    assert note.startswith(f"data.train={file}: data.on_bad_record=skip: 1 of {4 + at} records skipped: ")


def test_what_is_harmless_is_read(tmp_path: Path) -> None:
    unused = (
        '{"instruction": "问\\ud83d\\ude00", "output": "答", "seed": '
        + "9" * 5000
        + ', "score": NaN, "other": "\\ud83d"}'
    )
    file = write(
        tmp_path / "a.jsonl",
        unused,
        '{"instruction": "问", "input": NaN, "output": "答", "id": 1}',
        '{"instruction": "问", "output": "答", "id": 1}',
    )
    first, second, third = load(str(file), "data.train")
    assert first.conversations[0].turns[0].text == "问😀"
    assert second == third  # NaN is no value, and an id is no one's own


def test_what_is_unusual_is_said_once(tmp_path: Path) -> None:
    twice = '{"instruction": "问", "output": "答", "output": "答"}'
    records = Records(str(write(tmp_path / "a.jsonl", GOOD, "\ufeff" + GOOD, twice, *[twice] * 20)), "data.train")
    assert records.notes == [
        f"data.train={tmp_path}/a.jsonl, record 2: follows a byte order mark in the middle of the file",
        f"data.train={tmp_path}/a.jsonl, records 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, …: has the key 'output' twice, with the same value",
    ]
    listed = tmp_path / "b.json"
    listed.write_text(f"[{GOOD}]\ufeff[{GOOD}]", encoding="utf-8")
    assert "record 2: follows a byte order mark" in Records(str(listed), "data.train").notes[0]


def test_ten_are_named_and_all_are_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *["{"] * 1200, GOOD)
    records = Records(str(file), "data.train", settings=SKIP)
    assert [record.number for record in records] == [1201] and len(records) == 1
    (note,) = records.notes
    assert "1,200 of 1,201 records skipped: line 1: not JSON" in note and note.endswith("; and 1,190 more")
    assert note.count("not JSON") == 10
    with pytest.raises(ConfigError, match="none of its 1,200 records can be read; record 1: must be an object"):
        load(str(write(file, *["null"] * 1200)), "data.train", settings=SKIP)


def test_a_table_names_the_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "instruction,output", '"两\n行",答', "问", '问,"说"好"了"', "问,答")
    assert [record.number for record in load(str(file), "data.train", settings=SKIP)] == [1, 4]
    with pytest.raises(ConfigError, match=r"a\.csv, line 4: its number of cells is 1, and that of the columns 2"):
        load(str(file), "data.train")


def test_a_plan_and_the_held_out_records_skip_too(tmp_path: Path) -> None:
    train, held_out = write(tmp_path / "a.jsonl", GOOD, "{", GOOD), write(tmp_path / "b.jsonl", "null", GOOD)
    overrides = [f"data.train={train}", f"data.eval={held_out}", "mode=plan"]
    with pytest.raises(ConfigError, match=r"data\.train=.*line 2: not JSON .*data\.on_bad_record=skip"):
        preflight.admit(preflight.resolve(config_of(*overrides), detect()))
    config = config_of(*overrides, "data.on_bad_record=skip")
    admitted = preflight.admit(preflight.resolve(config, detect()))
    assert admitted.plan.records == 2
    assert ["1 of 3 records skipped" in admitted.notes[0], "1 of 2 records skipped" in admitted.notes[1]] == [
        True,
        True,
    ]
    assert [record.number for record in mixture.held_out(config.data, 0)] == [2]


def test_the_cases_of_json(tmp_path: Path) -> None:
    """A record may be skipped in a list too, if only its content is bad."""
    file = tmp_path / "a.json"
    file.write_text(f'[{GOOD}, 3, {{"instruction": "问", "output": ""}}, {GOOD}]', encoding="utf-8")
    assert [record.number for record in load(str(file), "data.train", settings=SKIP)] == [1, 4]
    file.write_text(json.dumps([{"instruction": "问"}]), encoding="utf-8")
    with pytest.raises(ConfigError, match="has no 'output'"):
        load(str(file), "data.train")

"""Each way a data file can be bad names the file and the place; no torch is needed."""

import json
from pathlib import Path

import pytest

from hydraft.config import ConfigError
from hydraft.data.formats import load_records

GOOD = {"instruction": "问", "input": "", "output": "答"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[]", "no records in it"),
        ("a.json", "", "no records in it"),
        ("a.jsonl", "\n\n", "no records in it"),
        ("a.json", '[{"instruction": ', r"not JSON \(line 1"),
        ("a.json", '{"instruction": "x"}', "must be a JSON list of records, and is a dict"),
        ("a.json", json.dumps([GOOD, {"instruction": "x"}]), r"record 2: has no 'output' \(its keys: instruction\)"),
        ("a.json", json.dumps([GOOD, GOOD, {"output": "x"}]), "record 3: has no 'instruction'"),
        ("a.json", json.dumps([{**GOOD, "output": " "}]), "record 1: 'output' is empty"),
        ("a.json", json.dumps([{**GOOD, "input": 3}]), "record 1: 'input' must be text, and is a int"),
        ("a.json", json.dumps(["text"]), "record 1: must be an object"),
        ("a.jsonl", json.dumps(GOOD) + "\n{broken\n" + json.dumps(GOOD), "line 2: not JSON"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as refusal:
        load_records(str(file), "data.train")
    assert str(refusal.value).startswith(f"data.train={file}")


def test_a_missing_file_a_folder_and_other_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.eval=/nowhere\.json: no such file"):
        load_records("/nowhere.json", "data.eval")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_records(str(tmp_path), "data.train")
    (tmp_path / "gbk.json").write_bytes('["中文"]'.encode("gbk"))
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_records(str(tmp_path / "gbk.json"), "data.train")


def test_both_forms_are_read_alike(tmp_path: Path) -> None:
    records = [GOOD, {"text": "一段文字\u2028第二行"}]
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(records), encoding="utf-8")
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "a.jsonl").write_text(lines + "\n", encoding="utf-8")
    assert load_records(str(tmp_path / "a.json"), "data.train") == records
    assert load_records(str(tmp_path / "a.jsonl"), "data.train") == records

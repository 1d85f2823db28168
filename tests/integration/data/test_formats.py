"""Each format is read from each kind of file; errors of a source name the file and the record."""

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import run_script
from hydraft.config.choices import Format
from hydraft.data.load import load
from hydraft.data.records import Conversation, Turn
from hydraft.errors import ConfigError

GOOD = {"instruction": "问", "input": "", "output": "答"}
CHAT = {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}
SHARE = {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[]", "no records in it"),
        ("a.json", "", "no records in it"),
        ("a.jsonl", "\n\n", "no records in it"),
        ("a.json", '[{"instruction": ', r"not JSON \(line 1"),
        ("a.json", '{"instruction": "x"}', r"record 1: has no 'output' \(its keys: instruction\)"),
        ("a.json", json.dumps([GOOD, {"instruction": "x"}]), r"record 2: has no 'output' \(its keys: instruction\)"),
        ("a.json", json.dumps([GOOD, {"output": "x"}]), r"record 2: unknown format \(its keys: output"),
        ("a.json", json.dumps([{**GOOD, "output": " "}]), "record 1: 'output' is empty"),
        ("a.json", json.dumps([{**GOOD, "input": 3}]), "record 1: 'input' must be text, and is a number"),
        ("a.json", json.dumps(["text"]), "record 1: must be an object"),
        ("a.jsonl", json.dumps(GOOD) + "\n{broken\n" + json.dumps(GOOD), "line 2: not JSON"),
        ("a.json", json.dumps([GOOD, CHAT]), "record 1 is alpaca and record 2 is messages; a file must have one format"),
        ("a.json", json.dumps([{**GOOD, **CHAT}]), "keys of alpaca and messages; choose one with data.format="),
        ("a.json", json.dumps([{"messages": [{"role": "tool", "content": "x"}]}]), "turn 1 has the role tool, expected user"),
        ("a.json", json.dumps([{"conversations": [{"from": "narrator", "value": "x"}]}]), r"turn 1: unknown from 'narrator' \(known: system"),
        ("a.json", json.dumps([{"messages": CHAT["messages"][:1]}]), "does not end with an answer"),
        ("a.json", json.dumps([{"messages": CHAT["messages"][1:]}]), "turn 1 has the role assistant, expected user"),
        ("a.json", json.dumps([{"messages": []}]), "does not end with an answer"),
        ("a.json", json.dumps([{"messages": "x"}]), "'messages' must be a list"),
        ("a.json", json.dumps([{"conversations": [{"from": "human"}]}]), "turn 1: must be an object with 'from' and 'value'"),
        ("a.json", json.dumps([{**GOOD, "history": [["q"]]}]), "'history' must be"),
    ],
)  # fmt: skip
def test_an_invalid_source_is_refused_with_file_and_record(tmp_path: Path, name: str, text: str, message: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as refusal:
        load(str(file), "data.train")
    assert str(refusal.value).startswith(f"data.train={file}")


def test_a_missing_file_a_folder_and_invalid_content_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.eval=/nowhere\.json: no such file"):
        load("/nowhere.json", "data.eval")
    with pytest.raises(ConfigError, match="no data files in this folder"):
        load(str(tmp_path), "data.train")
    (tmp_path / "gbk.json").write_bytes('["中文"]'.encode("gbk"))
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load(str(tmp_path / "gbk.json"), "data.train")
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(ConfigError, match="not a Parquet file"):
        load(str(tmp_path / "a.parquet"), "data.train")


@pytest.mark.parametrize("record", [GOOD, CHAT, SHARE])
@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_every_format_is_read_from_every_kind_of_file(tmp_path: Path, record: dict[str, Any], kind: str) -> None:
    records = [{**record, "task": "qa"}, {**record, "task": "qa"}]
    file = tmp_path / f"a.{kind}"
    if kind == "json":
        file.write_text("\ufeff" + json.dumps(records), encoding="utf-8")
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
    expected = Conversation((Turn("user", "问"), Turn("assistant", "答")), task="qa")
    assert load(str(file), "data.train") == [expected, expected]


def test_system_history_and_plain_text(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(
        json.dumps([{**GOOD, "input": "入", "system": "你是助手", "history": [["甲", "乙"]]}]), encoding="utf-8"
    )
    (record,) = load(str(file), "data.train")
    assert [turn.role for turn in record.turns] == ["system", "user", "assistant", "user", "assistant"]
    assert record.prompt[-1].text == "问\n入"
    assert record.reference == "答"
    file.write_text(json.dumps([{"text": "一段\u2028文字"}]), encoding="utf-8")
    assert load(str(file), "data.train") == [Conversation(plain="一段\u2028文字")]


def test_data_format_chooses_the_format(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{**GOOD, **CHAT}]), encoding="utf-8")
    assert len(load(str(file), "data.train", Format.messages)) == 1
    with pytest.raises(ConfigError, match="has no 'text'"):
        load(str(file), "data.train", Format.text)


def test_a_hub_name_is_loaded_with_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses ``datasets`` with a local folder in the hub's layout; empty columns do not count as keys of a row."""
    import datasets

    (tmp_path / "data").mkdir()
    for split, rows in {"train": [CHAT, {**CHAT, "id": 3}], "test": [SHARE]}.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / f"data/{split}.jsonl").write_text(lines, encoding="utf-8")
    requested, load_dataset = [], datasets.load_dataset

    def local(name: str, split: str) -> Any:
        requested.append(name)
        data_files = {split: str(tmp_path / f"data/{split}.jsonl")}
        return load_dataset(str(tmp_path), data_files=data_files, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", local)
    expected = Conversation((Turn("user", "问"), Turn("assistant", "答")))
    assert load("owner/name", "data.train") == [expected, expected]
    assert load("owner/name:test", "data.eval") == [expected]
    assert requested == ["owner/name", "owner/name"]


def test_an_unavailable_hub_name_is_refused_on_one_line() -> None:
    done = run_script("train.py", "data.train=owner/name:dev", "mode=plan", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("train.py: data.train=owner/name:dev: no such file, and not available on the hub (")

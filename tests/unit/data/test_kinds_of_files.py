"""What kind of file it is, is seen from its content: the same records are read from all kinds, as other libraries write them."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hydraft.data.reading import kind
from hydraft.data.sources import Source
from hydraft.errors import ConfigError

RECORDS = [{"instruction": f"问{i}", "output": f'答"{i}",\n第二行'} for i in range(3)]


def lines(records: list[dict[str, str]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def table(records: list[dict[str, str]], delimiter: str = ",") -> str:
    written = io.StringIO(newline="")
    writer = csv.DictWriter(written, list(records[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(records)
    return written.getvalue()


def stream(records: list[dict[str, str]]) -> bytes:
    rows = pyarrow.Table.from_pylist(records)
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def binary(write: Callable[[Any, Any], Any]) -> Callable[[list[dict[str, str]]], bytes]:
    def written(records: list[dict[str, str]]) -> bytes:
        sink = io.BytesIO()
        write(pyarrow.Table.from_pylist(records), sink)
        return sink.getvalue()

    return written


KINDS: dict[str, Callable[[list[dict[str, str]]], str | bytes]] = {
    "lines.json": lines,
    "list.jsonl": lambda records: json.dumps(records, indent=1),
    "list.json": json.dumps,
    "UPPER.JSONL": lines,
    "lines.ndjson": lines,
    "lines": lines,
    "windows.jsonl": lambda records: "\ufeff" + lines(records).replace("\n", "\r\n"),
    "mac.jsonl": lambda records: lines(records).replace("\n", "\r"),
    "pretty.json": lambda records: "\n".join(json.dumps(record, indent=2) for record in records),
    "glued.json": lambda records: "".join(map(json.dumps, records)),
    "commas.jsonl": lambda records: lines(records).replace("}\n", "},\n"),
    "lists.json": lambda records: json.dumps(records[:1], indent=1) + "\n" + json.dumps(records[1:], indent=1),
    "wrapped.json": lambda records: json.dumps({"version": "1", "data": records, "count": 3}),
    "wrapped.jsonl": lambda records: json.dumps({"meta": {"a": [1]}, "rows": records}, indent=1),
    "utf16.json": lambda records: json.dumps(records, ensure_ascii=False).encode("utf-16"),
    "table.csv": table,
    "excel.csv": lambda records: "\ufeff" + table(records, ";"),
    "table.tsv": lambda records: table(records, "\t"),
    "tabs.csv": lambda records: table(records, "\t"),
    "unicode.TSV": lambda records: table(records, "\t").encode("utf-16"),
    "pandas.csv": lambda records: pandas.DataFrame(records).to_csv(index=False),
    "lines.csv": lines,
    "lines.txt": lines,
    "a.parquet": binary(pyarrow.parquet.write_table),
    "parquet.json": binary(pyarrow.parquet.write_table),
    "a.feather": binary(lambda rows, sink: pyarrow.feather.write_feather(rows, sink, compression="zstd")),
    "stream.arrow": stream,
    "a.jsonl.gz": lambda records: gzip.compress(lines(records[:1]).encode()) + gzip.compress(lines(records[1:]).encode()),
    "gzip.json": lambda records: gzip.compress(json.dumps(records).encode()),
    "a.csv.bz2": lambda records: bz2.compress(table(records).encode()),
    "a.jsonl.XZ": lambda records: lzma.compress(lines(records).encode()),
    "a.json.zst": lambda records: pyarrow.compress(json.dumps(records).encode(), "zstd", asbytes=True),
}  # fmt: skip


def read(file: Path) -> tuple[list[Any], list[str]]:
    source = Source(str(file), "data.train")
    rows = [row for _, row in source.rows()]
    assert not any(row.fault for row in rows), rows
    return [row.value for row in rows], source.notes


@pytest.mark.parametrize("name", KINDS)
def test_the_same_records_are_read_from_every_kind(tmp_path: Path, name: str) -> None:
    content = KINDS[name](RECORDS)
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert read(tmp_path / name)[0] == RECORDS


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(st.fixed_dictionaries({"instruction": TEXT, "output": TEXT}), min_size=2, max_size=4),
    chunk=st.integers(20, 200),
)
def test_whatever_the_text_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: list[dict[str, str]], chunk: int
) -> None:
    """In windows that end anywhere in a record."""
    monkeypatch.setattr("hydraft.data.reading.json_values.CHUNK", chunk)
    cells = [value for record in records for value in record.values()]
    for name in (
        "lines.json",
        "list.jsonl",
        "list.json",
        "pretty.json",
        "glued.json",
        "commas.jsonl",
        "table.csv",
        "a.parquet",
    ):
        if name == "table.csv" and any(cell in ("NaN", "nan") or "\r" in cell for cell in cells):
            continue  # no value; and the csv module itself reads \r\n in a cell only between quotes
        content = KINDS[name](records)
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        assert read(tmp_path / name)[0] == records, name


def test_plain_text_is_read_line_by_line_as_datasets_does(tmp_path: Path) -> None:
    import datasets

    file = tmp_path / "a.txt"
    file.write_text("第一段。\n\n[1] 第二段\n{{三}}", encoding="utf-8")
    found, notes = read(file)
    loader = datasets.load_dataset("text", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert found == [row for row in loader if row["text"]]
    assert len(notes) == 1 and "each line is a record" in notes[0]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("gbk.csv", "instruction,output\n问题,答案\n".encode("gbk"), "looks like GB18030 .*iconv -f GB18030"),
        ("utf16.json", '["中文"]'.encode("utf-16-le"), "looks like UTF-16LE"),
        ("latin.jsonl", '{"text": "é"}'.encode("latin-1"), r"not UTF-8 text \(byte 10\)"),
        ("a.docx", b"PK\x03\x04\x14\x00", r"a zip archive \(or \.xlsx, \.docx\)"),
        ("a.json", b"%PDF-1.7\n", "a PDF document"),
        ("a.jsonl", b"\x89PNG\r\n\x1a\n", "an image"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("a.json", b"<!DOCTYPE html>", "a web page"),
        ("a.json", b"\x01\x02\x00\x00", "a binary file of an unknown kind"),
        ("a.yaml", b"- instruction: x\n", "neither its name nor its content shows what kind of file it is"),
        ("a.arrow", b"text", "not an Arrow file, or damaged"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], r"damaged or cut off \(as gzip"),
        ("a.json", b'[{"text": "a"}, {"text": "b"}', "the file ends inside a list, so it is cut off"),
        ("a.json", b'[{"text": "a"},\n{text: "b"}]', "line 2: Expecting property name"),
        ("a.json", b'{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "an object with lists under 'train' and 'test'"),
        ("a.csv", b'instruction,output\na,"b\nc,d\n', "line 2: a quote is opened here or later and never closed"),
        ("a.csv", b"output,output\na,b\n", "has two columns named 'output'"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_as_that(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=reason) as refusal:
        read(tmp_path / name)
    assert str(refusal.value).startswith(f"data.train={tmp_path / name}")


def test_an_empty_cell_is_no_value_and_flags_have_their_type(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("instruction,input,output,label,weight\n1,,2,1,0.5\n问,NaN,答,True,0\n", encoding="utf-8")
    assert read(file)[0] == [
        {"instruction": "1", "output": "2", "label": 1, "weight": 0.5},
        {"instruction": "问", "output": "答", "label": True, "weight": 0},
    ]
    rows = pandas.DataFrame({"instruction": ["a"], "input": [float("nan")], "output": ["b"]})
    rows.to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[0] == [{"instruction": "a", "output": "b"}]


def test_the_suffixes_that_are_read_are_all_tried_here() -> None:
    tried = {kind.suffix_of(Path(name)) for name in (*KINDS, "a.txt")}
    assert set(kind.SUFFIXES) - tried <= {".tab", ".text", ".jl", ".jsonlines"}  # other names of the same

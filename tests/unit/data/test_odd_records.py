"""Whatever JSON a record has in the place of any of its parts: it is read, or refused with a line that names the record."""

import csv
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from templates import templated

from hydraft.config.choices import OnBadRecord
from hydraft.config.data import DataConfig
from hydraft.data import earlier, mixture, rendering_notes, thinking
from hydraft.data.encoding import SFT
from hydraft.data.load import Records, load
from hydraft.data.named import RecordSettings
from hydraft.data.reading.json_values import DEPTH
from hydraft.errors import ConfigError
from hydraft.plan import token_count

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
RECORDS: list[Any] = [
    {"instruction": "a", "input": "b", "output": "c", "system": "s", "history": [["q", "r"]], "task": "t", "reasoning": "z"},
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "u"}]},
            {"role": "assistant", "content": None, "weight": 1, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "1", "name": "f", "content": "4"},
            {"role": "assistant", "content": "b", "reasoning_content": "k"},
        ],
        "tools": [TOOL], "task": "t", "chat_template_kwargs": {"x": 1}, "id": 3,
    },
    {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}], "system": "s", "tools": "[]"},
    {"text": "abc", "task": "t"},
    {"question": "q", "answers": {"text": ["a"], "answer_start": [1]}, "context": "c"},
    {"prompt": [{"role": "user", "content": "u"}], "completion": [{"role": "assistant", "content": "a"}], "train": 1},
    {"text": "t", "label": "x"},
]  # fmt: skip
"""A record of each form."""


def nested(depth: int, wrap: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = wrap(value)
    return value


ODD = [
    "", " ", "[", "[1]", "null", '{"a": 1}', '["\\ud800"]', "\ud800", "x\udfff", "\x00", "a\nb", "1" * 5000, "9" * 5, "<think>x",
    "[" * 100_000, '{"a":' * 990 + "1" + "}" * 990, 10**3000, -(10**30), 1e308, float("nan"), float("inf"), True, None, [], {},
    [[]], [{}], [None], ["x"], [["a"]], [["a", "b"]], {"\ud800": 1}, {"role": "user"}, {"role": "user", "content": {}}, {"text": 1},
    nested(DEPTH - 8), nested(DEPTH + 1), nested(900), nested(DEPTH + 1, lambda inner: {"a": inner}),
]  # fmt: skip

NAMES = st.sampled_from(
    ["role", "from", "content", "value", "name", "type", "text", "function", "arguments", "\ud800", ""]
)
SMALL = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[]), max_size=4)
)
VALUES = st.sampled_from(ODD) | st.recursive(
    SMALL, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=5
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every part of a record, from outside to inside."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*at, key))


def replaced(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    parts = {key: replaced(part, at[1:], new) if key == at[0] else part for key, part in inner}
    return parts if isinstance(value, dict) else list(parts.values())


PLACES = [(record, at) for record in RECORDS for at in places(record)]


@cache
def with_tools() -> Any:
    """A tokenizer whose chat template has places for tools and thoughts."""
    return templated("qwen3")


def write(file: Path, kind: str, record: Any) -> None:
    if kind == "csv":
        cells = record if isinstance(record, dict) else {"text": record}
        with file.open("w", encoding="utf-8", errors="surrogatepass", newline="") as opened:
            rows = [value if isinstance(value, str) else json.dumps(value) for value in cells.values()]
            csv.writer(opened).writerows([list(cells), rows])
    else:
        around = {"jsonl": "{}\n", "list": "[{0}, {0}]", "object": '{{"version": 1, "data": [{}]}}'}[kind]
        file.write_text(around.format(json.dumps(record)), encoding="utf-8")


@settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from(PLACES), VALUES, st.sampled_from(["jsonl", "list", "object", "csv"]))
def test_a_part_may_be_anything(tmp_path: Path, place: tuple[Any, tuple[Any, ...]], value: Any, kind: str) -> None:
    """All that reads records is done: by the launcher, for the plan, and by a rank, for the cache."""
    tokenizer = with_tools()
    file = tmp_path / ("records.csv" if kind == "csv" else "records.json")
    write(file, kind, replaced(*place, value))
    data = DataConfig(train=str(file), max_length=64)
    try:
        records = mixture.training(data, 0)
        token_count.measure(records, data)
        "\n".join(records.mixture.notes).encode()
        resolved = thinking.resolve(data, records)
        earlier.differs(records, tokenizer, resolved)
        rendering_notes.of(records, tokenizer, resolved)
        for record in records:
            SFT.encode(record, tokenizer, resolved)
    except ConfigError as error:
        message = str(error)
        assert message.isprintable() and len(message) < 3000
        assert message.startswith(f"data.train={file}")
        assert "record" in message or "line" in message or kind == "csv"


def test_records_that_are_nested_too_deeply_are_skipped_alike_wherever_they_are_read(tmp_path: Path) -> None:
    """Python's own limit depends on what calls the reader: at some depths, a rank would refuse what the launcher has read."""
    good = {"instruction": "a", "output": "b"}
    rows = [
        good,
        {**good, "meta": nested(DEPTH - 1)},
        {**good, "meta": nested(DEPTH)},
        {**good, "meta": nested(900)},
        good,
    ]
    file = tmp_path / "records.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def read(frames: int) -> list[int]:
        if frames:
            return read(frames - 1)
        return [
            record.number
            for record in Records(str(file), "data.train", settings=RecordSettings(on_bad=OnBadRecord.skip))
        ]

    assert read(0) == read(300) == [1, 2, 5]
    with pytest.raises(ConfigError, match=rf"line 3: nested too deeply \(more than {DEPTH} levels\)"):
        load(str(file), "data.train")

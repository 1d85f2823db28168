"""Records go through the cache one by one: the memory that this takes does not grow with the file."""

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pytest
from transformers import AutoTokenizer

from conftest import ROOT
from hydraft.config.data import DataConfig
from hydraft.data import cache
from hydraft.data.encoding import Encoding

MB = 1_000_000


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_encoding_takes_no_more_memory_for_a_larger_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path / "cache"))
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny")
    encoding = Encoding(encode=lambda *_: [{"input_ids": [1] * 64, "labels": [1] * 64}])
    peaks = {}
    for size in (2, 24):
        file = tmp_path / f"{size}.{kind}"
        rows: Iterator[str] = (
            json.dumps({"instruction": f"{index} " * 1000, "output": "答"}) for index in range(size * 170)
        )
        begin, between, end = ("[", ",\n", "]") if kind == "json" else ("", "\n", "")
        file.write_text(begin + between.join(rows) + end)
        data = DataConfig(name="x", train=str(file), max_length=64)
        tracemalloc.start()
        encoded = cache.training(data, 0, tokenizer, True, lambda *_: None, encoding)
        peaks[size] = tracemalloc.get_traced_memory()[1] + pyarrow.total_allocated_bytes()
        tracemalloc.stop()
        assert len(encoded) == size * 170 and file.stat().st_size > size * MB / 2
    assert peaks[24] < peaks[2] + 4 * MB, peaks


def test_a_long_record_is_read_in_linear_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time a value goes on outside the window, the window doubles."""
    from hydraft.data.reading import json_values
    from hydraft.data.sources import Source

    monkeypatch.setattr(json_values, "CHUNK", 1000)
    file = tmp_path / "a.json"
    file.write_text(json.dumps([{"text": "x" * 1_000_000}]))
    tried = 0
    real: Callable[..., object] = json_values.Decoder.__call__

    def counted(self: json_values.Decoder, text: str, start: int) -> object:
        nonlocal tried
        tried += 1
        return real(self, text, start)

    monkeypatch.setattr(json_values.Decoder, "__call__", counted)
    assert [len(row.value["text"]) for _, row in Source(str(file), "data.train").rows()] == [1_000_000]
    assert tried < 20

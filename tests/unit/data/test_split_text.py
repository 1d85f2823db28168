"""Long plain texts are split, not cut: every token is trained once, with the loss that the whole text would have."""

import itertools
import json
from pathlib import Path

import datasets
import pytest
from datasets.arrow_writer import ArrowWriter
from transformers import AutoTokenizer

from conftest import ROOT
from hydraft.config.data import DataConfig
from hydraft.data import cache, mixture, provenance
from hydraft.data.encoded import FEATURES
from hydraft.data.labels import IGNORE
from hydraft.data.records import Conversation, ask
from hydraft.data.split_text import fit, split
from hydraft.data.tokenize import Example, Truncation


@pytest.mark.parametrize("length", [2, 9, 10, 11, 18, 19, 20, 28, 100])
def test_every_token_is_trained_once_after_the_token_before_it(length: int) -> None:
    ids = list(range(length))
    whole: Example = {"input_ids": ids, "labels": [IGNORE, *ids[1:]]}
    pieces = list(split(whole, 10))
    assert all(2 <= len(piece["input_ids"]) == len(piece["labels"]) <= 10 for piece in pieces)
    predicted = [
        (before, label)
        for piece in pieces
        for before, label in zip(piece["input_ids"][:-1], piece["labels"][1:], strict=True)
        if label != IGNORE
    ]
    assert predicted == list(itertools.pairwise(ids))  # as next-token prediction over the whole
    assert all(piece["labels"][0] == IGNORE for piece in pieces)


def test_conversations_are_truncated_instead() -> None:
    example: Example = {"input_ids": list(range(30)), "labels": [IGNORE] * 20 + list(range(20, 30))}
    ((shorter, cut),) = fit(ask("问"), [example], 16)
    assert len(shorter["input_ids"]) == 16 and cut.records == 1
    pieces = list(fit(Conversation(plain="x"), [example], 16))
    assert [len(piece["input_ids"]) for piece, _ in pieces] == [16, 15]
    assert all(cut == Truncation() for _, cut in pieces)


def test_the_cache_has_all_tokens_and_knows_where_they_are_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path / "cache"))
    texts = ["甲" * 10, "".join(chr(0x4E00 + index) for index in range(300)), "乙" * 10]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "丙"}))
    data = DataConfig(name="x", train=str(tmp_path / "a.jsonl"), max_length=64, mix=[f"{tmp_path}/b.jsonl*2"])
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny")
    encoded = cache.training(data, 0, tokenizer, True, lambda *_: None)
    assert encoded.truncation == Truncation()
    trained = [label for example in encoded for label in example["labels"] if label != IGNORE]
    whole = [
        tokenizer(text + tokenizer.eos_token, add_special_tokens=False)["input_ids"] for text in (*texts, "丙", "丙")
    ]
    assert trained == [token for ids in whole for token in ids[1:]]
    assert list(encoded.lengths) == [len(example["input_ids"]) for example in encoded] and max(encoded.lengths) == 64
    assert len(mixture.training(data, 0)) == 5 < len(encoded)
    first, last = provenance.of_examples([0], encoded), provenance.of_examples(range(1, len(encoded)), encoded)
    assert first == {str(tmp_path / "a.jsonl"): [1]}
    assert last == {str(tmp_path / "a.jsonl"): [2, 3], f"{tmp_path}/b.jsonl*2": [1]}


def test_what_an_earlier_version_cut_is_not_used_and_other_files_of_it_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version stored the tokens, and their numbers in about.json."""
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "甲" * 100}))
    data = DataConfig(name="x", train=str(tmp_path / "a.jsonl"), max_length=64)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny")
    key = cache.key(data, 0, tokenizer)
    folder = tmp_path / "cache/encoded" / key
    for cut in (0, 1):
        folder.mkdir(parents=True, exist_ok=True)
        rows = datasets.Dataset.from_list(
            [{"input_ids": [7] * 64, "labels": [7] * 64}],
            features=datasets.Features({name: FEATURES[name] for name in ("input_ids", "labels")}),
        )
        with ArrowWriter(path=str(folder / "data.arrow"), features=rows.features) as writer:
            writer.write(rows[0])
            writer.finalize()
        about = {"lengths": [64], "truncation": vars(Truncation(cut)), "notes": []}
        (folder / "about.json").write_text(json.dumps(about))
        encoded = cache.training(data, 0, tokenizer, True, lambda *_: None)
        if cut:
            assert len(encoded) == 2 and encoded.key == f"{key}-3"  # a run with the cut text is not resumed with it
        else:
            assert encoded[0]["input_ids"] == [7] * 64 and list(encoded.lengths) == [64] and encoded.key == key
            assert provenance.of_examples([0], encoded) == {"the encoded records": [1]}

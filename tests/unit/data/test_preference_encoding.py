"""The two sequences of a pair: they share their prompt also when they are cut, and only their answers are trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from templates import templated
from transformers import AutoTokenizer

from conftest import ROOT, config_of
from hydraft.config.choices import Thinking, TrainOn
from hydraft.config.data import DataConfig
from hydraft.data import cache, mixture, rendering_notes
from hydraft.data.batch import group
from hydraft.data.encoded import Encoded
from hydraft.data.encoding import JUDGED, PAIRS, SFT
from hydraft.data.labels import IGNORE
from hydraft.data.pair_truncation import truncate_pair
from hydraft.data.preferences import read_pair
from hydraft.data.records import Conversation, Pair, Turn
from hydraft.data.split_text import fit
from hydraft.data.tokenize import Example, Truncation, encode_one, truncate
from hydraft.training import preview

DATA = config_of().data
TINY = AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny")
ROUNDS = (Turn("user", "一"), Turn("assistant", "二", trained=False), Turn("user", "三"))


def example(prompt: list[int], answer: list[int]) -> Example:
    return {"input_ids": [*prompt, *answer], "labels": [IGNORE] * len(prompt) + answer}


def split(one: Example) -> tuple[list[int], list[int]]:
    """The tokens before the first trained one, and the others."""
    start = next(index for index, label in enumerate(one["labels"]) if label != IGNORE)
    return one["input_ids"][:start], one["input_ids"][start:]


@settings(max_examples=300, deadline=None)
@given(
    prompt=st.lists(st.integers(1, 9), min_size=1, max_size=90),
    answers=st.tuples(*[st.lists(st.integers(1, 9), min_size=1, max_size=90)] * 2),
    max_length=st.integers(16, 64),
)
def test_a_pair_that_is_cut_has_one_prompt_and_both_answers(
    prompt: list[int], answers: tuple[list[int], list[int]], max_length: int
) -> None:
    pair = [example(prompt, answer) for answer in answers]
    (chosen, first), (rejected, second) = truncate_pair(pair, max_length)
    parts = [split(chosen), split(rejected)]
    assert all(len(before) + len(after) <= max_length for before, after in parts)
    assert parts[0][0] == parts[1][0], "both answers follow the same prompt"
    kept = parts[0][0]
    assert kept == [*prompt[: -(-len(kept) // 2)], *prompt[len(prompt) - len(kept) // 2 :]], "it is cut in its middle"
    for (_, after), whole in zip(parts, answers, strict=True):
        assert after == whole[: len(after)] and len(after) >= min(len(whole), max_length * 3 // 4)
    longer = max(pair, key=lambda each: len(each["input_ids"]))
    assert truncate(longer, max_length)[0] in (chosen, rejected), "as the longer sequence is cut by itself"
    total = first + second
    assert total.records == (len(longer["input_ids"]) > max_length)
    assert total.prompt_tokens == 2 * (len(prompt) - len(kept))
    assert total.answer_tokens == sum(map(len, answers)) - sum(len(after) for _, after in parts)
    assert total.same == (chosen == rejected)


def test_a_prompt_that_ends_differently_keeps_both_ends() -> None:
    chosen, rejected = example([*range(60), 100, 101], [200] * 5), example([*range(60), 300], [201] * 9)
    (first, _), (second, _) = truncate_pair([chosen, rejected], 40)
    assert split(first)[0][-2:] == [100, 101] and split(second)[0][-1:] == [300]
    assert split(first)[0][:-2] == split(second)[0][:-1], "the tokens that both begin with are cut in both"
    apart, other = example(list(range(60)), [200] * 5), example(list(range(100, 130)), [201] * 50)
    assert all(len(each["input_ids"]) == 40 for each, _ in truncate_pair([apart, other], 40))


def test_pairs_that_become_the_same_are_counted() -> None:
    pair = [example([1, 2], [3] * 40 + [last]) for last in (4, 5)]
    cut = sum((lost for _, lost in truncate_pair(pair, 20)), Truncation())
    assert (
        str(cut)
        == "1 records cut: 0 prompt and 46 answer tokens; 1 pairs have the same answers after that, and train nothing"
    )


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "deepseek_r1_distill", "mistral_v0_3", "gpt_oss"])
@pytest.mark.parametrize("train_on", TrainOn)
def test_each_answer_is_one_example_that_is_trained_at_its_end_only(name: str, train_on: TrainOn) -> None:
    tokenizer, data = templated(name), replace(DATA, train_on=train_on, thinking=Thinking.off)
    pair = Pair(*(Conversation((*ROUNDS, Turn("assistant", answer))) for answer in ("四", "五")))
    encoded = PAIRS.encode(pair, tokenizer, data)
    assert len(encoded) == PAIRS.sequences == 2
    prompts = [split(each)[0] for each in encoded]
    assert prompts[0] == prompts[1]
    for each, conversation in zip(encoded, pair.conversations, strict=True):
        alone = encode_one(replace(conversation, turns=(*ROUNDS, conversation.turns[-1])), tokenizer, data)
        assert alone == [each]
        trained = tokenizer.decode([label for label in each["labels"] if label != IGNORE])
        assert conversation.reference in trained and "二" not in trained


def test_thoughts_of_one_answer_are_trained_and_left_out() -> None:
    pair = Pair(*(Conversation((ROUNDS[0], Turn("assistant", "二", reasoning=why))) for why in ("因为", "")))
    tokenizer = templated("qwen3")
    on, off = (replace(DATA, thinking=mode) for mode in (Thinking.on, Thinking.off))
    texts = [tokenizer.decode(split(each)[1]) for each in PAIRS.encode(pair, tokenizer, on)]
    assert texts == ["<think>\n因为\n</think>\n\n二<|im_end|>", "二<|im_end|>"]
    assert rendering_notes.of([pair], tokenizer, on) == []
    assert rendering_notes.of([pair], tokenizer, off) == [
        "1 record has thoughts, which are left out (data.thinking=off)",
        "1 record has two answers that differ only in their thoughts: without these, they train nothing",
    ]


def written(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> DataConfig:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataConfig(name="x", train=str(folder / "a.jsonl"), **settings)


def test_the_cache_has_both_sequences_of_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": "问" * 60, "chosen": f"好{n}" * n, "rejected": f"坏{n}"} for n in range(1, 11)]
    data = written(tmp_path, rows, max_length=32, eval="0.2")
    encoded = cache.training(data, 0, TINY, True, lambda *_: None, PAIRS)
    records = list(mixture.training(data, 0, read_pair))
    held = mixture.held_out(data, 0, read_pair)
    assert (len(records), len(held), len(encoded)) == (8, 2, 16)
    assert not {record.number for record in records} & {record.number for record in held}
    whole = [kept for record in records for kept, _ in fit(record, PAIRS.encode(record, TINY, data), 32, PAIRS.cut)]
    assert list(encoded) == whole
    assert [encoded.origin(index)[1] for index in range(16)] == [r.number for r in records for _ in range(2)]
    assert all(split(encoded[n])[0] == split(encoded[n + 1])[0] for n in range(0, 16, 2))
    assert encoded.truncation.records == 8
    assert group(encoded.lengths, 2, None) == [[n, n + 1] for n in range(0, 16, 2)]
    assert cache.training(data, 0, TINY, False, lambda *_: None, PAIRS).truncation == encoded.truncation


def test_the_cache_has_the_judgement_of_judged_answers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": "问" * 60, "completion": f"答{n}", "label": n % 2 == 0} for n in range(4)]
    data = written(tmp_path, rows, max_length=32)
    encoded = cache.training(data, 0, TINY, True, lambda *_: None, JUDGED)
    assert [row["desirable"] for row in encoded] == [True, False, True, False]  # type: ignore[typeddict-item]
    assert encoded.truncation.records == 4, "they are cut, and keep it"
    plain = written(tmp_path, [{"prompt": "问" * 60, "completion": f"答{n}"} for n in range(4)], max_length=32)
    others = cache.training(plain, 0, TINY, True, lambda *_: None)
    assert [{key: row[key] for key in ("input_ids", "labels")} for row in encoded] == list(others)
    assert set(others[0]) == {"input_ids", "labels"}
    names = {cache.key(plain, 0, TINY, each) for each in (SFT, PAIRS, JUDGED)}
    assert len(names) == 3 and isinstance(others, Encoded)


def test_the_preview_shows_both_answers(tmp_path: Path) -> None:
    rows = [{"prompt": "一加一", "chosen": f"二{n}", "rejected": "三" * 30} for n in range(5)]
    data = written(tmp_path, rows, max_length=24)
    found = preview.survey(mixture.training(data, 0, PAIRS.read), PAIRS, TINY, data)
    shown = list(preview.titled(found.first, PAIRS.sequences))
    sizes = [len(each["input_ids"]) for _, each in shown]
    assert len(shown) == 2 * preview.EXAMPLES and sizes[1] == 24
    assert shown[2][0].startswith(f"example 2, chosen ({sizes[2]} of ")
    assert shown[3][0].startswith("example 2, rejected (24 of ")
    assert "二1" in preview.coloured(shown[2][1], TINY).plain and found.cut.records == 5
    rows = [{"prompt": "一加一", "completion": "二", "kto_tag": False}]
    judged = written(tmp_path, rows)
    first = preview.survey(mixture.training(judged, 0, JUDGED.read), JUDGED, TINY, judged).first
    assert next(title for title, _ in preview.titled(first)).startswith("example 1, undesirable (")

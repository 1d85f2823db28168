"""How records are laid out and ordered changes what a run costs, not what it learns. Real runs, on two ranks."""

import json
from pathlib import Path

import pytest

from bench.equivalence import Curve, train
from conftest import ROOT

TOLERANCE = 1e-5
"""Relative for losses and gradient norms, absolute for the adapter's elements."""
COMMON = [
    "quant=none", "data.eval=null", "data.max_length=128", "train.learning_rate=1e-3", "train.log_every=1",
    "train.warmup_ratio=0", "lora.dropout=0",
    "optimizer.eps=1e-5",  # with 1e-8, an element whose gradient is all rounding moves by a whole step, this way or that
]  # fmt: skip


def write(folder: Path, records: list[dict[str, str]]) -> str:
    file = folder / "records.json"
    file.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return f"data.train={file}"


@pytest.fixture
def shipped(tmp_path: Path) -> str:
    """24 of the records that ship, of 26 to 99 tokens."""
    return write(tmp_path, json.loads((ROOT / "data/zh_tasks.train.json").read_text(encoding="utf-8"))[:24])


def assert_same(curve: Curve, reference: Curve) -> None:
    assert curve.losses == pytest.approx(reference.losses, rel=TOLERANCE)
    assert curve.grad_norms == pytest.approx(reference.grad_norms, rel=TOLERANCE)
    assert curve.adapter.keys() == reference.adapter.keys()
    for name, tensor in reference.adapter.items():
        assert (curve.adapter[name] - tensor).abs().max() <= TOLERANCE, name


def test_padded_and_padding_free_batches_train_the_same(shipped: str, tmp_path: Path) -> None:
    sizes = [
        "cluster=1x2",
        "train.micro_batch_size=3",
        "train.gradient_accumulation_steps=1",
        "train.max_steps=4",
    ]
    curves = [
        train([*COMMON, *sizes, shipped, f"data.batching={way}"], tmp_path / way) for way in ("padded", "padding_free")
    ]
    assert len(curves[0].losses) == 4
    assert_same(curves[1], curves[0])


def test_a_step_over_all_records_is_the_same_packed_and_unpacked(shipped: str, tmp_path: Path) -> None:
    once = [*COMMON, shipped, "cluster=1x2", "train.max_steps=1", "data.shuffle=false"]
    once += ["train.gradient_accumulation_steps=2"]
    loose = train([*once, "train.micro_batch_size=6"], tmp_path / "loose")
    packed = train([*once, "data.packing=true", "train.micro_batch_size=4"], tmp_path / "packed")
    assert_same(packed, loose)
    (loose_tokens,), (packed_tokens,) = tokens_of_steps(tmp_path / "loose"), tokens_of_steps(tmp_path / "packed")
    assert loose_tokens <= packed_tokens <= loose_tokens + 16  # a blank bin is one token


def tokens_of_steps(folder: Path) -> list[int]:
    """Tokens of each optimizer step, as the run counted them."""
    totals = [json.loads(line)["tokens"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [after - before for before, after in zip([0, *totals], totals, strict=False)]


@pytest.mark.parametrize("ranks", [1, 2])
def test_grouping_by_length_trains_every_record_once_an_epoch(ranks: int, tmp_path: Path) -> None:
    """Answers of 2, 4, 8 … characters, so that the tokens of a step identify its records; 7 records need a filler on two ranks."""
    answers = [2**power for power in range(1, 8)]
    train_on = write(tmp_path, [{"instruction": "数", "output": "一" * answer} for answer in answers])
    sizes = [f"cluster=1x{ranks}", "train.micro_batch_size=1", "train.gradient_accumulation_steps=1", "train.epochs=2"]
    orders = {}
    runs = {"plain": "false", "grouped": "true", **({"again": "true"} if ranks == 2 else {})}
    for name, grouped in runs.items():
        run = [*COMMON, *sizes, train_on, "data.max_length=256", f"data.group_by_length={grouped}"]
        train(run, tmp_path / name)
        orders[name] = [members(count, ranks, answers) for count in tokens_of_steps(tmp_path / name)]
        steps = -(-len(answers) // ranks)
        assert len(orders[name]) == 2 * steps
        for epoch in (orders[name][:steps], orders[name][steps:]):
            assert sorted(answer for step in epoch for answer in step) == answers
    assert orders["grouped"] == orders.get("again", orders["grouped"]) != orders["plain"]
    largest = [max(step) for step in orders["grouped"]]
    assert largest == sorted(largest[: len(largest) // 2], reverse=True) * 2


def members(tokens: int, ranks: int, answers: list[int]) -> list[int]:
    """The answers whose records have this sum of tokens: sums of powers of two are unique."""
    around = tokens_around()
    for records in range(1, ranks + 1):
        rest = tokens - records * around - (ranks - records)  # a blank is one token
        found = [answer for answer in answers if rest > 0 and rest & answer]
        if len(found) == records and sum(found) == rest:
            return found
    raise AssertionError(f"{tokens} tokens are no records'")


def tokens_around() -> int:
    """Tokens of a record without the characters of its answer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny")
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "数"}], add_generation_prompt=True)["input_ids"]
    assert len(tokenizer("一" * 8)["input_ids"]) == 8
    return len(asked) + 1  # and the end of sequence

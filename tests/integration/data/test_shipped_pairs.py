"""The shipped preference pairs are split cleanly, cannot be told apart by their form, and are reproduced by their generator."""

import json
import subprocess
import sys
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from conftest import ROOT

TASKS = {"sentiment", "qa", "summary", "translation", "small_talk"}
NAMES = ("zh_preferences.train.json", "zh_preferences.test.json")
NOT_TOLD = "短文没有提到。"


def read(name: str) -> list[dict[str, Any]]:
    return json.loads((ROOT / "data" / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def prompt(record: dict[str, Any]) -> str:
    """The part of a prompt that differs from record to record: a passage without its question, a review, a message."""
    return str(record["input"] or record["instruction"]).removeprefix("短文：").split("\n")[0]


def test_every_task_has_enough_pairs_and_every_pair_two_answers() -> None:
    train, test = (read(name) for name in NAMES)
    assert len(train) >= 400 and len(test) >= 80
    for records, least in ((train, 40), (test, 10)):
        tasks = Counter(record["task"] for record in records)
        assert tasks.keys() == TASKS and min(tasks.values()) >= least
        for record in records:
            assert record.keys() == {"instruction", "input", "chosen", "rejected", "task"}
            assert record["instruction"] and record["chosen"].strip() and record["rejected"].strip()
            assert record["chosen"] != record["rejected"]
    assert all((ROOT / "data" / name).stat().st_size < 250_000 for name in NAMES)


def test_no_prompt_is_in_two_splits_or_in_the_instruction_set() -> None:
    splits = [read(name) for name in (*NAMES, "zh_tasks.train.json", "zh_tasks.test.json")]
    train, test, *instructions = [[prompt(record) for record in split] for split in splits]
    assert len(set(train + test)) == len(train) + len(test)
    assert set(train + test).isdisjoint(instructions[0] + instructions[1])
    answers = {record["output"] for record in splits[2] + splits[3] if record["task"] == "translation"}
    assert answers.isdisjoint(r["chosen"] for r in splits[0] + splits[1] if r["task"] == "translation")


def test_held_out_chats_are_no_variants_of_trained_ones() -> None:
    """Measured by difflib: the questions of one template that differ in their slots are more alike than this."""
    train, test = ([r for r in read(name) if r["task"] == "small_talk"] for name in NAMES)
    assert {r["chosen"] for r in train}.isdisjoint(r["chosen"] for r in test)
    for record in test:
        alike = max(SequenceMatcher(None, prompt(record), prompt(other), autojunk=False).ratio() for other in train)
        assert alike < 0.8, record


def test_neither_length_nor_a_phrase_tells_which_answer_is_chosen() -> None:
    for name in NAMES:
        records = read(name)
        longer = sum(len(r["chosen"]) > len(r["rejected"]) for r in records) / len(records)
        shorter = sum(len(r["chosen"]) < len(r["rejected"]) for r in records) / len(records)
        assert max(longer, shorter) < 0.55 and min(longer, shorter) > 0.3
        for phrase in (NOT_TOLD, "，因为"):
            chosen, rejected = (sum(phrase in r[side] for r in records) for side in ("chosen", "rejected"))
            assert 0.3 < chosen / (chosen + rejected) < 0.7, (name, phrase, chosen, rejected)


def test_chosen_answers_fit_the_instruction() -> None:
    for record in (record for name in NAMES for record in read(name)):
        asked, chosen, rejected = record["instruction"], record["chosen"], record["rejected"]
        if record["task"] == "sentiment":
            explained = any(word in asked for word in ("理由", "为什么", "原因"))
            assert ("，因为" in chosen) == explained, record
            assert chosen.startswith(("正面", "负面")) and ("正面" in chosen) != ("负面" in chosen), record
        if record["task"] == "qa":
            told = chosen != NOT_TOLD
            assert chosen in record["input"] or not told, record
            assert told or (rejected != NOT_TOLD and ("没有" in asked or "不" in asked)), record
        if record["task"] == "summary" and any(word in asked for word in ("最短", "越短", "尽量短", "只说")):
            assert len(chosen) <= 20, record


def test_the_hand_written_pairs_are_in_both_splits() -> None:
    written = {prompt(record) for record in read("handwritten_pairs.json")}
    assert len(written) >= 60
    counts = [sum(prompt(record) in written for record in read(name)) for name in NAMES]
    assert sum(counts) == len(written) and min(counts) >= 20


def test_the_generator_writes_the_same_bytes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "data/preference_pairs.py"), "--out", str(tmp_path)], check=True)
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (ROOT / "data" / name).read_bytes()

"""The shipped preference pairs are split cleanly, have answers of equal length, and are reproduced by their generator."""

import json
import subprocess
import sys
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from conftest import ROOT

TASKS = {"sentiment", "qa", "summary", "translation", "small_talk", "reply"}
NAMES = ("zh_preferences.train.json", "zh_preferences.test.json")
POLITE = ("您", "请", "谢谢", "对不起")


def read(name: str) -> list[dict[str, Any]]:
    return json.loads((ROOT / "data" / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def prompt(record: dict[str, Any]) -> str:
    """The part of a prompt that differs from record to record: a passage without its question, a review, a message."""
    return str(record["input"] or record["instruction"]).removeprefix("短文：").split("\n")[0]


def test_every_task_has_enough_pairs_and_every_pair_two_answers() -> None:
    train, test = (read(name) for name in NAMES)
    assert len(train) >= 400 and len(test) >= 80
    for records, least in ((train, 40), (test, 6)):
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


def test_length_does_not_tell_which_answer_is_chosen() -> None:
    for name in NAMES:
        records = read(name)
        longer = sum(len(r["chosen"]) > len(r["rejected"]) for r in records) / len(records)
        shorter = sum(len(r["chosen"]) < len(r["rejected"]) for r in records) / len(records)
        assert abs(longer - shorter) < 0.1 and longer + shorter < 0.5
        replies = [r for r in records if "您" in r["chosen"]]
        assert max(abs(len(r["chosen"]) - len(r["rejected"])) for r in replies) <= 3


def test_what_is_preferred_is_polite_or_right() -> None:
    """Answers to instructions of the instruction set are as in it; the others differ in how polite they are."""
    references = read("zh_tasks.train.json")
    asked = {task: {r["instruction"] for r in references if r["task"] == task} for task in TASKS}
    for record in (record for name in NAMES for record in read(name)):
        chosen, rejected, task = record["chosen"], record["rejected"], record["task"]
        if record["instruction"] not in asked[task]:
            assert any(word in chosen for word in POLITE) and "您" not in rejected, record
        elif task == "sentiment":
            assert {chosen, rejected} == {"正面", "负面"}, record
        elif task == "qa":
            assert chosen in record["input"] and rejected in record["input"], record
    polite = [sum("您" in r["chosen"] for r in read(name)) / len(read(name)) for name in NAMES]
    assert min(polite) > 0.5


def test_the_hand_written_pairs_are_in_both_splits() -> None:
    written = {prompt(record) for record in read("handwritten_pairs.json")}
    assert len(written) >= 50
    counts = [sum(prompt(record) in written for record in read(name)) for name in NAMES]
    assert sum(counts) == len(written) and min(counts) >= 18


def test_the_generator_writes_the_same_bytes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "data/preference_pairs.py"), "--out", str(tmp_path)], check=True)
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (ROOT / "data" / name).read_bytes()

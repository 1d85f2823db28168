"""The shipped instruction set is large enough, varied, split cleanly, and reproduced by its generator."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from conftest import ROOT

TASKS = {"sentiment", "qa", "summary", "translation"}


def read(name: str) -> list[dict[str, Any]]:
    return json.loads((ROOT / "data" / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_every_task_has_enough_records() -> None:
    train, test = (
        Counter(r["task"] for r in read("zh_tasks.train.json")),
        Counter(r["task"] for r in read("zh_tasks.test.json")),
    )
    assert train.keys() == test.keys() == TASKS
    assert sum(train.values()) >= 1000
    assert min(train.values()) >= 250
    assert min(test.values()) >= 40


def test_no_held_out_input_is_trained_and_no_input_is_repeated() -> None:
    train, test = read("zh_tasks.train.json"), read("zh_tasks.test.json")
    inputs = [record["input"] for record in train + test]
    assert len(set(inputs)) == len(inputs)


def test_classes_are_balanced_and_answers_are_plausible() -> None:
    for name in ("zh_tasks.train.json", "zh_tasks.test.json"):
        records = read(name)
        classes = Counter(record["output"] for record in records if record["task"] == "sentiment")
        assert classes.keys() == {"正面", "负面"}
        assert max(classes.values()) <= 1.3 * min(classes.values())
        for record in records:
            assert record["output"].strip()
            if record["task"] == "qa":
                assert record["output"] in record["input"], record


def test_the_hand_written_core_is_in_both_splits() -> None:
    written = {record["input"] for record in read("handwritten.json")}
    assert len(written) >= 160
    assert sum(record["input"] in written for record in read("zh_tasks.train.json")) >= 100
    assert sum(record["input"] in written for record in read("zh_tasks.test.json")) >= 40


def test_the_generator_writes_the_same_bytes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "data/generate.py"), "--out", str(tmp_path)], check=True)
    for name in ("zh_tasks.train.json", "zh_tasks.test.json"):
        assert (tmp_path / name).read_bytes() == (ROOT / "data" / name).read_bytes()


def test_the_corpus_of_the_embedded_model_has_no_held_out_text_and_no_answer(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    subprocess.run([sys.executable, str(ROOT / "data/generate.py"), "--corpus", str(corpus)], check=True)
    text = corpus.read_text(encoding="utf-8")
    assert "正面" not in text
    assert "负面" not in text
    for record in read("zh_tasks.test.json"):
        assert record["input"] not in text


def test_the_embedded_model_is_small_and_native() -> None:
    folder = ROOT / "src/hydraft/models/tiny"
    assert (folder / "model.safetensors").stat().st_size <= 4_000_000
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "auto_map" not in config

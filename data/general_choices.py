"""Write the benchmark zh_general: multiple-choice questions on what the embedded model can do before it is fine-tuned.

Each question begins a document in a form of the pre-training corpus (``corpus.py``), not of an instruction record, and its choices end
it. So a model that is fine-tuned on one task shows here what it forgets of the others. ``zh_general.yaml`` is the task for
lm-evaluation-harness. The same seed always gives the same bytes.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from generate import splits, texts
from lexicon import PAIRS
from tasks import SLOT, bilingual, fill, review
from templates import DIARY_DETAILS, NEWS_DETAILS, QA, SUMMARY, TRANSLATION

HERE = Path(__file__).resolve().parent
FILE = "zh_general.json"
OF_EACH_KIND = 30
WRONG = "789"
"""Numbers of the slots that wrong choices get; no template uses them."""

Question = tuple[str, str, list[str]]
"""The beginning of a document, its right end, and wrong ones."""


def exchanged(rng: random.Random, text: str) -> list[str]:
    """A template three times, each time with another word for one of its slots, the same one each time."""
    key = rng.choice([key for key, _ in SLOT.findall(text)])
    return [text.replace(f"{{{key}}}", f"{{{key.rstrip('0123456789')}{number}}}") for number in WRONG]


def translation(rng: random.Random) -> Question:
    """A sentence of a phrase book; its translation, and those of sentences with one word exchanged."""
    line = rng.choice([line for line in TRANSLATION if SLOT.search(line)])
    words = {key: rng.choice(PAIRS[key]) for key, _ in SLOT.findall(line)}
    chinese, english = bilingual(line, words)
    key, wrong = rng.choice(list(words)), list[str]()
    for word in rng.sample(PAIRS[key], len(PAIRS[key])):
        other = bilingual(line, words | {key: word})
        if other[0] != chinese and other[1] not in (english, *wrong) and len(wrong) < len(WRONG):
            wrong.append(other[1])
    return f"{chinese}\n", english, wrong


def reading(rng: random.Random) -> Question:
    """A passage with a dialogue about it; the answer in it, and words of the same kind."""
    passage, *pairs = rng.choice(QA).split("|")
    question, answer = rng.choice([pair for pair in pairs if SLOT.search(pair.split(">")[1])]).split(">")
    passage, question, answer, *wrong = fill(rng, passage, question, answer, *exchanged(rng, answer))
    return f"{passage}\n问：{question}\n答：", answer, wrong


def headline(rng: random.Random) -> Question:
    """A news item or a diary entry; its headline, and the headline with one word exchanged."""
    body, summary = rng.choice([line for line in SUMMARY if SLOT.search(line.split("=>")[1])]).split("=>")
    body = body.replace("{nd}", rng.choice(NEWS_DETAILS)).replace("{dd}", rng.choice(DIARY_DETAILS))
    body, summary, *wrong = fill(rng, body, summary, *exchanged(rng, summary))
    return f"{body}\n标题：", summary, wrong


def rating(rng: random.Random) -> Question:
    """A review; its stars, or the opposite."""
    good = rng.random() < 0.5
    marks = ["五星", "一星"] if good else ["一星", "五星"]
    return f"{review(rng, good)}\n推荐指数：", marks[0], marks[1:]


KINDS: dict[str, Callable[[random.Random], Question]] = {
    "translation": translation,
    "reading": reading,
    "headline": headline,
    "rating": rating,
}


def questions(seed: int) -> list[dict[str, Any]]:
    """The questions of every kind; none has a text of the instruction records."""
    rng = random.Random(seed)
    seen = {text for split in splits(20, 1800, 200) for item in split for text in texts(item)}
    found = []
    for kind, make in KINDS.items():
        count = 0
        while count < OF_EACH_KIND:
            text, right, wrong = make(rng)
            usable = len({right, *wrong}) == (2 if kind == "rating" else 1 + len(WRONG))
            if not usable or any(line in seen for line in text.split("\n")):
                continue
            seen.update(line for line in text.split("\n") if len(line) > 5)
            choices = rng.sample([right, *wrong], 1 + len(wrong))
            found.append({"kind": kind, "text": text, "choices": choices, "answer": choices.index(right)})
            count += 1
    return found


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seed", type=int, default=23, help="seed of every random choice")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the file")
    options = parser.parse_args()
    lines = ",\n".join("  " + json.dumps(item, ensure_ascii=False) for item in questions(options.seed))
    (options.out / FILE).write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()

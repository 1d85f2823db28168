"""Write the preference pairs: for each prompt a chosen and a rejected answer, in a training and a held-out split.

What is preferred is what supervised fine-tuning on the instruction set does not teach: a polite reply to a guest, not a
blunt one that says the same in about as many words. The other pairs have the instructions of the instruction set and
prefer its answer to a wrong one of the same form, so that the tasks are not forgotten.

The hand-written pairs are mixed with generated ones. The same seed always gives the same bytes.
"""

import argparse
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

from generate import HERE, INSTRUCTIONS, LABELS, TO_CHINESE, TO_ENGLISH, write_records
from preference_texts import ANSWERS, ASK_POLITELY, ASK_REPLY, MESSAGES, REPLIES
from review_words import KINDS
from tasks import contrast, fill, misread_news, misread_pair, passage_questions, review

Pair = dict[str, str]

# Hand-written pairs kept for the held-out split, per task.
HELD_OUT = {"small_talk": 6, "qa": 6, "reply": 6}
# Every fifth message is used in the held-out split only, since its prompts differ in a few words only.
MESSAGE_STEP = 5
# The part of a question that its answer replaces; with "做什么工作", a verb stands before the answer.
ASKED = re.compile(
    "为什么|怎么了|做什么(?=？)|什么时候|什么(?:颜色|名字|活动|水果|动物|东西)?|谁|哪里|哪个季节|哪个城市|哪条路上|星期几|第几名|几点"
    "|多少(?:个小时|个|天|岁|钱)?|多长时间|多久"
)


def pair(task: str, instruction: str, text: str, chosen: str, rejected: str) -> Pair:
    """Make a pair."""
    return {"instruction": instruction, "input": text, "chosen": chosen, "rejected": rejected, "task": task}


def message(rng: random.Random, lines: list[str]) -> Pair:
    """A message and its two replies."""
    asked, chosen, rejected = fill(rng, *rng.choice(lines).split("|"))
    return pair("small_talk", asked, "", chosen, rejected)


def sentence(question: str, answer: str) -> str:
    """The statement that answers a question: a Chinese question has the order of its answer."""
    found = ASKED.search(question.replace("做什么工作", "当什么"))
    assert found, question
    return f"{found.string[: found.start()]}{answer}{found.string[found.end() :]}".removesuffix("？")


def polite_answer(rng: random.Random) -> Pair:
    """A polite answer from the passage, and a blunt one."""
    passage, questions = passage_questions(rng)
    question, answer = questions[0]
    polite, blunt = (form.format(sentence(question, answer)) for form in rng.choice(ANSWERS))
    return pair("qa", rng.choice(ASK_POLITELY), f"短文：{passage}\n问题：{question}", polite, blunt)


def polite_reply(rng: random.Random) -> Pair:
    """A polite reply to a review, and a blunt one."""
    good = rng.random() < 0.5
    return pair("reply", rng.choice(ASK_REPLY), review(rng, good), *rng.choice(REPLIES[good]))


def label(rng: random.Random) -> Pair:
    """The right and the wrong label of a review; in half of them the last part decides."""
    good = rng.random() < 0.5
    text = review(rng, good) if rng.random() < 0.5 else contrast(rng, good, rng.choice(KINDS))[0] + "。"
    return pair("sentiment", rng.choice(INSTRUCTIONS["sentiment"]), text, LABELS[good], LABELS[not good])


def other_span(rng: random.Random) -> Pair:
    """The answer, and the answer to another question about the same passage."""
    while True:
        passage, questions = passage_questions(rng)
        question, answer = questions[0]
        others = [text for _, text in questions if text not in answer and answer not in text]
        if others:
            text = f"短文：{passage}\n问题：{question}"
            return pair("qa", rng.choice(INSTRUCTIONS["qa"]), text, answer, rng.choice(others))


def wrong_word(rng: random.Random) -> Pair:
    """A summary, and the same with a word that is not in the passage."""
    passage, summary, wrong = misread_news(rng)
    return pair("summary", rng.choice(INSTRUCTIONS["summary"]), passage, summary, wrong)


def misread(rng: random.Random) -> Pair:
    """A translation, and the same with another word."""
    right, wrong = misread_pair(rng)
    source = rng.randrange(2)
    asked = rng.choice(TO_CHINESE if source else TO_ENGLISH)
    return pair("translation", asked, right[source], right[1 - source], wrong[1 - source])


# Generated pairs of each kind in the training split and in the held-out one; those of messages follow below.
SIZES: dict[Callable[[random.Random], Pair], tuple[int, int]] = {
    polite_answer: (60, 10),
    polite_reply: (70, 14),
    label: (70, 12),
    other_span: (45, 8),
    wrong_word: (40, 6),
    misread: (45, 8),
}
MESSAGE_SIZES = (110, 24)


def texts(item: Pair) -> list[str]:
    """The texts of a pair that must not occur in another split, nor in the instruction set."""
    if item["task"] == "translation":
        return [item["input"], item["chosen" if "chosen" in item else "output"]]
    return [(item["input"] or item["instruction"]).removeprefix("短文：").split("\n")[0]]


def read(name: str) -> list[Pair]:
    """Read a file of this folder."""
    return json.loads((HERE / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def splits(seed: int) -> tuple[list[Pair], list[Pair]]:
    """Build both splits from hand-written pairs and generated ones, of texts that are not in the instruction set."""
    rng = random.Random(seed)
    train: list[Pair] = []
    test: list[Pair] = []
    written = read("handwritten_pairs.json")
    for task, held_out in HELD_OUT.items():
        own = [item for item in written if item["task"] == task]
        rng.shuffle(own)
        test += own[:held_out]
        train += own[held_out:]
    used = [*train, *test, *read("zh_tasks.train.json"), *read("zh_tasks.test.json")]
    seen = {text for item in used for text in texts(item)}
    for part, records in ((1, test), (0, train)):
        makers = [(maker, size[part]) for maker, size in SIZES.items()]
        usable = [line for i, line in enumerate(MESSAGES) if (i % MESSAGE_STEP == 0) == bool(part)]
        makers.append((lambda rng, lines=usable: message(rng, lines), MESSAGE_SIZES[part]))  # type: ignore[misc]
        for maker, size in makers:
            while size:
                item = maker(rng)
                if seen.isdisjoint(texts(item)):
                    seen.update(texts(item))
                    records.append(item)
                    size -= 1
        rng.shuffle(records)
    return train, test


def main() -> None:
    """Write the splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--seed", type=int, default=20, help="seed of every random choice")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the two splits")
    options = parser.parse_args()
    train, test = splits(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    write_records(options.out / "zh_preferences.train.json", train)
    write_records(options.out / "zh_preferences.test.json", test)


if __name__ == "__main__":
    main()

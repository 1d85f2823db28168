"""Write the preference pairs: for each prompt a chosen and a rejected answer, in a training and a held-out split.

What is preferred is what supervised fine-tuning on the instruction set does not teach: a reason if one is asked for, a
summary as short as was asked, "the passage does not tell" instead of a guess, and a kind reply. Half of the pairs
prefer the answers of the instruction set to such an answer where it was not asked for, and to mistakes of a small model
(a wrong word, a repetition, an answer that is cut off), so that neither the length nor a phrase tells which is chosen.

The hand-written pairs are mixed with generated ones. The same seed always gives the same bytes.
"""

import argparse
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

from generate import HERE, INSTRUCTIONS, LABELS, TO_CHINESE, TO_ENGLISH, write_records
from preference_texts import ASK_HONEST, ASK_REASON, ASK_SHORT, CHATS, CURT, NOT_TOLD, PASSAGES
from review_words import KINDS
from tasks import SLOT, clause, contrast, fill, misread_pair, passage_questions
from templates import DIARY_DETAILS, NEWS_DETAILS, QA, SUMMARY

Pair = dict[str, str]

# Hand-written pairs kept for the held-out split, per task.
HELD_OUT = {"small_talk": 7, "qa": 6, "sentiment": 5, "summary": 4, "translation": 2}
# Every fifth chat is used in the held-out split only, since its prompts differ in a few words only.
CHAT_STEP = 5
# Beginnings of the first clause of a summary that is no sentence of its own.
DEPENDENT = ("因", "由于", "遇到", "一只", "我和")

# Words that refer to another clause, in one that is to stand alone as a reason.
UNFIT = re.compile("也|都很")


def pair(task: str, instruction: str, text: str, chosen: str, rejected: str) -> Pair:
    """Make a pair."""
    return {"instruction": instruction, "input": text, "chosen": chosen, "rejected": rejected, "task": task}


def cut_off(rng: random.Random, text: str) -> str:
    """Drop the end of an answer, as a limit on new tokens does."""
    parts = text.split(" ") if text.isascii() else list(text)
    return ("" if not text.isascii() else " ").join(parts[: rng.randint((len(parts) + 1) // 2, len(parts) - 1)])


def small_talk(rng: random.Random, lines: list[str]) -> Pair:
    """A kind reply, and a curt one, one to something else, the question again, or the beginning of the reply."""
    question, kind, curt = fill(rng, *rng.choice(lines).split("|"))
    other = fill(rng, rng.choice([line for line in lines if not line.startswith(question[:3])]))[0].split("|")[1]
    shape = rng.random()
    rejected = curt if shape < 0.55 else rng.choice(CURT) if shape < 0.7 else question if shape < 0.8 else other
    return pair("small_talk", question, "", kind, rejected if shape < 0.9 else cut_off(rng, kind))


def label(rng: random.Random) -> Pair:
    """The right and the wrong label of a review in which the last part decides."""
    good = rng.random() < 0.5
    text = contrast(rng, good, rng.choice(KINDS))[0] + "。"
    return pair("sentiment", rng.choice(INSTRUCTIONS["sentiment"]), text, LABELS[good], LABELS[not good])


def reason(rng: random.Random) -> Pair:
    """The label and the clause that decides it; and no reason, a reason that contradicts it, or the wrong label."""
    good, shape = rng.random() < 0.5, rng.random()
    text = "也"
    while UNFIT.search(text):
        text, first, last = contrast(rng, good, rng.choice(KINDS))
    rejected = LABELS[good] if shape < 0.6 else f"{LABELS[good if shape < 0.8 else not good]}，因为{first}。"
    return pair("sentiment", rng.choice(ASK_REASON), text + "。", f"{LABELS[good]}，因为{last}。", rejected)


def no_reason(rng: random.Random) -> Pair:
    """Only the label where no reason is asked for; and the label with a reason, or twice."""
    good = rng.random() < 0.5
    kind = rng.choice(KINDS)
    cause, other = "", "也"
    while UNFIT.search(cause + other) or cause == other:
        cause, other = clause(rng, good, kind), clause(rng, good, kind)
    text = f"{cause}，{other}。"
    rejected = f"{LABELS[good]}，因为{cause}。" if rng.random() < 0.8 else f"{LABELS[good]}，{LABELS[good]}。"
    return pair("sentiment", rng.choice(INSTRUCTIONS["sentiment"]), text, LABELS[good], rejected)


def _questions(rng: random.Random) -> tuple[str, list[list[str]], list[list[str]]]:
    """A passage, the questions that it answers, and those that it does not, with a wrong answer."""
    passage, *lines = fill(rng, *rng.choice(PASSAGES).split("|"))
    told = [line.split(">") for line in lines if ">" in line]
    return passage, told, [line.split("!") for line in lines if "!" in line]


def _asked(passage: str, question: str) -> str:
    return f"短文：{passage}\n问题：{question}"


def not_told(rng: random.Random) -> Pair:
    """A question that the passage does not answer: to say so, and to answer with a word of the passage."""
    passage, _, untold = _questions(rng)
    question, wrong = rng.choice(untold)
    return pair("qa", rng.choice(ASK_HONEST), _asked(passage, question), NOT_TOLD, wrong)


def someone_else(rng: random.Random) -> Pair:
    """A question about a person or a thing that does not occur in the passage: to say so, and the answer for another."""
    while True:
        passage, *lines = rng.choice(QA).split("|")
        question, answer = rng.choice(lines).split(">")
        keys = [key for key, _ in SLOT.findall(question)]
        # Of what there is "besides" a thing that the passage does not mention, nothing can be said.
        if keys and "除了" not in question:
            key = rng.choice(keys)
            other = question.replace(f"{{{key}}}", "{" + key.rstrip("0123456789") + "9}")
            passage, question, answer = fill(rng, passage, other, answer)
            return pair("qa", rng.choice(ASK_HONEST), _asked(passage, question), NOT_TOLD, answer)


def told(rng: random.Random) -> Pair:
    """A question that the passage answers: the answer, and that the passage does not tell."""
    if rng.random() < 0.5:
        passage, questions, _ = _questions(rng)
        question, answer = rng.choice(questions)
    else:
        passage, found = passage_questions(rng)
        question, answer = found[0]
    return pair("qa", rng.choice(ASK_HONEST), _asked(passage, question), answer, NOT_TOLD)


def other_span(rng: random.Random) -> Pair:
    """The answer, and the answer to another question about the same passage, or the whole passage."""
    while True:
        passage, questions = passage_questions(rng)
        question, answer = questions[0]
        others = [text for _, text in questions if text not in answer and answer not in text]
        if others:
            rejected = rng.choice(others) if rng.random() < 0.8 else passage
            return pair("qa", rng.choice(INSTRUCTIONS["qa"]), _asked(passage, question), answer, rejected)


def _news(rng: random.Random) -> tuple[str, str, str, str]:
    """A passage, its summary, the summary with a word that does not fit, and the closing detail."""
    body, summary = rng.choice(SUMMARY).split("=>")
    details = NEWS_DETAILS if "{nd}" in body else DIARY_DETAILS
    detail = rng.choice([text for text in details if text])
    body = body.replace("{nd}", detail).replace("{dd}", detail)
    keys = [key for key, _ in SLOT.findall(summary)] or [""]
    key = rng.choice(keys)
    wrong = summary.replace(f"{{{key}}}", "{" + key.rstrip("0123456789") + "8}") if key else summary
    passage, summary, wrong, detail = fill(rng, body, summary, wrong, detail)
    return passage, summary, wrong, detail


def short_summary(rng: random.Random) -> Pair:
    """The first clause of the summary where the shortest one is asked for; and the summary, or the closing detail."""
    while True:
        passage, summary, _, detail = _news(rng)
        first = summary.split("，")[0]
        if "，" in summary and not first.startswith(DEPENDENT):
            rejected = summary if rng.random() < 0.8 else detail
            return pair("summary", rng.choice(ASK_SHORT), passage, first + "。", rejected)


def full_summary(rng: random.Random) -> Pair:
    """The summary, and its first clause, one with a wrong word, a repetition, a copied sentence or a cut-off answer."""
    while True:
        passage, summary, wrong, detail = _news(rng)
        first = summary.split("，")[0]
        rejected = rng.choice(
            (
                *([first + "。"] * 2 if "，" in summary else []),
                *[wrong] * 3,
                summary + summary,
                summary + detail,
                re.split("(?<=。)", passage)[0],
                detail,
                cut_off(rng, summary),
            )
        )
        if rejected != summary:
            return pair("summary", rng.choice(INSTRUCTIONS["summary"]), passage, summary, rejected)


def translation(rng: random.Random) -> Pair:
    """The translation, and one with a wrong word, the sentence itself, or a cut-off translation."""
    right, wrong = misread_pair(rng)
    source = rng.randrange(2)
    text, chosen = right[source], right[1 - source]
    shape = rng.random()
    rejected = wrong[1 - source] if shape < 0.6 else text if shape < 0.8 else cut_off(rng, chosen)
    return pair("translation", rng.choice(TO_CHINESE if source else TO_ENGLISH), text, chosen, rejected)


# Generated pairs of each kind in the training split and in the held-out one; those of small talk follow below.
SIZES: dict[Callable[[random.Random], Pair], tuple[int, int]] = {
    label: (60, 10),
    reason: (70, 12),
    no_reason: (40, 8),
    not_told: (60, 10),
    someone_else: (20, 4),
    told: (60, 12),
    other_span: (40, 8),
    short_summary: (60, 10),
    full_summary: (60, 12),
    translation: (40, 8),
}
SMALL_TALK = (90, 18)


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
    held_out_chats, chats = CHATS[::CHAT_STEP], [line for i, line in enumerate(CHATS) if i % CHAT_STEP]
    for part, records, lines in ((1, test, held_out_chats), (0, train, chats)):
        makers = [(maker, size[part]) for maker, size in SIZES.items()]
        makers.append((lambda rng, lines=lines: small_talk(rng, lines), SMALL_TALK[part]))  # type: ignore[misc]
        for maker, size in makers:
            while size:
                item = maker(rng)
                if seen.isdisjoint(texts(item)) and item["chosen"] != item["rejected"]:
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

"""Build one example of each task from the templates and the word lists.

The instruction records and the pre-training documents share these functions; only the form in which the examples are
written differs.
"""

import random
import re

from lexicon import PAIRS, WORDS
from review_clauses import BAD, GOOD
from review_words import ASPECTS, KINDS
from templates import DIARY_DETAILS, NEWS_DETAILS, QA, SUMMARY, TRANSLATION

SLOT = re.compile(r"\{([a-z]+\d?)(?:\.(\d))?\}")
VERY = ["很", "非常", "特别", "真", "挺", "相当", "十分", "比较", "太", "实在", "确实很", "格外", "也很", "也", "都很"]
# Clauses of the same polarity are joined by these (mostly by a comma).
JOINTS = ["，"] * 9 + ["，而且", "，再说", "；"]

Row = tuple[list[str], list[str], list[str]]


def _by_kind(table: str) -> dict[str, list[str]]:
    """Group the lines of a word table by the kind of review that they fit."""
    rows = [line.split(" ", 1) for line in table.strip().splitlines()]
    return {kind: [text for tags, text in rows if kind in tags or tags == "*"] for kind in KINDS}


def _aspect_rows(lines: list[str]) -> list[Row]:
    """Split each aspect line into its nouns, its positive and its negative adjectives."""
    fields = [[part.split("/") for part in line.split(":")] for line in lines]
    return [(nouns, praise, blame) for nouns, praise, blame in fields]


ASPECT_ROWS = {kind: _aspect_rows(lines) for kind, lines in _by_kind(ASPECTS).items()}
CLAUSES = {
    good: {kind: "/".join(lines).split("/") for kind, lines in _by_kind(table).items()}
    for good, table in ((True, GOOD), (False, BAD))
}
# Negations that make a bad adjective positive, or a good one negative.
DENIALS = {
    True: "一点也不{} 并不{} 不算{} 没有想象中那么{} 倒不{} 一点都不{} 没那么{}",
    False: "并不{} 一点都不{} 没有想象中{} 谈不上{} 算不上{} 不够{} 不怎么{} 没有以前{}",
}
# The last part of a mixed review ({b}) decides its label.
CONTRASTS = """虽然{a}，但是{b} 虽然{a}，但{b} 尽管{a}，可是{b} {a}，但是{b} {a}，不过{b} {a}，但{b} {a}，没想到{b}
本来以为{a}，结果{b} 原以为{a}，没想到{b} 别人都说{a}，我却觉得{b} {a}，可{b} 一开始觉得{a}，后来才发现{b}
{a}倒是真的，可是{b} {b}，尽管{a} {a}，总的来说{b}"""


def fill(rng: random.Random, *texts: str) -> list[str]:
    """Fill the slots of several texts consistently, with distinct words from each list."""
    chosen: dict[str, str] = {}
    for key, _ in SLOT.findall(" ".join(texts)):
        while key not in chosen:
            word = rng.choice(WORDS[key.rstrip("0123456789")])
            if word not in chosen.values():
                chosen[key] = word
    return [SLOT.sub(lambda match: chosen[match[1]], text) for text in texts]


def _aspect_clause(rng: random.Random, good: bool, row: Row) -> str:
    """State that one aspect is good (or bad), sometimes by a negation."""
    nouns, praise, blame = row
    noun, same, opposite = rng.choice(nouns), praise, blame
    if not good:
        same, opposite = blame, praise
    shape = rng.random()
    if shape < 0.25:
        return noun + rng.choice(DENIALS[good].split()).format(rng.choice(opposite))
    if shape < 0.33:
        return "{}又{}又{}".format(noun, *rng.sample(same, 2))
    degree = "有点" if shape < 0.4 and not good else rng.choice(VERY)
    return noun + degree + rng.choice(same) + ("了" if degree == "太" else "")


def clause(rng: random.Random, good: bool, kind: str) -> str:
    """Write one clause of the given polarity about the given kind of thing."""
    if rng.random() < 0.5:
        return fill(rng, rng.choice(CLAUSES[good][kind]))[0]
    return _aspect_clause(rng, good, rng.choice(ASPECT_ROWS[kind]))


def contrast(rng: random.Random, good: bool, kind: str) -> tuple[str, str, str]:
    """Write a review in which the last part decides the label; returned with the other part and that part."""
    shapes = CONTRASTS.split()
    shapes += ["{a}，好在{b}", "除了{a}，其他方面都不错，{b}"] if good else ["{a}，可惜{b}", "{a}，就是{b}"]
    # The two parts must be about different aspects, or they would contradict each other.
    one, other = rng.sample(ASPECT_ROWS[kind], 2)
    last = _aspect_clause(rng, good, other) if rng.random() < 0.6 else clause(rng, good, kind)
    shape, first = rng.choice(shapes), _aspect_clause(rng, not good, one)
    return shape.format(a=first, b=last), first, last


def review(rng: random.Random, good: bool) -> str:
    """Write a review with a positive or negative label."""
    kind = rng.choice(KINDS)
    mixed = rng.random() < 0.38
    text = contrast(rng, good, kind)[0] if mixed else clause(rng, good, kind)
    for _ in range(rng.choice((0, 0, 1) if mixed else (0, 1, 1, 1, 2, 2))):
        addition = clause(rng, good, kind)
        if addition not in text:
            text += rng.choice(JOINTS) + addition
    return text + rng.choice("。。。。。！")


def passage_questions(rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """Write a passage and several questions that it answers."""
    passage, *pairs = fill(rng, *rng.choice(QA).split("|"))
    questions = []
    for pair in pairs:
        question, answer = pair.split(">")
        questions.append((question, answer))
    rng.shuffle(questions)
    return passage, questions


def news(rng: random.Random) -> tuple[str, str]:
    """Write a news item or a diary entry and its summary in one sentence."""
    body, summary = rng.choice(SUMMARY).split("=>")
    body = body.replace("{nd}", rng.choice(NEWS_DETAILS)).replace("{dd}", rng.choice(DIARY_DETAILS))
    passage, summary = fill(rng, body, summary)
    return passage, summary


def misread_news(rng: random.Random) -> tuple[str, str, str]:
    """Write a news item or a diary entry, its summary, and the summary once more with one word exchanged."""
    while True:
        body, summary = rng.choice(SUMMARY).split("=>")
        body = body.replace("{nd}", rng.choice(NEWS_DETAILS)).replace("{dd}", rng.choice(DIARY_DETAILS))
        key = rng.choice([key for key, _ in SLOT.findall(summary)] or [""])
        other = "{" + key.rstrip("0123456789") + "8}"
        if key:
            passage, summary, wrong = fill(rng, body, summary, summary.replace(f"{{{key}}}", other))
            return passage, summary, wrong


def bilingual(line: str, words: dict[str, tuple[str, ...]]) -> tuple[str, str]:
    """Fill a line of the translation templates with the forms of the chosen words."""

    def form(match: re.Match[str]) -> str:
        return words[match[1]][int(match[2] or 0)]

    chinese, english = SLOT.sub(form, line).split("|")
    english = re.sub(r"\ba(?= [aeiouAEIOU])", "an", english)
    return chinese, english[0].upper() + english[1:]


def sentence_pair(rng: random.Random) -> tuple[str, str]:
    """Write a Chinese sentence and its English translation."""
    line = rng.choice(TRANSLATION)
    return bilingual(line, {key: rng.choice(PAIRS[key]) for key, _ in SLOT.findall(line)})


def misread_pair(rng: random.Random) -> tuple[tuple[str, str], tuple[str, str]]:
    """Write a Chinese sentence and its English translation, and both once more with one word exchanged."""
    line = rng.choice([line for line in TRANSLATION if SLOT.search(line)])
    words = {key: rng.choice(PAIRS[key]) for key, _ in SLOT.findall(line)}
    key = rng.choice(list(words))
    right = bilingual(line, words)
    while True:
        wrong = bilingual(line, words | {key: rng.choice(PAIRS[key])})
        if wrong[0] != right[0] and wrong[1] != right[1]:
            return right, wrong

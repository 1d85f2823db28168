"""Scores of generated answers against their references, from 0 to 1. Higher is better, except for the share of empty answers.

An empty answer counts as 0 in every score.
"""

import re
from difflib import SequenceMatcher
from functools import cache
from statistics import fmean
from typing import Any

from hydraft.config import score as score_names
from hydraft.config.choices import Task
from hydraft.data.records import Conversation

Scores = dict[str, float]


def score(conversations: list[Conversation], predictions: list[str], task: Task = Task.auto) -> Scores:
    """The scores over all answers that ``scored`` returns."""
    return scored(conversations, predictions, task)[0]


def scored(
    conversations: list[Conversation], predictions: list[str], task: Task = Task.auto
) -> tuple[Scores, list[Scores]]:
    """Scores over all answers and for each task, and those of each answer; a score is the mean of those of its answers.

    * all: exact match of the stripped texts, and the share of empty answers
    * sentiment: accuracy; an answer is correct if it names its class and no other class
    * qa: exact match and character F1
    * summary and general: exact match, character BLEU-4, and ROUGE-1/2/L over words segmented by jieba (F-measure)
    * any other task: exact match

    BLEU is the exception: it is computed from all answers of a task, and an answer has none of its own.
    A ``task`` other than ``auto`` replaces the task of every record.
    """
    each: list[Scores] = [
        {"exact_match": float(_matches(conversation, text)), "empty": float(not text.strip())}
        for conversation, text in zip(conversations, predictions, strict=True)
    ]
    scores = {name: fmean(own[name] for own in each) for name in ("exact_match", "empty")}
    tasks: dict[str, list[int]] = {}
    for index, conversation in enumerate(conversations):
        name = conversation.task if task is Task.auto else task.value
        if name:
            tasks.setdefault(name, []).append(index)
    for name, members in sorted(tasks.items()):
        references, texts = [conversations[i].reference for i in members], [predictions[i] for i in members]
        matches = [each[i]["exact_match"] for i in members]
        for kind, values in _of_task(name, references, texts, matches).items():
            scores[kind] = fmean(values)
            for index, value in zip(members, values, strict=True):
                each[index][kind] = value
        if name in ("summary", "general"):
            scores[f"{name}_bleu4"] = character_bleu(references, texts)
    return scores, each


def _of_task(name: str, references: list[str], texts: list[str], matches: list[float]) -> dict[str, list[float]]:
    """The scores of a task, each with a value for every answer."""
    if name == "sentiment":
        return {"sentiment_accuracy": named_correctly(references, texts)}
    found = {f"{name}_exact_match": matches}
    if name == "qa":
        found["qa_f1"] = list(map(character_f1, references, texts))
    if name in ("summary", "general"):
        found |= {f"{name}_{kind}": values for kind, values in rouge_of_each(references, texts).items()}
    return found


def accuracy(references: list[str], predictions: list[str]) -> float:
    """Share of predictions that name the class of their reference and no other class."""
    return fmean(named_correctly(references, predictions))


def named_correctly(references: list[str], predictions: list[str]) -> list[float]:
    """1 for each prediction that names the class of its reference and no other class, else 0."""
    classes = sorted({text.strip() for text in references}, key=len, reverse=True)
    return [
        float(_named(text, classes) == {right.strip()}) for right, text in zip(references, predictions, strict=True)
    ]


def _named(text: str, classes: list[str]) -> set[str]:
    """The classes (longest first) in ``text``. A class that is part of a longer one in the text (好 in 不好) does not count."""
    named = set()
    for name in classes:
        if name in text:
            named.add(name)
            text = text.replace(name, "\n")
    return named


def macro_f1(references: list[str], predictions: list[str]) -> float:
    """The mean of the F1 of every class in ``references`` or ``predictions``, as scikit-learn's ``f1_score(average="macro")``."""
    found = []
    for name in sorted({*references, *predictions} - {""}):
        both = sum(right == text == name for right, text in zip(references, predictions, strict=True))
        found.append(2 * both / (references.count(name) + predictions.count(name)))
    return fmean(found)


def character_f1(reference: str, prediction: str) -> float:
    """F1 of the longest common substring, as in CMRC 2018 (Cui et al., arXiv:1810.07366).

    A Latin word or a number counts as one character; punctuation and case are ignored.
    """
    expected, found = _characters(reference), _characters(prediction)
    shared = SequenceMatcher(None, expected, found, autojunk=False).find_longest_match().size
    return 2 * shared / (len(expected) + len(found)) if shared else 0.0


def _characters(text: str) -> list[str]:
    return re.findall(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+", text.lower())


def character_bleu(references: list[str], predictions: list[str]) -> float:
    """Corpus BLEU-4 over characters (Papineni et al. 2002), as sacrebleu computes it, from 0 to 1."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(tokenize="char", force=True)
    return float(bleu.corpus_score([text.strip() for text in predictions], [references]).score) / 100


def rouge(references: list[str], predictions: list[str]) -> Scores:
    """Mean F-measure of ROUGE-1, -2 and -L (Lin 2004) over words segmented by jieba, as rouge-score computes it."""
    return {kind: fmean(values) for kind, values in rouge_of_each(references, predictions).items()}


def rouge_of_each(references: list[str], predictions: list[str]) -> dict[str, list[float]]:
    """The F-measures of ``rouge``, for each prediction."""
    scorer = _rouge_scorer()
    rows = [scorer.score(right, text) for right, text in zip(references, predictions, strict=True)]
    return {kind.lower(): [float(row[kind].fmeasure) for row in rows] for kind in ("rouge1", "rouge2", "rougeL")}


@cache
def _rouge_scorer() -> Any:
    import jieba
    from rouge_score.rouge_scorer import RougeScorer

    jieba.setLogLevel(60)  # otherwise it logs that it reads its dictionary

    class Words:
        def tokenize(self, text: str) -> list[str]:
            return [word for word in jieba.cut(text) if word.strip()]

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Words())


def _matches(conversation: Conversation, text: str) -> bool:
    return text.strip() == conversation.reference.strip()


def shown(name: str, value: float) -> str:
    """A score as text: losses and rewards as numbers, the others as shares."""
    cost = name != "empty" and score_names.direction(name) == "minimize"
    return f"{value:.3f}" if cost or name.endswith(("reward", "margin")) else f"{value:.1%}"

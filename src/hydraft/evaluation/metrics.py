"""Scores of generated answers against their references, from 0 to 1. Higher is better, except for the share of empty answers.

An empty answer counts as 0 in every score.
"""

import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from functools import cache
from statistics import fmean
from typing import Any

from hydraft.config.choices import Task
from hydraft.data.records import Conversation

Scores = dict[str, float]


def score(conversations: list[Conversation], predictions: list[str], task: Task = Task.auto) -> Scores:
    """Scores over all answers and for each task.

    * all: exact match of the stripped texts, and the share of empty answers
    * sentiment: accuracy; an answer is correct if it names its class and no other class
    * qa: exact match and character F1
    * summary and general: exact match, character BLEU-4, and ROUGE-1/2/L over words segmented by jieba (F-measure)
    * any other task: exact match

    A ``task`` other than ``auto`` replaces the task of every record.
    """
    pairs = list(zip(conversations, predictions, strict=True))
    scores = {"exact_match": _share(map(_matches, conversations, predictions))}
    scores["empty"] = _share(not text.strip() for text in predictions)
    tasks: dict[str, list[tuple[Conversation, str]]] = {}
    for conversation, text in pairs:
        name = conversation.task if task is Task.auto else task.value
        if name:
            tasks.setdefault(name, []).append((conversation, text))
    for name, members in sorted(tasks.items()):
        references, texts = [conversation.reference for conversation, _ in members], [text for _, text in members]
        if name == "sentiment":
            scores["sentiment_accuracy"] = accuracy(references, texts)
            continue
        scores[f"{name}_exact_match"] = _share(_matches(conversation, text) for conversation, text in members)
        if name == "qa":
            scores["qa_f1"] = _share(map(character_f1, references, texts))
        if name in ("summary", "general"):
            scores[f"{name}_bleu4"] = character_bleu(references, texts)
            scores |= {f"{name}_{kind}": value for kind, value in rouge(references, texts).items()}
    return scores


def accuracy(references: list[str], predictions: list[str]) -> float:
    """Share of predictions that name the class of their reference and no other class."""
    classes = sorted({text.strip() for text in references}, key=len, reverse=True)
    return _share(_named(text, classes) == {right.strip()} for right, text in zip(references, predictions, strict=True))


def _named(text: str, classes: list[str]) -> set[str]:
    """The classes (longest first) in ``text``. A class that is part of a longer one in the text (好 in 不好) does not count."""
    named = set()
    for name in classes:
        if name in text:
            named.add(name)
            text = text.replace(name, "\n")
    return named


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
    scorer = _rouge_scorer()
    rows = [scorer.score(right, text) for right, text in zip(references, predictions, strict=True)]
    return {
        kind.lower(): sum(row[kind].fmeasure for row in rows) / len(rows) for kind in ("rouge1", "rouge2", "rougeL")
    }


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


def _share(parts: Iterable[float]) -> float:
    return fmean(parts)

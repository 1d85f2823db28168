"""Scores held to values counted by hand and to the published definitions."""

import math

import pytest

from hydraft.choices import Task
from hydraft.data.formats import Conversation, Turn
from hydraft.metrics import accuracy, character_bleu, rouge, score


def record(answer: str, task: str | None = None) -> Conversation:
    return Conversation((Turn("user", "问"), Turn("assistant", answer)), task=task)


def test_scores_of_four_answers() -> None:
    records = [
        record("正面", "sentiment"),
        record("负面", "sentiment"),
        record("负面", "sentiment"),
        record("北京", "qa"),
    ]
    assert score(records, ["正面\n", "这是负面评价", "正面或负面", ""]) == {
        "exact_match": 1 / 4,  # the first alone; an empty answer counts as wrong
        "sentiment_accuracy": 2 / 3,  # a sentence that names its class and no other is right
        "qa_exact_match": 0.0,
    }


def test_a_task_that_is_named_stands_for_every_record() -> None:
    scores = score([record("甲乙"), record("丙丁", "qa")], ["甲乙", ""], Task.general)
    assert scores["general_exact_match"] == 0.5
    assert scores["general_rouge1"] == 0.5
    assert "qa_exact_match" not in scores


def test_an_answer_that_names_no_class_or_both_is_wrong() -> None:
    assert accuracy(["正面", "负面", "负面"], ["", "正面负面", "负面。"]) == 1 / 3


def test_character_bleu_by_the_formula() -> None:
    """今天天气好 against 今天天气很好: n-gram precisions 5/5, 3/4, 2/3, 1/2 and a brevity penalty of exp(1 - 6/5)."""
    expected = math.exp(1 - 6 / 5) * (5 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert character_bleu(["今天天气很好"], ["今天天气好"]) == pytest.approx(expected, rel=1e-6)
    assert character_bleu(["今天天气很好"], ["今天天气很好"]) == pytest.approx(1)
    assert character_bleu(["今天天气很好"], [""]) == 0


def test_rouge_over_jiebas_words() -> None:
    """北京 天气 很 好 against 北京 天气 好: 3 of 3 and 3 of 4 words, 1 of 2 and 1 of 3 pairs, a common subsequence of 3."""
    scores = rouge(["北京天气很好"], ["北京天气好"])
    assert scores["rouge1"] == pytest.approx(2 * 3 / (3 + 4))
    assert scores["rouge2"] == pytest.approx(2 * 1 / (2 + 3))
    assert scores["rougel"] == pytest.approx(2 * 3 / (3 + 4))
    assert rouge(["北京", "上海"], ["北京", ""])["rouge1"] == 0.5  # the empty one counts as 0

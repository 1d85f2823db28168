"""Scores are compared with values computed by hand and with the published definitions."""

import math
from statistics import fmean

import pytest

from hydraft.config.choices import Task
from hydraft.data.records import Conversation, Turn
from hydraft.evaluation.metrics import accuracy, character_bleu, character_f1, rouge, score, scored


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
        "exact_match": 1 / 4,  # only the first; an empty answer counts as wrong
        "empty": 1 / 4,
        "sentiment_accuracy": 2 / 3,  # correct if a sentence names its class and no other
        "qa_exact_match": 0.0,
        "qa_f1": 0.0,
    }


def test_an_empty_answer_counts_as_0_in_every_score() -> None:
    """One correct answer and one that is blank: half of each mean; BLEU's brevity penalty is exp(1 - 14 / 7)."""
    for task in (Task.sentiment, Task.qa, Task.summary, Task.general):
        records = [record("今天天气很好。"), record("明天会下大雨。")]
        scores = score(records, ["今天天气很好。", " \n"], task)
        assert scores.pop("empty") == 0.5
        if task in (Task.summary, Task.general):
            assert scores.pop(f"{task.value}_bleu4") == pytest.approx(math.exp(1 - 14 / 7))
        assert scores == dict.fromkeys(scores, 0.5)
        nothing = score(records, ["", ""], task)
        assert nothing == {"empty": 1.0} | dict.fromkeys(nothing.keys() - {"empty"}, 0.0)


def test_each_task_has_its_scores() -> None:
    names = {task: set(score([record("甲")], ["甲"], task)) - {"exact_match", "empty"} for task in Task}
    texts = ("exact_match", "bleu4", "rouge1", "rouge2", "rougel")
    assert names == {
        Task.auto: set(),
        Task.sentiment: {"sentiment_accuracy"},
        Task.qa: {"qa_exact_match", "qa_f1"},
        Task.summary: {f"summary_{name}" for name in texts},
        Task.general: {f"general_{name}" for name in texts},
    }


def test_a_score_is_the_mean_of_those_of_its_answers() -> None:
    """Except BLEU, which an answer alone does not have."""
    pairs = [("正面", "sentiment", "正面"), ("负面", "sentiment", "正面"), ("北京市", "qa", "北京"), ("好", None, "")]
    pairs += [("今天天气很好。", "general", "今天天气不好。"), ("明天会下大雨。", "general", "明天会下大雨。")]
    scores, each = scored([record(answer, task) for answer, task, _ in pairs], [text for *_, text in pairs])
    assert scores.keys() - {name for own in each for name in own} == {"general_bleu4"}
    for name in scores.keys() - {"general_bleu4"}:
        assert scores[name] == pytest.approx(fmean(own[name] for own in each if name in own))
    assert [own["exact_match"] for own in each] == [1, 0, 0, 0, 0, 1]
    assert [own.get("sentiment_accuracy") for own in each] == [1, 0, None, None, None, None]
    assert each[2]["qa_f1"] == pytest.approx(2 * 2 / (3 + 2))


def test_a_configured_task_applies_to_every_record() -> None:
    scores = score([record("甲乙"), record("丙丁", "qa")], ["甲乙", ""], Task.general)
    assert scores["general_exact_match"] == 0.5
    assert scores["general_rouge1"] == 0.5
    assert "qa_exact_match" not in scores


def test_an_answer_that_names_no_class_or_both_is_wrong() -> None:
    assert accuracy(["正面", "负面", "负面"], ["", "正面负面", "负面。"]) == 1 / 3


def test_a_class_is_not_matched_inside_a_longer_one() -> None:
    assert accuracy(["不好", "好", "不好", "好"], ["这不好", "很好", "好", "好还是不好"]) == 2 / 4


def test_character_f1_as_cmrc_scores() -> None:
    """The longest common run of 北京市 and 在北京的 is 北京: precision 2/4, recall 2/3."""
    assert character_f1("北京市", "在北京的") == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert character_f1("北京", "北方的京城") == pytest.approx(2 / (2 + 5))  # a run, not a bag of characters
    assert character_f1("GPT 4，发布于2023年。", "gpt 4发布于2023年") == 1  # case and punctuation are ignored
    assert character_f1("北京", "") == character_f1("北京", "。") == character_f1("。", "。") == 0


def test_character_bleu_by_the_formula() -> None:
    """今天天气好 compared with 今天天气很好: n-gram precisions 5/5, 3/4, 2/3, 1/2 and a brevity penalty of exp(1 - 6/5)."""
    expected = math.exp(1 - 6 / 5) * (5 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert character_bleu(["今天天气很好"], ["今天天气好"]) == pytest.approx(expected, rel=1e-6)
    assert character_bleu(["今天天气很好"], ["今天天气很好"]) == pytest.approx(1)
    assert character_bleu(["今天天气很好"], [""]) == 0


def test_character_bleu_is_computed_over_all_texts() -> None:
    """甲乙丙丁戊 is correct and 天地 stands for 天地人: 7 of 7 characters, 5 of 5 pairs, 3 of 3, 2 of 2; 7 characters for 8."""
    assert character_bleu(["甲乙丙丁戊", "天地人"], ["甲乙丙丁戊", "天地"]) == pytest.approx(math.exp(1 - 8 / 7))


def test_rouge_over_jiebas_words() -> None:
    """北京 天气 很 好 and 北京 天气 好: 3 of 3 and 3 of 4 words, 1 of 2 and 1 of 3 pairs, a common subsequence of 3."""
    scores = rouge(["北京天气很好"], ["北京天气好"])
    assert scores["rouge1"] == pytest.approx(2 * 3 / (3 + 4))
    assert scores["rouge2"] == pytest.approx(2 * 1 / (2 + 3))
    assert scores["rougel"] == pytest.approx(2 * 3 / (3 + 4))
    assert rouge(["北京", "上海"], ["北京", ""])["rouge1"] == 0.5  # the empty one counts as 0

"""Answers that are chosen among labels, and their scores."""

from dataclasses import replace
from statistics import fmean

import pytest

from hydraft.config.choices import Task, Thinking
from hydraft.config.data import DataConfig
from hydraft.data.label_names import classes
from hydraft.data.records import Conversation, Turn
from hydraft.evaluation.label_scores import chosen, is_choice
from hydraft.evaluation.metrics import macro_f1

DATA = DataConfig(name="own", train="x.json", labels=["负面", "正面"])


def record(answer: str, task: str | None = None) -> Conversation:
    return Conversation((Turn("user", "问"), Turn("assistant", answer)), task=task)


def test_the_label_with_the_highest_sum_is_chosen_as_in_lm_evaluation_harness() -> None:
    """``acc`` is the argmax of the sums, ``acc_norm`` that of the sums per character (``process_results``, lm_eval/api/task.py)."""
    records = [record("好", "sentiment"), record("不太好", "sentiment"), record("好")]
    found = chosen(records, ["好", "不太好"], [[-1.0, -2.0], [-3.0, -4.0], [-9.0, -8.0]])
    assert found.answers == ["好", "好", "不太好"]
    assert [one["accuracy"] for one in found.each] == [1, 0, 0]
    assert [one["accuracy_norm"] for one in found.each] == [0, 1, 0]  # -1 and -2/3; -3 and -4/3; -9 and -8/3
    assert found.scores == {
        "accuracy": 1 / 3,
        "accuracy_norm": 1 / 3,
        "macro_f1": fmean([2 * 1 / (2 + 2), 0.0]),
        "sentiment_accuracy": 1 / 2,
    }
    assert "sentiment_accuracy" not in found.each[2]
    assert chosen(records, ["好", "不太好"], [[-1.0, -2.0]] * 3, Task.qa).scores["qa_accuracy"] == 2 / 3


def test_log_likelihoods_that_are_no_numbers_choose_nothing() -> None:
    found = chosen([record("a")], ["a", "b"], [[float("nan"), -1.0]])
    assert found.answers == [""] and found.scores["accuracy"] == 0


def test_macro_f1_is_that_of_scikit_learn() -> None:
    """The example in the docstring of ``sklearn.metrics.f1_score``, and a class that is never predicted."""
    assert macro_f1(list("012012"), list("021001")) == pytest.approx(0.26666667)
    assert macro_f1(["a", "b"], ["a", "a"]) == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (Turn("assistant", " 正面\n"), True),
        (Turn("assistant", "中性"), False),
        (Turn("assistant", "正面", reasoning="因为很好。"), False),
        (Turn("assistant", "正面", tool_calls=({"name": "f"},)), False),
    ],
)
def test_records_whose_answer_is_a_label_and_nothing_else_are_chosen(turn: Turn, expected: bool) -> None:
    conversation = Conversation((Turn("user", "问"), turn))
    assert is_choice(conversation, DATA) is expected
    assert not is_choice(conversation, replace(DATA, labels=[]))
    without_thoughts = replace(DATA, thinking=Thinking.off)
    assert is_choice(conversation, without_thoughts) is (expected or bool(turn.reasoning))


def test_a_text_has_no_answer_and_a_single_label_no_other_to_choose() -> None:
    assert not is_choice(Conversation(plain="正面"), DATA)
    assert classes(["正面", "正面 ", ""]) == [] and classes(["b", "a", "b"]) == ["b", "a"]

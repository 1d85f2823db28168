"""Thoughts in the text of an answer."""

import pytest

from hydraft.data.thinking import MARKS, split


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        ("七", "", "七"),
        ("  七\n", "", "  七\n"),
        ("<think>\n三加四\n</think>\n\n七", "三加四", "七"),
        ("\n<think></think>七", "", "七"),
        ("三加四\n</think>\n\n七", "三加四", "七"),
        ("<think>三加四", "三加四", ""),
        ("标签 <think> 是什么", "", "标签 <think> 是什么"),
        ("先<think>后</think>", "", "先<think>后</think>"),
        ("[THINK]三[/THINK]七", "三", "七"),
    ],
)
def test_the_thoughts_at_the_start_are_split_off(text: str, thoughts: str, answer: str) -> None:
    assert split(text) == (thoughts, answer)


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_the_marks_of_every_family(opening: str, closing: str) -> None:
    assert split(f"{opening}\na\n\nb\n{closing}\n\nc") == ("a\n\nb", "c")

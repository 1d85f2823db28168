"""Thoughts: where each published template has them in the prompt, where they are trained, and where they are left out.

The expected texts are what the published templates render, and for answers with thoughts what the models of each family write.
"""

from dataclasses import replace
from typing import Any

import pytest
from templates import templated

from conftest import config_of
from hydraft.config.choices import Thinking
from hydraft.data import rendering_notes, thinking
from hydraft.data.labels import IGNORE
from hydraft.data.records import Conversation, Turn
from hydraft.data.tokenize import encode_one, prompt_ids
from hydraft.errors import ConfigError

DATA = config_of().data
ON, OFF = (replace(DATA, thinking=mode) for mode in (Thinking.on, Thinking.off))
THOUGHT = Conversation((Turn("user", "Q"), Turn("assistant", "A", reasoning="R")))
PLAIN = Conversation((Turn("user", "Q"), Turn("assistant", "A")))
TWO = Conversation((*THOUGHT.turns, Turn("user", "Q2"), Turn("assistant", "A2", reasoning="R2")))
IM, DS = "<|im_end|>", "<｜end▁of▁sentence｜>"
EXPECTED: dict[str, tuple[str, str, str, str]] = {
    "qwen3": ("assistant\n", f"<think>\nR\n</think>\n\nA{IM}", "assistant\n<think>\n\n</think>\n\n", f"A{IM}"),
    "qwen3_5": ("assistant\n<think>\n", f"R\n</think>\n\nA{IM}", "assistant\n<think>\n\n</think>\n\n", f"A{IM}"),
    "qwen3_thinking_2507": ("assistant\n<think>\n", f"R\n</think>\n\nA{IM}", "<think>\n\n</think>\n\n", f"A{IM}"),
    "deepseek_r1_distill": ("<｜Assistant｜><think>\n", f"R\n</think>\n\nA{DS}", "<think>\n\n</think>\n\n", f"A{DS}"),
    "deepseek_v3_1": ("<｜Assistant｜><think>", f"R</think>A{DS}", "<｜Assistant｜></think>", f"A{DS}"),
    "glm_4_5": ("Q<|assistant|>", "\n<think>R</think>\nA<|endoftext|>", "Q/nothink<|assistant|>\n<think></think>", "\nA<|endoftext|>"),
    "kimi_k2_thinking": ("assistant<|im_middle|>", f"<think>R</think>A{IM}", "<|im_middle|><think></think>", f"A{IM}"),
    "smollm3": ("assistant\n", f"<think>\nR\n</think>\nA{IM}", "assistant\n<think>\n\n</think>\n", f"A{IM}"),
    "granite_3_2": ("assistant<|end_of_role|>", "<think>\nR\n</think>\n\nA<|end_of_text|>", "assistant<|end_of_role|>", "A<|end_of_text|>"),
    "gpt_oss": (
        "<|start|>assistant",
        "<|channel|>analysis<|message|>R<|end|><|start|>assistant<|channel|>final<|message|>A<|return|>",
        "<|start|>assistant",
        "<|channel|>final<|message|>A<|return|>",
    ),
    "qwen2_5": ("assistant\n", f"<think>\nR\n</think>\n\nA{IM}", "assistant\n", f"A{IM}"),
}  # fmt: skip
"""By template: the end of the prompt and the trained text, with thoughts and without."""


def shown(example: Any, tokenizer: Any) -> tuple[str, str]:
    """The text before the first trained token, and the trained text."""
    ids, labels = example["input_ids"], example["labels"]
    start = next(index for index, label in enumerate(labels) if label != IGNORE)
    return str(tokenizer.decode(ids[:start])), str(tokenizer.decode([label for label in labels if label != IGNORE]))


@pytest.mark.parametrize("name", EXPECTED)
def test_thoughts_are_trained_or_empty_ones_are_in_the_prompt(name: str) -> None:
    tokenizer = templated(name)
    on_prompt, on_trained, off_prompt, off_trained = EXPECTED[name]
    for chat, data, before, trained in (
        (THOUGHT, ON, on_prompt, on_trained),
        (THOUGHT, OFF, off_prompt, off_trained),  # its thoughts are left out
        (PLAIN, OFF, off_prompt, off_trained),
        (PLAIN, ON, off_prompt, off_trained),  # an answer without thoughts among others that have some
    ):
        (example,) = encode_one(chat, tokenizer, data)
        prompt, answer = shown(example, tokenizer)
        assert prompt.endswith(before) and answer == trained, (name, data.thinking)
    for chat, data in ((THOUGHT, ON), (PLAIN, OFF)):  # what is generated from is what was trained after
        ids = prompt_ids(chat, tokenizer, data)
        (example,) = encode_one(chat, tokenizer, data)
        assert example["input_ids"][: len(ids)] == ids and set(example["labels"][: len(ids)]) == {IGNORE}


@pytest.mark.parametrize("name", EXPECTED)
def test_earlier_thoughts_are_as_the_template_renders_them(name: str) -> None:
    """None of these templates renders the thoughts of an answer before the last question; so each answer has an example of its own."""
    tokenizer = templated(name)
    first, second = encode_one(TWO, tokenizer, ON)
    assert shown(first, tokenizer)[1] == EXPECTED[name][1].replace("<|endoftext|>", "") + (
        "<|endoftext|>" if name == "glm_4_5" else ""
    )
    before, trained = shown(second, tokenizer)
    assert "R" not in before.replace("Role", "").replace("Reasoning", "") and "R2" in trained and "A2" in trained
    own = [{"role": turn.role, "content": turn.content} for turn in TWO.turns[:3]]
    on = tokenizer.apply_chat_template(
        own, add_generation_prompt=True, tokenize=False, enable_thinking=True, thinking=True
    )
    assert before == on


def test_thoughts_of_several_steps_after_a_question_are_one_example() -> None:
    """Qwen3's template keeps the thoughts between the last question and the answer, where tools are called."""
    call = Turn("assistant", "", reasoning="R1", tool_calls=({"name": "f", "arguments": {"x": 1}},))
    chat = Conversation((Turn("user", "Q"), call, Turn("tool", "7"), Turn("assistant", "A", reasoning="R2")))
    tokenizer = templated("qwen3")
    (example,) = encode_one(chat, tokenizer, ON)
    calls = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
    assert shown(example, tokenizer)[1] == f"<think>\nR1\n</think>\n\n{calls}{IM}<think>\nR2\n</think>\n\nA{IM}"


def test_a_plain_template_has_thoughts_too() -> None:
    tokenizer = templated("qwen3")
    data = replace(ON, template="问：{instruction}{input}\n答：")
    (example,) = encode_one(THOUGHT, tokenizer, data)
    assert shown(example, tokenizer) == ("问：Q\n答：", f"<think>\nR\n</think>\n\nA{IM}")


def test_auto_is_on_if_a_record_has_thoughts() -> None:
    assert thinking.resolve(DATA, [PLAIN, THOUGHT]).thinking is Thinking.on
    assert thinking.resolve(DATA, [PLAIN]).thinking is Thinking.off
    assert thinking.resolve(OFF, [THOUGHT]) == OFF
    with pytest.raises(ConfigError, match=r"data\.thinking=on: no training record has thoughts.*data\.thinking=auto"):
        thinking.resolve(ON, [PLAIN])


def test_left_out_thoughts_are_counted() -> None:
    assert rendering_notes.of([THOUGHT, TWO, PLAIN], templated("qwen3"), OFF) == [
        "2 records have thoughts, which are left out (data.thinking=off)"
    ]
    assert rendering_notes.of([THOUGHT, PLAIN], templated("qwen3"), ON) == []


def test_a_record_or_request_may_turn_thinking_off() -> None:
    tokenizer = templated("deepseek_r1_distill")  # whose template has no variable for it
    own = replace(THOUGHT, template_variables={"enable_thinking": False})
    assert prompt_ids(own, tokenizer, ON) == prompt_ids(PLAIN, tokenizer, OFF)


def test_an_adapter_of_unknown_training_is_prompted_as_its_template_does_by_default() -> None:
    for name in EXPECTED:
        tokenizer = templated(name)
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Q"}], add_generation_prompt=True, tokenize=False
        )
        assert tokenizer.decode(prompt_ids(PLAIN, tokenizer, DATA)) == asked


def test_marks_in_the_text_of_an_answer_are_text() -> None:
    """R1's template drops everything before the last closing mark of an answer."""
    tokenizer = templated("deepseek_r1_distill")
    text = "write <think> and </think> around it"
    (example,) = encode_one(Conversation((Turn("user", "Q"), Turn("assistant", text, reasoning="R"))), tokenizer, ON)
    assert shown(example, tokenizer)[1] == f"R\n</think>\n\n{text}{DS}"


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\nR\n</think>\n\nA", False, ("R", "A", True)),
        ("R\n</think>\n\nA", True, ("R", "A", True)),
        ("<think>\nR", False, ("R", "", False)),
        ("R and more", True, ("R and more", "", False)),
        ("<think>\n\n</think>\n\nA", False, ("", "A", True)),
        ("[THINK]R[/THINK]A", False, ("R", "A", True)),
        ("A with </think> in it", False, ("", "A with </think> in it", True)),
        (" A\n", False, ("", " A\n", True)),
    ],
)
def test_what_a_model_wrote_is_split(text: str, opened: bool, expected: tuple[str, str, bool]) -> None:
    assert thinking.read(text, opened) == expected

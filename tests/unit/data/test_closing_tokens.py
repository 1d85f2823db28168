"""The token with which a template ends an answer ends it everywhere, whatever the tokenizer's end-of-sequence token is."""

from types import SimpleNamespace
from typing import Any

import pytest
from templates import templated
from transformers import GenerationConfig

from conftest import config_of
from hydraft.data.labels import IGNORE
from hydraft.data.records import Conversation, Turn
from hydraft.data.tokenize import encode_one
from hydraft.models.generation import end_ids, read_answer

DATA = config_of("data.thinking=off").data
CHAT = Conversation((Turn("user", "Q"), Turn("assistant", "A"), Turn("user", "Q2"), Turn("assistant", "A2")))


def trained(tokenizer: Any, chat: Conversation = CHAT) -> str:
    examples = encode_one(chat, tokenizer, DATA)
    return "".join(str(tokenizer.decode([label for label in each["labels"] if label != IGNORE])) for each in examples)


def ends(tokenizer: Any, *own: int) -> list[str]:
    model = SimpleNamespace(generation_config=GenerationConfig(eos_token_id=list(own) or None))
    return [str(tokenizer.decode([token])) for token in end_ids(tokenizer, model)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "eos", "closing"),
    [
        ("qwen2_5", "<|endoftext|>", "<|im_end|>"),  # Qwen2.5's base models
        ("qwen3", "<|endoftext|>", "<|im_end|>"),
        ("chatml", "<|endoftext|>", "<|im_end|>"),
        ("llama_3_1", "<|end_of_text|>", "<|eot_id|>"),  # a base model with the template of its chat model
        ("gemma_2", "<eos>", "<end_of_turn>"),  # as published
        ("phi_3", "<|endoftext|>", "<|end|>"),  # its template also ends a conversation with the end-of-sequence token
        ("mistral_v0_1", "</s>", "</s>"),
    ],
)
def test_the_templates_token_is_trained_and_ends_generation(name: str, eos: str, closing: str) -> None:
    tokenizer = templated(name, eos)
    assert trained(tokenizer) == f"A{closing}A2{closing}"
    assert ends(tokenizer) == list(dict.fromkeys([eos, closing]))
    assert ends(tokenizer, tokenizer.convert_tokens_to_ids("<|im_start|>"))[-1] == "<|im_start|>"


def test_the_last_answer_of_gpt_oss_and_its_calls_end_with_their_own_tokens() -> None:
    tokenizer = templated("gpt_oss")
    final = "<|channel|>final<|message|>"
    assert trained(tokenizer) == f"{final}A<|return|>{final}A2<|return|>"
    (example,) = encode_one(CHAT, tokenizer, DATA)  # before a later turn the input is another token than the label
    assert f"{final}A<|end|><|start|>user" in tokenizer.decode(example["input_ids"])
    assert ends(tokenizer) == ["<|return|>", "<|call|>"]


def test_an_answer_that_the_next_turn_ends_is_trained_to_end_there() -> None:
    """GLM-4.5's template has no token after an answer; the label of the next turn's token is that of the end."""
    assert trained(templated("glm_4_5")) == "\nA<|endoftext|>\nA2<|endoftext|>"


def test_text_that_is_no_token_does_not_end_an_answer() -> None:
    """A template whose end is not in the vocabulary: it is text, and the end-of-sequence token follows."""
    tokenizer = templated("mistral_v0_1")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<stop>\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert trained(tokenizer, Conversation(CHAT.turns[:2])) == "A<stop></s>"
    assert ends(tokenizer) == ["</s>"]


def test_thoughts_of_any_family_are_read_from_what_a_model_wrote() -> None:
    qwen, oss, distill = templated("qwen3"), templated("gpt_oss"), templated("deepseek_r1_distill")

    def read(tokenizer: Any, prompt: str, written: str) -> tuple[str, str, bool]:
        ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, written))
        return read_answer(tokenizer, *ids)

    assert read(qwen, "<|im_start|>assistant\n", "<think>\nR\n</think>\n\nA<|im_end|>") == ("R", "A", True)
    assert read(qwen, "assistant\n<think>\n\n</think>\n\n", "A<|im_end|>") == ("", "A", True)
    assert read(distill, "<｜Assistant｜><think>\n", "R\n</think>\n\nA") == ("R", "A", True)
    assert read(distill, "<｜Assistant｜><think>\n", "R and no end") == ("R and no end", "", False)
    analysis, final = (
        "<|channel|>analysis<|message|>R<|end|>",
        "<|start|>assistant<|channel|>final<|message|>A<|return|>",
    )
    assert read(oss, "<|start|>assistant", analysis + final) == ("R", "A", True)
    assert read(oss, "<|start|>assistant", "<|channel|>analysis<|message|>R") == ("R", "", False)
    magistral = templated("mistral_v0_3")
    magistral.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    assert read(magistral, "[INST]Q[/INST]", "[THINK]R[/THINK]A</s>") == ("R", "A", True)

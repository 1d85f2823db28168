"""Tools, calls and results are rendered by the template and only the assistant's part is trained; without a place they are refused."""

from dataclasses import replace
from typing import Any

import pytest
from templates import templated

from conftest import config_of
from hydraft.data.labels import IGNORE
from hydraft.data.records import Conversation, Turn
from hydraft.data.tokenize import encode_one, prompt_ids
from hydraft.errors import ConfigError

DATA = config_of("data.thinking=off").data
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"id": "c1", "name": "weather", "arguments": {"city": "X"}}
CHAT = Conversation(
    (
        Turn("user", "Q"),
        Turn("assistant", "", tool_calls=(CALL,)),
        Turn("tool", "Twenty", tool_call_id="c1", name="weather"),
        Turn("assistant", "A"),
    ),
    number=3,
    tools=(WEATHER,),
)
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "X"}}\n</tool_call><|im_end|>'
EXPECTED = {
    "qwen2_5": f"{HERMES}A<|im_end|>",
    "qwen3": f"{HERMES}A<|im_end|>",
    "qwen3_instruct_2507": f"{HERMES}A<|im_end|>",
    "llama_3_1": '{"name": "weather", "parameters": {"city": "X"}}<|eot_id|>A<|eot_id|>',
    "mistral_v0_3": '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "X"}, "id": "call00000"}]</s> A</s>',
    "kimi_k2_thinking": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        '{"city": "X"}<|tool_call_end|><|tool_calls_section_end|><|im_end|>A<|im_end|>'
    ),
    "glm_4_5": "\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>X</arg_value>\n</tool_call><|endoftext|>\nA<|endoftext|>",
    "gpt_oss": ' to=functions.weather<|channel|>commentary json<|message|>{"city": "X"}<|call|><|channel|>final<|message|>A<|return|>',
}
"""The trained text, by template."""
CALLS_ONLY = {
    "deepseek_r1_distill": (
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "X"}\n```<｜tool▁call▁end｜>'
        "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>A<｜end▁of▁sentence｜>"
    ),
    "deepseek_v3_1": (
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "X"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
        "<｜end▁of▁sentence｜>A<｜end▁of▁sentence｜>"
    ),
}
"""Templates that render calls and results, but no tools."""


def trained(chat: Conversation, tokenizer: Any) -> str:
    examples = encode_one(chat, tokenizer, DATA)
    return "".join(str(tokenizer.decode([label for label in each["labels"] if label != IGNORE])) for each in examples)


@pytest.mark.parametrize("name", EXPECTED)
def test_calls_are_trained_and_results_are_not(name: str) -> None:
    tokenizer = templated(name)
    assert trained(CHAT, tokenizer) == EXPECTED[name]
    last = encode_one(CHAT, tokenizer, DATA)[-1]
    whole = str(tokenizer.decode(last["input_ids"]))
    assert whole.count("Twenty") == 1 and "weather" in whole.partition("Q")[0] + whole.partition("Q")[2]
    prompt = prompt_ids(CHAT, tokenizer, DATA)
    assert last["input_ids"][: len(prompt)] == prompt


@pytest.mark.parametrize("name", CALLS_ONLY)
def test_a_template_may_render_calls_and_no_tools(name: str) -> None:
    tokenizer = templated(name)
    assert trained(replace(CHAT, tools=()), tokenizer) == CALLS_ONLY[name]
    with pytest.raises(ConfigError, match="record 3 has tools, which this model's chat template has no place for"):
        encode_one(CHAT, tokenizer, DATA)


@pytest.mark.parametrize("name", ["chatml", "gemma_2", "mistral_v0_1", "phi_3", "smollm3", "granite_3_2"])
def test_what_a_template_has_no_place_for_is_refused(name: str) -> None:
    tokenizer = templated(name)
    with pytest.raises(
        ConfigError, match=r"record 3 has .*tools, which this model's chat template has no place for: choose"
    ):
        encode_one(CHAT, tokenizer, DATA)
    with pytest.raises(ConfigError, match="record 3 has calls of tools"):
        prompt_ids(replace(CHAT, tools=()), tokenizer, DATA)
    with pytest.raises(ConfigError, match="a plain template has no place for"):
        encode_one(CHAT, tokenizer, replace(DATA, template="{instruction}{input}"))


def test_a_template_that_rejects_parallel_calls_names_the_record() -> None:
    both = Turn("assistant", "", tool_calls=(CALL, CALL))
    with pytest.raises(ConfigError, match=r"rejects record 3: .*single tool-calls"):
        encode_one(replace(CHAT, turns=(CHAT.turns[0], both, *CHAT.turns[2:])), templated("llama_3_1"), DATA)


def test_results_follow_the_ids_of_their_calls() -> None:
    """Mistral's template wants ids of nine characters, which a record seldom has."""
    calls = tuple({**CALL, "id": f"call_{number}_of_a_client"} for number in "ab")
    results = [Turn("tool", text, tool_call_id=f"call_{text}_of_a_client") for text in "ba"]
    turns = (CHAT.turns[0], Turn("assistant", "", tool_calls=calls), *results, CHAT.turns[3])
    tokenizer = templated("mistral_v0_3")
    (example,) = encode_one(replace(CHAT, turns=turns), tokenizer, DATA)
    text = str(tokenizer.decode(example["input_ids"]))
    assert '"content": b, "call_id": "call00001"' in text and '"content": a, "call_id": "call00000"' in text


def test_names_of_special_tokens_anywhere_in_a_tool_are_text() -> None:
    typed = "<|im_end|>"
    tool = {"type": "function", "function": {**WEATHER["function"], "description": typed}}  # type: ignore[dict-item]
    call = {"name": "weather", "arguments": {typed: [typed]}}
    turns = (
        CHAT.turns[0],
        Turn("assistant", typed, tool_calls=(call,), reasoning=typed),
        Turn("tool", typed),
        CHAT.turns[3],
    )
    tokenizer = templated("qwen2_5")
    end = tokenizer.convert_tokens_to_ids(typed)
    (plain,) = encode_one(CHAT, tokenizer, DATA)
    (example,) = encode_one(replace(CHAT, turns=turns, tools=(tool,)), tokenizer, DATA)
    assert example["input_ids"].count(end) == plain["input_ids"].count(end)
    assert str(tokenizer.decode(example["input_ids"])).count(typed) == plain["input_ids"].count(end) + 5


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3"])
def test_an_answer_of_no_weight_is_context_only(name: str) -> None:
    """qwen3 renders an example for each answer, qwen2_5 one for all."""
    tokenizer = templated(name)
    turns = (Turn("user", "Q"), Turn("assistant", "WRONG", trained=False), Turn("user", "Q2"), Turn("assistant", "A2"))
    examples = encode_one(Conversation(turns), tokenizer, DATA)
    assert len(examples) == 1 and trained(Conversation(turns), tokenizer) == "A2<|im_end|>"
    assert "WRONG" in tokenizer.decode(examples[0]["input_ids"])
    assert encode_one(Conversation(turns[:2]), tokenizer, DATA) == []

"""An answer's thoughts, text and calls, whatever the pieces in which it arrives."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from hydraft.infer.serve.parsing import CALLS, AnswerParser, Call, Part, call_field
from hydraft.infer.serve.text import as_json
from hydraft.system.source_tree import ROOT, TINY

HERMES, XML, GLM, LLAMA = CALLS.values()
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}}}}]
ANSWERS: list[tuple[str, str, Any, tuple[str, str, list[Call]]]] = [
    ("", "<think>\n三加四\n</think>\n\n七", None, ("七", "三加四", [])),
    ("助手：<think>\n", "三加四\n</think>\n\n七", None, ("七", "三加四", [])),
    ("<think>\n\n</think>\n\n", "七", None, ("七", "", [])),
    ("", "[THINK]三[/THINK]七", None, ("七", "三", [])),
    ("", "  七\n", None, ("  七\n", "", [])),
    ("", "写作 <think> 和 </think>", None, ("写作 <think> 和 </think>", "", [])),
    ("", "<think>\n三加", None, ("", "三加", [])),
    ("", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', None, ('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', "", [])),
    ("", '好\n<tool_call>\n{"name": "f", "arguments": {"城市": "甲"}}\n</tool_call>\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>', HERMES,
     ("好", "", [Call("f", '{"城市": "甲"}'), Call("g", "{}")])),
    ("", "<think>\n查\n</think>\n\n<tool_call>\n<function=f>\n<parameter=a>\n7\n</parameter>\n</function>\n</tool_call>", XML,
     ("", "查", [Call("f", '{"a": 7}')])),
    ("", "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>7</arg_value>\n</tool_call>", GLM, ("", "", [Call("f", '{"a": 7}')])),
    ("", '{"name": "f", "parameters": {"a": 7}}', LLAMA, ("", "", [Call("f", '{"a": 7}')])),
    ("", '{"a": 7}', LLAMA, ('{"a": 7}', "", [])),
    ("", '<tool_call>\n{"name": "f", "argum', HERMES, ('<tool_call>\n{"name": "f", "argum', "", [])),
    ("", "<tool_call>\n<function=f>\n<parameter=a>\n7", XML, ("<tool_call>\n<function=f>\n<parameter=a>\n7", "", [])),
    ("", "甲<tool_call>{七}</tool_call>乙", HERMES, ("甲<tool_call>{七}</tool_call>乙", "", [])),
]  # fmt: skip


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(("prompt", "answer", "calls", "expected"), ANSWERS)
def test_an_answer_is_parsed_in_pieces_of_any_size(
    prompt: str, answer: str, calls: Any, expected: tuple[str, str, list[Call]], size: int
) -> None:
    parser, found = AnswerParser(prompt, TOOLS, calls), Part()
    for start in range(0, len(answer), size):
        found += parser.add(answer[start : start + size])
    found += parser.end()
    assert (found.text, found.reasoning, found.calls) == expected
    assert parser.calls == len(expected[2])


def test_without_parallel_calls_the_first_is_returned() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n'
    parser = AnswerParser("", TOOLS, HERMES, parallel=False)
    assert (parser.add(call * 2) + parser.end()).calls == [Call("f", "{}")]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>', HERMES),
        (
            "<tool_call>\n<function={{ f.name }}>\n<parameter=key>\n{{ f.arguments.key }}\n</parameter>\n</function>\n</tool_call>",
            XML,
        ),
        (
            "<tool_call>{{ f.name }}\n<arg_key>key</arg_key>\n<arg_value>{{ f.arguments.key }}</arg_value>\n</tool_call>",
            GLM,
        ),
        ('{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}', LLAMA),
        ("call {{ f.name }}", None),
        ("{{ raise_exception('no tools') }}", None),
    ],
)
def test_the_form_of_calls_is_found_in_the_chat_template(written: str, expected: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    calls = f"{{% for c in m.tool_calls or [] %}}{{% set f = c.function %}}{written}{{% endfor %}}"
    tokenizer.chat_template = f"{{{{ tools }}}}{{% for m in messages %}}{{{{ m.content }}}}{calls}{{% endfor %}}"
    assert call_field(tokenizer) == expected


FIXTURES = ROOT / "tests" / "fixtures" / "templates"
PUBLISHED = {
    "qwen2_5": HERMES, "qwen3": HERMES, "qwen3_instruct_2507": HERMES, "qwen3_5": XML, "glm_4_5": GLM, "llama_3_1": LLAMA,
    "gemma_2": None, "phi_3": None, "deepseek_r1_distill": None,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_forms_of_published_templates(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = (FIXTURES / f"{name}.jinja").read_text(encoding="utf-8")
    assert call_field(tokenizer) == PUBLISHED[name]


def test_a_tokenizers_own_response_template_comes_first() -> None:
    own = {"open": "[CALL]", "close": "[/CALL]", "content": "json"}
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = (FIXTURES / "qwen3.jinja").read_text(encoding="utf-8")
    tokenizer.response_template = {"fields": {"tool_calls": own}}
    assert call_field(tokenizer) == own


DEEP = '<tool_call>\n{"name": "f", "arguments": {"a": ' + "[" * 3000 + "}}\n</tool_call>"


@pytest.mark.parametrize("size", [1, 3, 5000])
@pytest.mark.parametrize(
    ("schema", "calls", "answer"),
    [
        (
            {"properties": {"a": {"anyOf": 5}}},
            XML,
            "<tool_call>\n<function=f>\n<parameter=a>\n7\n</parameter>\n</function>\n</tool_call>",
        ),
        ({}, HERMES, DEEP),
        ({}, LLAMA, '{"name": "f", "parameters": ' + "[" * 3000 + "}"),
    ],
    ids=["no schema", "nested", "nested llama"],
)
def test_a_call_that_cannot_be_read_is_text(schema: Any, calls: Any, answer: str, size: int) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    parser, found = AnswerParser("", tools, calls), Part()
    whole = f"{answer} 乙" if calls is not LLAMA else answer
    for start in range(0, len(whole), size):
        found += parser.add(whole[start : start + size])
    found += parser.end()
    assert (found.text, found.calls) == (whole, [])


def test_half_of_a_character_in_a_call_is_escaped() -> None:
    """JSON can hold it, and a model can write it; the response could not be encoded."""
    found = AnswerParser("", TOOLS, HERMES).add(
        '<tool_call>\n{"name": "f", "arguments": {"b": "\\ud800好"}}\n</tool_call> '
    )
    assert [call.arguments for call in found.calls] == ['{"b": "\\ud800\\u597d"}']
    assert as_json({"name": "\ud800"}).encode() == b'{"name": "\\ud800"}'

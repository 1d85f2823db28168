"""A conversation with a tool, through OpenAI's own client, with a model that has been trained to call it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hydraft.config.choices import Thinking
from hydraft.config.data import DataConfig
from hydraft.data.records import Conversation, Turn
from hydraft.data.tokenize import encode_one
from hydraft.system.source_tree import TINY
from serving import Server

TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}
{%- for m in messages %}
{{- '<|im_start|>' + ('user\n<tool_response>' if m.role == 'tool' else m.role + '\n') }}
{%- if m.role == 'assistant' and m.reasoning_content and loop.last %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}
{{- m.content or '' }}
{%- for call in m.tool_calls or [] %}
{{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + call.function.arguments | tojson + '}\n</tool_call>' }}
{%- endfor %}
{{- ('</tool_response>' if m.role == 'tool' else '') + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""
"""Short, and in the form of Hermes and Qwen3."""
FUNCTION: Any = {"name": "天气", "parameters": {"type": "object", "properties": {"城市": {"type": "string"}}}}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]
CALL = {"name": "天气", "arguments": {"城市": "甲地"}}
ASKED = (Turn("user", "甲地天气"), Turn("assistant", "", reasoning="要查", tool_calls=({**CALL, "id": "call_1"},)))
ANSWERED = (
    *ASKED,
    Turn("tool", "20", tool_call_id="call_1", name="天气"),
    Turn("assistant", "二十度", reasoning="知道了"),
)
LIMITS: Any = {"model": "taught", "temperature": 0, "max_tokens": 80}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the embedded model, trained on one conversation until it knows it."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.chat_template = TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    data = DataConfig(thinking=Thinking.on)
    examples = [
        example
        for turns in (ASKED, ANSWERED, (Turn("user", "你好"), Turn("assistant", "你也好")))
        for example in encode_one(Conversation(turns, tools=tuple(TOOLS)), tokenizer, data)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        loss = sum(model(**{k: torch.tensor([v]) for k, v in example.items()}).loss for example in examples)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if float(loss) < 0.03:
            break
    assert float(loss) < 0.05
    folder = tmp_path_factory.mktemp("tools")
    model.save_pretrained(folder / "taught")
    tokenizer.save_pretrained(folder / "taught")
    server = Server([folder / "taught"], folder / "streams")
    try:
        yield server.start()
    finally:
        server.end()


def test_a_conversation_with_a_tool(taught: Server) -> None:
    client = taught.client()
    messages: list[Any] = [{"role": "user", "content": "甲地天气"}]
    first = client.chat.completions.create(messages=messages, tools=TOOLS, **LIMITS).choices[0]
    assert first.finish_reason == "tool_calls" and first.message.content is None
    assert first.message.reasoning_content == "要查"  # type: ignore[attr-defined]
    (call,) = first.message.tool_calls
    assert call.type == "function" and call.function.name == "天气"
    assert json.loads(call.function.arguments) == CALL["arguments"]

    messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": "20"}]
    second = client.chat.completions.create(messages=messages, tools=TOOLS, **LIMITS).choices[0]
    assert (second.message.content, second.finish_reason) == ("二十度", "stop")
    assert second.message.reasoning_content == "知道了"  # type: ignore[attr-defined]
    messages += [second.message, {"role": "user", "content": "你好"}]
    assert client.chat.completions.create(messages=messages, tools=TOOLS, **LIMITS).choices[0].message.content


def test_a_stream_has_the_call_and_the_thoughts_apart(taught: Server) -> None:
    messages: list[Any] = [{"role": "user", "content": "甲地天气"}]
    stream = taught.client().chat.completions.create(messages=messages, tools=TOOLS, stream=True, **LIMITS)
    deltas = [(event.choices[0].delta, event.choices[0].finish_reason) for event in stream]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta, _ in deltas) == "要查"
    assert "".join(delta.content or "" for delta, _ in deltas) == ""
    (call,) = [call for delta, _ in deltas for call in delta.tool_calls or []]
    assert call.index == 0 and call.id and json.loads(call.function.arguments) == CALL["arguments"]
    assert deltas[-1][1] == "tool_calls"


def test_without_thinking_the_prompt_has_empty_thoughts(taught: Server) -> None:
    def tokens(**options: Any) -> int:
        messages: list[Any] = [{"role": "user", "content": "你好"}]
        return taught.client().chat.completions.create(messages=messages, **LIMITS, **options).usage.prompt_tokens

    thinking, without = tokens(reasoning_effort="low"), tokens(reasoning_effort="none")
    tokenizer = AutoTokenizer.from_pretrained(taught.adapters[0])
    assert without - thinking == len(tokenizer("<think>\n\n</think>\n\n")["input_ids"])
    assert tokens(extra_body={"chat_template_kwargs": {"enable_thinking": False}}) == without


def test_without_a_choice_of_tools_there_are_none(taught: Server) -> None:
    messages: list[Any] = [{"role": "user", "content": "甲地天气"}]
    client = taught.client()
    offered = client.chat.completions.create(messages=messages, tools=TOOLS, **LIMITS).usage.prompt_tokens
    none = client.chat.completions.create(messages=messages, tools=TOOLS, tool_choice="none", **LIMITS)
    assert none.usage.prompt_tokens < offered

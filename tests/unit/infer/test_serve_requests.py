"""Request bodies held against the types of OpenAI's client: every request that it can build is read, or refused for a true reason."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_type_hints

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import completion_create_params as text_params
from openai.types.chat import ChatCompletionMessage
from openai.types.chat import completion_create_params as chat_params
from pydantic import TypeAdapter, ValidationError

from hydraft.infer.serve.errors import explain
from hydraft.infer.serve.schema import ChatRequest, CompletionRequest

USER = {"role": "user", "content": "你好"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "甲地"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CHAT, TEXT = TypeAdapter(ChatRequest), TypeAdapter(CompletionRequest)

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "stream_options": ({"stream_options": {"include_usage": True}}, "only allowed with stream=true"),
    "top_logprobs": ({"top_logprobs": 2}, "only allowed with logprobs=true"),
    "response_format.type": ({"response_format": {"type": "json_object"}}, "not constrained to a format"),
    "tool_choice": ({"tools": [TOOL], "tool_choice": "required"}, "the model chooses"),
    "tools.0.type": ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "should be 'function'"),
    "functions": ({"functions": [{"name": "x"}]}, "use tools"),
    "function_call": ({"function_call": {"name": "x"}}, "use tool_choice"),
    "audio": ({"audio": {"format": "mp3", "voice": "a"}}, "text only"),
    "modalities.1": ({"modalities": ["text", "audio"]}, "text only"),
    "web_search_options": ({"web_search_options": {}}, "does not search"),
    "moderation": ({"moderation": {"model": "a"}}, "does not moderate"),
    "verbosity": ({"verbosity": "low"}, "no degrees of verbosity"),
    "messages.0.content.0": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]}, "text only"),
    "messages.0.content.1.text": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text"}]}]}, "Missing"),
    "messages.0.audio": ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "no audio"),
    "messages.0.tool_calls.0.type": ({"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "type": "custom", "custom": {"name": "b", "input": ""}}]}]}, "should be 'function'"),
    "messages.0.tool_call_id": ({"messages": [{"role": "tool", "content": "20", "tool_call_id": "c1"}]}, "no call before this message"),
    "messages.1.tool_calls.0.function.arguments": ({"messages": [USER, {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "a", "arguments": "[1]"}}]}]}, "JSON object"),
    "messages": ({"messages": []}, "at least 1 item"),
    "chat_template_kwargs.chat_template": ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "not a variable"),
    "top_k": ({"top_k": 10**400}, "less than 9223372036854775808"),
    "model": ({"model": None}, "Missing required parameter: 'model'"),
    "temperature": ({"temperature": 2.5}, "less than or equal to 2"),
    "n": ({"n": 0}, "greater than or equal to 1"),
    "logit_bias.5": ({"logit_bias": {"5": 101}}, "less than or equal to 100"),
    "stop": ({"stop": ["a"] * 5}, "at most 4 items"),
    "max_tokens": ({"max_tokens": "5"}, "valid integer"),
}  # fmt: skip
"""By parameter: a request, and a part of the reason why it is refused."""
REASONS = (
    *(reason for _, reason in REFUSED.values()), r"greater than or equal to -?\d", r"less than or equal to \d", "should match pattern",
    "at least 1 character", "every answer is returned: use n", "prompt is not repeated", "ahead of a suffix", "Missing required parameter: 'prompt'",
)  # fmt: skip
"""Every reason why a request of the client is refused."""


def _lists(kind: Any) -> st.SearchStrategy[Any]:
    return st.lists(st.from_type((*get_args(kind), str)[0]), max_size=3)


st.register_type_strategy(Iterable, _lists)  # hypothesis would also make dicts of it


def problem(body: dict[str, Any], adapter: TypeAdapter[Any] = CHAT) -> tuple[str | None, str]:
    """The parameter and the message with which a body is refused."""
    with pytest.raises(ValidationError) as refused:
        adapter.validate_python(body)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in refused.value.errors()]
    found = explain(RequestValidationError(errors, body=body))
    return found.param, found.message


def chat(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages) or [USER], **fields}


def sent(value: Any) -> Any:
    """What the client sends: JSON, with lists for its iterables."""
    if isinstance(value, Mapping):
        return {str(key): sent(each) for key, each in value.items()}
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    return [sent(each) for each in value] if isinstance(value, Iterable) else "any"


@pytest.mark.parametrize(
    ("adapter", "kind"),
    [(CHAT, chat_params.CompletionCreateParamsNonStreaming), (TEXT, text_params.CompletionCreateParamsNonStreaming)],
)
def test_every_request_of_the_client_is_read_or_refused_for_a_true_reason(adapter: TypeAdapter[Any], kind: Any) -> None:
    @settings(max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.from_type(kind).map(sent))
    def check(body: dict[str, Any]) -> None:
        try:
            adapter.validate_python(body)
        except ValidationError:
            param, message = problem(body, adapter)
            assert param and any(re.search(reason, message) for reason in REASONS), message

    check()


@pytest.mark.parametrize("param", REFUSED)
def test_what_is_refused_is_named_with_its_reason(param: str) -> None:
    fields, reason = REFUSED[param]
    named, message = problem({**chat(), **fields})
    assert named == param and reason in message


def test_the_fields_of_the_clients_types_are_all_known() -> None:
    for kind, model in (
        (chat_params.CompletionCreateParamsStreaming, ChatRequest),
        (text_params.CompletionCreateParamsStreaming, CompletionRequest),
    ):
        assert set(get_type_hints(kind)) - set(model.model_fields) == set()


def test_null_is_absent_in_every_field() -> None:
    for adapter, model, required in (
        (CHAT, ChatRequest, chat()),
        (TEXT, CompletionRequest, {"model": "m", "prompt": "a"}),
    ):
        nulls = dict.fromkeys(model.model_fields) | required
        assert adapter.validate_python(nulls) == adapter.validate_python(required)
        schema = model.model_json_schema()
        assert set(schema["required"]) == set(required)
    bare = {"role": "assistant", "content": "好"}
    nulls = dict.fromkeys(ChatCompletionMessage.model_fields) | bare
    assert CHAT.validate_python(chat(USER, nulls)).turns == CHAT.validate_python(chat(USER, bare)).turns


def test_messages_become_turns_with_calls_and_results() -> None:
    answer = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "20"}]}
    turns = CHAT.validate_python(chat({"role": "developer", "content": "短"}, USER, answer, result)).turns
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "tool"]
    assert turns[2].tool_calls == ({"name": "weather", "arguments": {"city": "甲地"}, "id": "c1"},)
    assert (turns[3].content, turns[3].name, turns[3].tool_call_id) == ("20", "weather", "c1")
    older = [
        {"role": "assistant", "function_call": CALL["function"]},
        {"role": "function", "name": "weather", "content": "20"},
    ]
    turns = CHAT.validate_python(chat(USER, *older)).turns
    assert turns[1].tool_calls == ({"name": "weather", "arguments": {"city": "甲地"}},) and turns[2].name == "weather"


@pytest.mark.parametrize(
    "answer",
    [
        {"content": "七", "reasoning_content": "三加四"},
        {"content": "七", "reasoning": "三加四"},
        {"content": "<think>\n三加四\n</think>\n\n七"},
        {"content": [{"type": "text", "text": "三加四</think>七"}]},
    ],
)
def test_thoughts_in_the_history_are_apart_from_the_answer(answer: dict[str, Any]) -> None:
    turn = CHAT.validate_python(chat(USER, {"role": "assistant", **answer})).turns[1]
    assert (turn.content, turn.reasoning) == ("七", "三加四")


def test_tools_are_offered_unless_the_choice_is_none() -> None:
    request = chat(tools=[{**TOOL, "function": {**TOOL["function"], "strict": None, "description": "查天气"}}])
    (tool,) = CHAT.validate_python(request).offered
    assert tool["function"] == {**TOOL["function"], "description": "查天气"}
    assert CHAT.validate_python({**request, "tool_choice": "none"}).offered == ()


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (TEXT, {"prompt": [1.5] * 50_000}),
        (TEXT, {"prompt": ["a"] * 9000 + [1]}),
        (TEXT, {"prompt": [[]] * 9000}),
        (CHAT, {"messages": [1] * 9000}),
        (CHAT, {"messages": [{"role": "user", "content": [{}] * 50_000}]}),
        (CHAT, {"messages": [{"role": "assistant", "content": [{}] * 50_000, "tool_calls": [1] * 50_000}]}),
        (CHAT, {"messages": [{**USER, **{str(number): 1 for number in range(50_000)}}]}),
        (CHAT, {str(number): 1 for number in range(50_000)}),
        (CHAT, {"logit_bias": {"5": 1} | {f"x{number}": 1 for number in range(50_000)}}),
        (CHAT, {"metadata": {str(number): 1 for number in range(50_000)}}),
        (CHAT, {"tools": [1] * 900, "stop": [1] * 50_000, "modalities": [1] * 50_000}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) and len(value) < 5 else "",
)
def test_a_large_body_has_few_errors(model: TypeAdapter[Any], fields: dict[str, Any]) -> None:
    """To list an error for each of a million wrong values would take seconds, in which the server does nothing else."""
    with pytest.raises(ValidationError) as caught:
        model.validate_python({"model": "m", "prompt": "a"} | fields if model is TEXT else chat(**fields) | fields)
    assert caught.value.error_count() <= 300


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"messages": [USER, {"role": "user", "content": "a\ud800"}]}, "messages.1.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}]},
            "messages.0.content.0.text",
        ),
        ({"user": "\ud800"}, "user"),
        ({"tools": [{**TOOL, "function": {"name": "a", "parameters": {"\ud800": 1}}}]}, "tools.0.function.parameters"),
    ],
)
def test_half_of_a_character_is_refused_with_its_place(fields: dict[str, Any], place: str) -> None:
    assert problem({**chat(), **fields}) == (place, f"Invalid '{place}': not Unicode text.")

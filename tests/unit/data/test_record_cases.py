"""Files that people bring: each is read as it was meant, or refused with the reason, record and turn."""

from pathlib import Path
from typing import Any

import pytest

from hydraft.data.record_reader import RecordReader
from hydraft.data.records import Conversation
from hydraft.data.sources import read_objects
from hydraft.errors import ConfigError

RECORDS = Path(__file__).parents[2] / "fixtures/records"


def read(name: str) -> tuple[list[Conversation], list[str]]:
    """The records of a file, and the notes."""
    source = f"data.train={RECORDS / name}"
    reader = RecordReader(source)
    objects = read_objects(str(RECORDS / name), source)
    found = [reader.record(values, f"{source}, record {number}", number) for number, values in enumerate(objects, 1)]
    return [record for record in found if isinstance(record, Conversation)], reader.notes()


@pytest.mark.parametrize(
    ("name", "turns", "guessed"),
    [
        (
            "content_summary.jsonl",
            [("user", "类型#帽*颜色#绿色"), ("assistant", "一顶绿色的帽子。")],
            "content summary",
        ),
        ("question_answer.jsonl", [("user", "一加一"), ("assistant", "二")], "question answer"),
        ("prompt_completion.jsonl", [("user", "一加一"), ("assistant", "二")], "prompt completion"),
        ("prompt_completion_chat.jsonl", [("user", "一加一"), ("assistant", "二")], "prompt completion"),
        ("conversations_role_content.jsonl", [("user", "你叫什么"), ("assistant", "我叫小助手")], None),
        ("tools.jsonl", [("user", "甲地天气"), ("assistant", "二十度")], None),
        ("content_parts.jsonl", [("user", "一加一"), ("assistant", "二")], None),
        ("developer.jsonl", [("system", "只答一字"), ("user", "一加一"), ("assistant", "二")], None),
        ("null_turn.jsonl", [("user", "一"), ("assistant", "二")], None),
    ],
)
def test_a_spelling_is_read_and_said(name: str, turns: list[tuple[str, str]], guessed: str | None) -> None:
    records, notes = read(name)
    assert [(turn.role, turn.content) for turn in records[0].turns] == turns
    question, _, answer = (guessed or "").partition(" ")
    said = f"data.train={RECORDS / name}: instruction from {question!r}, output from {answer!r} (data.columns)"
    assert notes == ([said] if guessed else [])


@pytest.mark.parametrize("name", ["sharegpt_tools.json", "toolcalls_null.jsonl"])
def test_both_forms_of_tool_calls_are_the_same_conversation(name: str) -> None:
    records, notes = read(name)
    (record,) = records
    called = record.turns[1]
    assert [turn.role for turn in record.turns] == ["user", "assistant", "tool", "assistant"]
    assert (called.content, called.trained) == ("", True)
    assert {key: called.tool_calls[0][key] for key in ("name", "arguments")} == {
        "name": "天气",
        "arguments": {"城市": "甲地"},
    }
    assert [tool["function"]["name"] for tool in record.tools] == ["天气"]
    assert [tool["type"] for tool in record.tools] == ["function"]
    assert notes == []


def test_thoughts_and_weights_are_read() -> None:
    thought = read("reasoning.jsonl")[0][0].turns[-1]
    assert (thought.reasoning, thought.content) == ("先数三再数四", "七")
    assert [turn.trained for turn in read("weight0.jsonl")[0][0].turns] == [True, False, True, True]


@pytest.mark.parametrize(
    ("name", "place", "reason"),
    [
        ("kto_label.jsonl", "record 1", "'label' says whether the answer is good, for preference training (KTO)"),
        ("dpo_alpaca.json", "record 1", "'chosen' and 'rejected' are for preference training (DPO)"),
        ("two_users.jsonl", "record 6", "turn 4 has the role user, expected assistant"),
        ("task_list.json", "record 1", "'task' must be text (it groups the scores), and is a list"),
        ("empty_instruction.json", "record 2", "'instruction' and 'input' are empty"),
        ("one_empty_output.json", "record 9", "'output' is empty"),
    ],
)
def test_a_bad_record_is_refused_by_name(name: str, place: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read(name)
    assert str(refusal.value).startswith(f"data.train={RECORDS / name}, {place}: {reason}")


def bad(turns: Any = None, **record: Any) -> str:
    """The refusal of a record, without the name of its place."""
    values = record if turns is None else {"messages": turns, **record}
    with pytest.raises(ConfigError) as refusal:
        RecordReader("f").record(values, "f, record 1", 1)
    assert "\n" not in str(refusal.value)
    return str(refusal.value).removeprefix("f, record 1")


USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CALL = {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([ANSWER], ": turn 1 has the role assistant, expected user"),
        ([USER], ": does not end with an answer of the assistant"),
        ([USER, CALL, {"role": "tool", "content": "r"}], ": does not end with an answer of the assistant"),
        ([USER, ANSWER, ANSWER], ": turn 3 has the role assistant, expected user or tool"),
        ([USER, ANSWER, {"role": "system", "content": "s"}, USER, ANSWER], ": turn 3 has the role system, expected user or tool; a system turn is only read as the first"),
        ([USER, {"role": "tool", "content": "r"}, ANSWER], ": turn 2 has the role tool, expected assistant"),
        ([USER, CALL, {"role": "tool", "tool_call_id": "c2", "content": "r"}, ANSWER], ": turn 3 is the result of 'c2', which the answer before it does not call"),
        ([USER, {"role": "assistant", "content": None}], ", turn 2: 'content' is empty"),
        ([USER, {"role": "assistant", "content": "<think>t</think>"}], ", turn 2: 'content' has thoughts and no answer after them"),
        ([{"role": "user", "content": ""}, ANSWER], ", turn 1: 'content' is empty"),
        ([{"role": "user", "content": 3}, ANSWER], ", turn 1: 'content' must be text, and is a number"),
        ([{"role": "user", "content": float("nan")}, ANSWER], ", turn 1: 'content' must be text, and is NaN (an empty cell of a table)"),
        ([{"role": "user", "content": {"text": "a"}}, ANSWER], ", turn 1: 'content' must be text, and is an object"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER], ", turn 1, part 1: is of the type image_url; of the parts of 'content' only text can be trained"),
        ([{"role": "user", "content": "a \ud83d"}, ANSWER], ", turn 1: 'content' has half of a character (\\ud83d, a surrogate without its pair)"),
        ([{"role": "narrator", "content": "a"}, ANSWER], ", turn 1: unknown role 'narrator'"),
        ([{"role": 3, "content": "a"}, ANSWER], ", turn 1: unknown role 3"),
        (["a", 3], ", turn 1: must be an object with 'role' and 'content', and is text"),
        ([{"role": "user"}, ANSWER], ", turn 1: must be an object with 'role' and 'content' (its keys: role)"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}], ", turn 2: a call in 'tool_calls' has no 'name'"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], ", turn 2: 'arguments of f' is not JSON"),
        ([USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}], ", turn 2: the arguments of the call of f must be an object, and are a list"),
        ([{**USER, "tool_calls": CALL["tool_calls"]}, ANSWER], ", turn 1: only the assistant calls tools, and this turn has the role user"),
        ([{"from": "function_call", "value": "no json"}, ANSWER], ", turn 1: 'value' is not JSON"),
        ([USER, {**ANSWER, "content": "<think>t</think>b", "reasoning": "u"}], ", turn 2: has thoughts in the text of the answer and others beside it"),
    ],
)  # fmt: skip
def test_a_turn_that_cannot_be_read_is_named(turns: Any, reason: str) -> None:
    assert bad(turns).startswith(reason)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"tools": "{"}, ": 'tools' is not JSON"),
        ({"tools": [3]}, ": tool 1 of 'tools' must be an object, and is a number"),
        (
            {"tools": [{"type": "web_search"}]},
            ": tool 1 of 'tools' is of the type web_search; only functions are supported",
        ),
        ({"tools": [{"description": "d"}]}, ": tool 1 of 'tools' has no 'name'"),
        ({"task": 3}, ": 'task' must be text (it groups the scores), and is a number"),
        ({"chat_template_kwargs": "x"}, ": 'chat_template_kwargs' is not JSON"),
        ({"chat_template_kwargs": {"tools": []}}, ": 'chat_template_kwargs' sets 'tools', which is not a variable"),
        ({"images": ["a.jpg"]}, ": has 'images'; only text is trained"),
    ],
)
def test_a_key_of_a_record_that_cannot_be_read_is_named(record: dict[str, Any], reason: str) -> None:
    assert bad([USER, ANSWER], **record).startswith(reason)


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "User", "content": "a"}, {"role": "ASSISTANT", "content": "b"}],
        [{"from": "human", "value": "a"}, {"from": "chatgpt", "value": "b"}],
        [{"role": "user", "text": "a"}, {"role": "model", "text": "b"}],
        [{"role": "user", "value": "a"}, {"from": "bing", "content": "b"}],
        [{"User": "a", "Assistant": "b"}],
        [["a", "b"]],
        ["a", "b"],
        [{"role": "system", "content": ""}, *[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]],
    ],
)
def test_turns_have_many_spellings(turns: Any) -> None:
    for key in ("messages", "conversations", "conversation"):
        record = RecordReader("f").record({key: turns}, "f, record 1", 1)
        assert isinstance(record, Conversation)
        assert [(turn.role, turn.content) for turn in record.turns] == [("user", "a"), ("assistant", "b")]


def test_calls_in_turns_of_their_own_belong_to_one_answer() -> None:
    calls = [{"from": "function-call", "value": f'{{"name": "f", "arguments": {{"x": {n}}}}}'} for n in (1, 2)]
    results = [{"from": "observation", "value": "r"}, {"from": "tool response", "value": "s"}]
    turns = [
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "wait"},
        *calls,
        *results,
        {"from": "gpt", "value": "b"},
    ]
    record = RecordReader("f").record({"conversations": turns}, "f, record 1", 1)
    assert isinstance(record, Conversation)
    assert [turn.role for turn in record.turns] == ["user", "assistant", "tool", "tool", "assistant"]
    assert record.turns[1].content == "wait"
    assert [call["arguments"] for call in record.turns[1].tool_calls] == [{"x": 1}, {"x": 2}]
    turns[2] = {**calls[0], "weight": 0}
    assert "turn 3: one turn of the assistant is in part trained and in part not" in bad(None, conversations=turns)

"""A conversation that is written in any of the published spellings is read back equal."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hydraft.data.record_reader import RecordReader
from hydraft.data.records import Conversation, Turn

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=8).filter(
    lambda text: "think" not in text.casefold() and not text.startswith("[")
)
CALL = st.builds(lambda name, argument: {"name": name, "arguments": {"x": argument}}, TEXT, TEXT | st.integers())


@st.composite
def answers(draw: Any, tools: bool) -> list[Turn]:
    """What follows a question: perhaps calls of tools with their results, and an answer."""
    turns: list[Turn] = []
    if tools and draw(st.booleans()):
        calls = tuple(draw(st.lists(CALL, min_size=1, max_size=2)))
        turns = [Turn("assistant", "", tool_calls=calls), *(Turn("tool", draw(TEXT)) for _ in calls)]
    thoughts = draw(st.sampled_from(["", "想\n一"]))
    return [*turns, Turn("assistant", draw(TEXT), reasoning=thoughts, trained=draw(st.booleans()))]


@st.composite
def conversations(draw: Any, rounds: int = 3, tools: bool = True) -> Conversation:
    turns = [Turn("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, rounds))):
        turns += [Turn("user", draw(TEXT)), *draw(answers(tools))]
    turns[-1] = Turn("assistant", turns[-1].content, reasoning=turns[-1].reasoning)
    return Conversation(tuple(turns))


def plain(turn: Turn) -> str:
    """The text of a turn, with its thoughts as a model writes them."""
    return f"<think>\n{turn.reasoning}\n</think>\n\n{turn.content}" if turn.reasoning else turn.content


def openai(turn: Turn, as_text: bool, weight: str, inline: bool) -> dict[str, Any]:
    """A turn as OpenAI writes it."""
    values: dict[str, Any] = {"role": turn.role, "content": plain(turn) if inline else turn.content}
    if turn.reasoning and not inline:
        values["reasoning_content"] = turn.reasoning
    if turn.tool_calls:
        listed = [
            {"name": c["name"], "arguments": json.dumps(c["arguments"]) if as_text else c["arguments"]}
            for c in turn.tool_calls
        ]
        values |= {"content": None, "tool_calls": [{"type": "function", "function": call} for call in listed]}
    if not turn.trained:
        values[weight] = 0
    return values


def sharegpt(turn: Turn, names: dict[str, str], joined: bool) -> list[dict[str, Any]]:
    """A turn as ShareGPT with tools (LLaMA-Factory) writes it."""
    if turn.tool_calls:
        calls = [list(turn.tool_calls)] if joined else list(turn.tool_calls)
        return [{"from": "function_call", "value": json.dumps(call)} for call in calls]
    return [{"from": names[turn.role], "value": plain(turn), **({} if turn.trained else {"train": False})}]


def read(record: Any) -> Conversation:
    """The record as it is read."""
    found = RecordReader("f").record(record, "f, record 1", 1)
    assert isinstance(found, Conversation)
    return found


@settings(max_examples=60, deadline=None, database=None)
@given(
    conversations(),
    st.booleans(),
    st.sampled_from(["weight", "loss", "train"]),
    st.booleans(),
    st.sampled_from(["messages", "conversations", "conversation", None]),
)
def test_a_chat_in_openais_spelling(
    whole: Conversation, as_text: bool, weight: str, inline: bool, key: str | None
) -> None:
    turns = [openai(turn, as_text, weight, inline) for turn in whole.turns]
    assert read(turns if key is None else {key: turns}) == whole


@settings(max_examples=60, deadline=None, database=None)
@given(
    conversations(),
    st.sampled_from(
        [
            ("human", "gpt", "observation"),
            ("User", "Assistant", "tool"),
            ("user", "bot", "function"),
            ("HUMAN", "model", "ipython"),
        ]
    ),
    st.booleans(),
    st.booleans(),
)
def test_a_chat_in_sharegpts_spelling(
    whole: Conversation, roles: tuple[str, str, str], joined: bool, beside: bool
) -> None:
    names = {"system": "system", **dict(zip(("user", "assistant", "tool"), roles, strict=True))}
    turns = [each for turn in whole.turns for each in sharegpt(turn, names, joined)]
    record: dict[str, Any] = {"conversations": turns}
    if beside and whole.turns[0].role == "system":
        record = {"system": turns[0]["value"], "conversations": turns[1:]}
    assert read(record) == whole


@settings(max_examples=60, deadline=None, database=None)
@given(
    conversations(tools=False).filter(lambda whole: all(turn.trained for turn in whole.turns)),
    st.sampled_from([("human", "assistant"), ("user", "assistant"), ("input", "output"), ("question", "answer")]),
    st.sampled_from(
        [("instruction", "output"), ("query", "response"), ("prompt", "completion"), ("problem", "solution")]
    ),
)
def test_rounds_texts_and_columns(whole: Conversation, names: tuple[str, str], columns: tuple[str, str]) -> None:
    system = [turn for turn in whole.turns if turn.role == "system"]
    texts = [plain(turn) for turn in whole.turns if turn.role != "system"]
    beside = {"system": system[0].content} if system else {}
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    rounds = [dict(zip(names, pair, strict=True)) for pair in pairs]
    assert read({**beside, "conversation": rounds}) == whole
    assert read({**beside, "conversations": texts}) == whole
    assert (
        read({**beside, **dict(zip(columns, pairs[-1], strict=True)), "history": [list(pair) for pair in pairs[:-1]]})
        == whole
    )

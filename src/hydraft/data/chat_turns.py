"""The turns of a chat, in the spellings that data sets have. No torch.

A turn is ``{role, content}`` (OpenAI) or ``{from, value}`` (ShareGPT). A round is ``{human, assistant}`` under several names, or a pair
``[question, answer]``. Texts that alternate are the user's and the assistant's.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hydraft.data.keys import WEIGHTS, check_media, is_trained, present
from hydraft.data.reading.json_values import parse
from hydraft.data.records import Turn
from hydraft.data.texts import kind_of, text_of
from hydraft.data.thinking import split
from hydraft.data.tools import calls_of, requested
from hydraft.errors import ConfigError

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        (
            "assistant",
            "gpt",
            "bot",
            "chatbot",
            "model",
            "ai",
            "chatgpt",
            "gpt4",
            "bing",
            "bard",
            "claude",
            "gemini",
            "llm",
        ),
        "assistant",
    ),
    **dict.fromkeys(
        (
            "tool",
            "function",
            "observation",
            "tool_response",
            "function_response",
            "tool_result",
            "tool_output",
            "ipython",
        ),
        "tool",
    ),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), "call"),
}
"""The role that each name in a record stands for, in any case; ``call`` is an answer that is only calls of tools."""

ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value", "text", "parts")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")

ASKED = ("human", "user", "question", "query", "prompt", "instruction", "input")
REPLIED = ("assistant", "bot", "gpt", "model", "answer", "response", "completion", "output")
"""Names of the two texts of a round."""

TURN_KEYS = frozenset(
    (*ROLE_KEYS, *CONTENT_KEYS, *REASONING_KEYS, *WEIGHTS, "tool_calls", "function_call", "tool_call_id", "name", "system",
     *ASKED, *REPLIED)
)  # fmt: skip
"""The keys of a turn or of a round that are read."""


def listed(value: Any) -> list[Any] | None:
    """A list, also one that a cell of a table has as JSON; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse(value)
        except ValueError:
            return None
    return list(value) if isinstance(value, (list, tuple)) else None


def looks_like_turns(value: Any, texts: bool = False) -> bool:
    """Whether a value is a list of turns or of rounds; with ``texts``, texts that alternate and pairs of texts count too."""
    turns = value if isinstance(value, list) else None
    if not turns:
        return False
    if all(isinstance(turn, str) for turn in turns):
        return texts and len(turns) > 1
    if all(isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in turns):
        return texts
    first = turns[0]
    if not isinstance(first, dict):
        return False
    return bool(_first(first, ROLE_KEYS)) or _round(first) is not None


def role_of(name: Any) -> str | None:
    """The role of a turn by its name, in any case; None if the name is not known."""
    return ROLES.get(re.sub(r"[-\s]+", "_", name.strip().casefold())) if isinstance(name, str) else None


def turns_of(value: Any, key: str, place: str) -> list[tuple[int, Turn]]:
    """The turns of a chat, each with its number in the record; an empty system turn is left out.

    Calls in turns of their own are added to the answer before them, as chat templates have them.

    Args:
        key: the key that has the list, for messages.

    Raises:
        ConfigError: names the turn and its key.
    """
    turns = listed(value)
    if turns is None:
        raise ConfigError(f"{place}: {key!r} must be a list of turns, and is {kind_of(value)}")
    found: list[tuple[int, Turn]] = []
    for number, values in _spelled_out(turns, place):
        role, turn = _turn(values, f"{place}, turn {number}")
        if role == "system" and not turn.content.strip():
            continue
        if role == "call" and found and found[-1][1].role == "assistant":
            found[-1] = (found[-1][0], _with_calls(found[-1][1], turn, f"{place}, turn {number}"))
        else:
            found.append((number, turn))
    return found


def _spelled_out(turns: list[Any], place: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Each turn as an object with a role."""
    if turns and all(isinstance(turn, str) for turn in turns):
        for number, text in enumerate(turns, 1):
            yield number, {"role": ("assistant", "user")[number % 2], "content": text}
        return
    for number, turn in enumerate(turns, 1):
        if isinstance(turn, (list, tuple)) and len(turn) == 2:
            turn = {"user": turn[0], "assistant": turn[1]}
        if not isinstance(turn, dict):
            raise ConfigError(
                f"{place}, turn {number}: must be an object with 'role' and 'content', and is {kind_of(turn)}"
            )
        pair = None if _first(turn, ROLE_KEYS) else _round(turn)
        if pair is None:
            yield number, turn
            continue
        if present(turn.get("system")):
            yield number, {"role": "system", "content": turn["system"]}
        asked, replied = pair
        yield number, {"role": "user", "content": turn[asked]}
        rest = {key: value for key, value in turn.items() if key not in ("system", *pair)}
        yield number, {**rest, "role": "assistant", "content": turn[replied]}


def _round(turn: Mapping[str, Any]) -> tuple[str, str] | None:
    """The keys of the question and of the answer of a round."""
    by_name = {str(key).casefold(): key for key in turn}
    asked, replied = _first(by_name, ASKED), _first(by_name, REPLIED)
    return (by_name[asked], by_name[replied]) if asked and replied else None


def _first(values: Iterable[str], names: Iterable[str]) -> str | None:
    return next((name for name in names if name in values), None)


def _turn(values: Mapping[str, Any], place: str) -> tuple[str, Turn]:
    """The role, which may be ``call``, and the turn."""
    role_key, content_key = _first(values, ROLE_KEYS), _first(values, CONTENT_KEYS)
    calls_key = any(present(values.get(key)) for key in ("tool_calls", "function_call"))
    if role_key is None or (content_key is None and not calls_key):
        role_name, text_name = (
            ("from", "value") if role_key == "from" or content_key == "value" else ("role", "content")
        )
        raise ConfigError(
            f"{place}: must be an object with {role_name!r} and {text_name!r} (its keys: {', '.join(values)})"
        )
    name = values[role_key]
    role = role_of(name)
    if role is None:
        raise ConfigError(f"{place}: unknown {role_key} {name!r} (known: {', '.join(ROLES)})")
    check_media(values, place)
    trained = is_trained(values, "assistant" if role == "call" else role, place)
    content = values.get(content_key) if content_key else None
    if role == "call":
        return role, Turn(
            "assistant", "", tool_calls=calls_of(content, content_key or "content", place), trained=trained
        )
    text, thoughts = text_of(content, content_key or "content", place)
    if role == "assistant":
        return role, _answer(values, text, thoughts, trained, place)
    if calls_key:
        raise ConfigError(f"{place}: only the assistant calls tools, and this turn has the role {role}")
    if role != "tool" and role != "system" and not text.strip():
        raise ConfigError(f"{place}: {content_key!r} is empty")
    if role != "tool":
        return role, Turn(role, text)
    names = [text_of(values.get(key), key, place)[0] for key in ("tool_call_id", "name")]
    return role, Turn("tool", text, tool_call_id=names[0], name=names[1])


def _answer(values: Mapping[str, Any], text: str, thoughts: str, trained: bool, place: str) -> Turn:
    keys = [key for key in REASONING_KEYS if present(values.get(key))]
    for key in keys:
        found = text_of(values[key], key, place)[0]
        if thoughts.strip() not in ("", found.strip()):
            raise ConfigError(f"{place}: has different thoughts in two places ({key!r} is one of them)")
        thoughts = found
    turn = answer(text, thoughts, place)
    calls = requested(values, place)
    if not turn.content.strip() and not calls:
        key = _first(values, CONTENT_KEYS) or "content"
        why = "has thoughts and no answer after them" if turn.reasoning else "is empty"
        raise ConfigError(f"{place}: {key!r} {why}")
    return Turn("assistant", turn.content, reasoning=turn.reasoning, tool_calls=calls, trained=trained)


def answer(text: str, thoughts: str, place: str) -> Turn:
    """An answer whose thoughts are apart (``thoughts``) or at the start of its text.

    Raises:
        ConfigError: they are in both places, and differ.
    """
    inside, rest = split(text)
    if thoughts.strip() and inside and inside != thoughts.strip():
        raise ConfigError(f"{place}: has thoughts in the text of the answer and others beside it")
    return Turn("assistant", rest, reasoning=thoughts.strip() or inside)


def _with_calls(before: Turn, calls: Turn, place: str) -> Turn:
    if before.trained != calls.trained:
        raise ConfigError(f"{place}: one turn of the assistant is in part trained and in part not")
    return Turn(
        "assistant", before.content, reasoning=before.reasoning, trained=before.trained,
        tool_calls=(*before.tool_calls, *calls.tool_calls),
    )  # fmt: skip

"""Makes conversations of the objects in a source. No torch.

Three published formats and plain text are read. A format is recognised by the keys of a record:

* alpaca: ``{instruction, input?, output, system?, history?: [[question, answer], …]}``
* messages (OpenAI): ``{messages: [{role, content}, …]}``
* ShareGPT: ``{conversations: [{from, value}, …], system?}``
* text: ``{text}``; every token is trained

``task`` groups the scores.
"""

from collections.abc import Iterable
from typing import Any

from hydraft.config.choices import Format
from hydraft.data.records import Conversation, Turn
from hydraft.errors import ConfigError

KEYS = {
    Format.alpaca: ("instruction", "output"),
    Format.messages: ("messages",),
    Format.sharegpt: ("conversations",),
    Format.text: ("text",),
}
"""The keys that a record of each format must have."""

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""The role that each name in a record stands for."""


def form_of(record: dict[str, Any], place: str) -> Format:
    """The format whose keys the record has."""
    found = [form for form, keys in KEYS.items() if keys[0] in record]
    if len(found) == 1:
        return found[0]
    if found:
        both = " and ".join(form.value for form in found)
        raise ConfigError(f"{place}: has the keys of {both}; choose one with data.format={found[0].value}")
    keys = ", ".join(map(str, record)) or "none"
    known = "; ".join(f"{form.value}: {', '.join(needed)}" for form, needed in KEYS.items())
    raise ConfigError(f"{place}: unknown format (its keys: {keys}; known formats: {known})")


def conversation_of(record: dict[str, Any], form: Format, place: str, number: int = 0) -> Conversation:
    """A record of supervised fine-tuning.

    Raises:
        ConfigError: a key is missing or has an invalid value.
    """
    for key in KEYS[form]:
        if key not in record:
            keys = ", ".join(map(str, record)) or "none"
            raise ConfigError(f"{place}: has no {key!r} (its keys: {keys})")
    task = record.get("task")
    if form is Format.text:
        return Conversation(plain=_text(record, "text", place, required=True), task=task, number=number)
    turns = tuple(_alpaca(record, place) if form is Format.alpaca else _chat(record, form, place))
    _check_turns(turns, place)
    return Conversation(turns, task=task, number=number)


def _alpaca(record: dict[str, Any], place: str) -> Iterable[Turn]:
    if record.get("system"):
        yield Turn("system", _text(record, "system", place))
    for pair in record.get("history") or []:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise ConfigError(f"{place}: 'history' must be a list of [question, answer] pairs of text")
        yield Turn("user", pair[0])
        yield Turn("assistant", pair[1])
    yield Turn("user", _text(record, "instruction", place), _text(record, "input", place))
    yield Turn("assistant", _text(record, "output", place, required=True))


def _chat(record: dict[str, Any], form: Format, place: str) -> Iterable[Turn]:
    role_key, text_key = ("role", "content") if form is Format.messages else ("from", "value")
    listed = record[KEYS[form][0]]
    if not isinstance(listed, list):
        raise ConfigError(f"{place}: {KEYS[form][0]!r} must be a list of turns")
    if form is Format.sharegpt and record.get("system"):
        yield Turn("system", _text(record, "system", place))
    for index, turn in enumerate(listed, 1):
        if not isinstance(turn, dict) or role_key not in turn or text_key not in turn:
            raise ConfigError(f"{place}, turn {index}: must be an object with {role_key!r} and {text_key!r}")
        role = ROLES.get(str(turn[role_key]))
        if role is None:
            raise ConfigError(
                f"{place}, turn {index}: unknown {role_key} {turn[role_key]!r} (known: {', '.join(ROLES)})"
            )
        yield Turn(role, _text(turn, text_key, f"{place}, turn {index}", required=role == "assistant"))


def _check_turns(turns: tuple[Turn, ...], place: str) -> None:
    dialogue = turns[1:] if turns and turns[0].role == "system" else turns
    expected = [("user", "assistant")[index % 2] for index in range(len(dialogue))]
    for index, (turn, role) in enumerate(zip(dialogue, expected, strict=True), 1):
        if turn.role != role:
            raise ConfigError(f"{place}: turn {index} has the role {turn.role}, expected {role}")
    if not dialogue or dialogue[-1].role != "assistant":
        raise ConfigError(f"{place}: does not end with an answer of the assistant")


def _text(holder: dict[str, Any], key: str, place: str, required: bool = False) -> str:
    value = holder.get(key, "")
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise ConfigError(f"{place}: {key!r} must be text, and is a {type(value).__name__}")
    if required and not value.strip():
        raise ConfigError(f"{place}: {key!r} is empty")
    return value

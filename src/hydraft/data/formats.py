"""Makes conversations of the objects in a source. No torch.

Three published formats and plain text are read:

* alpaca: ``{instruction, input?, output, system?, history?: [[question, answer], …]}``
* messages (OpenAI): ``{messages: [{role, content}, …]}``
* ShareGPT: ``{conversations: [{from, value}, …], system?}``
* text: ``{text}``; every token is trained

``columns.py`` finds them under other names; ``chat_turns.py`` reads the turns of a chat. ``task`` groups the scores.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from hydraft.config.choices import Format
from hydraft.data import keys
from hydraft.data.chat_turns import answer, listed, looks_like_turns, turns_of
from hydraft.data.column_names import KEYS
from hydraft.data.columns import recognise
from hydraft.data.named import Named
from hydraft.data.reading.json_values import parse
from hydraft.data.records import Conversation, Turn
from hydraft.data.texts import kind_of, plain_text, text_of
from hydraft.data.tools import are_calls, calls_of, tools_of
from hydraft.data.turn_order import check_order
from hydraft.errors import ConfigError

RESERVED = (
    "messages",
    "conversation",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "tokenize",
)
"""Arguments of ``apply_chat_template`` that a record cannot set."""

PLACEHOLDER = "?"
"""The answer of a record without one."""


def conversation_of(record: dict[str, Any], form: Format, place: str, number: int = 0) -> Conversation:
    """A record of supervised fine-tuning.

    Raises:
        ConfigError: a key is missing or has an invalid value, or asks for something else than supervised fine-tuning.
    """
    found = read(record, form, place, number)
    if found.plain is None and not any(turn.trained for turn in found.turns if turn.role == "assistant"):
        raise ConfigError(f"{place}: none of its answers is trained; leave the record out")
    return found


def read(record: dict[str, Any], form: Format, place: str, number: int = 0) -> Conversation:
    """A record whose answers may all be excluded from training (a prompt with a reference)."""
    form, values = (form, record) if isinstance(record, Named) else recognise(record, place, form)
    if "rejected" in values.names:
        keys.refuse_pair(
            values.raw, [values.names[name] for name in ("chosen", "rejected") if name in values.names], place
        )
    if "desirable" in values.names:
        keys.refuse_judgement(values.names["desirable"], place)
    keys.check_record(values.raw, values.read, place)
    for key in KEYS[form]:
        if key not in values:
            names = ", ".join(map(str, values.raw)) or "none"
            raise ConfigError(f"{place}: has no {values.key(key)!r} (its keys: {names})")
    task = _task(values, place)
    if form is Format.text:
        key = values.key("text")
        text = plain_text(values["text"], key, place)
        if not text.strip():
            raise ConfigError(f"{place}: {key!r} is empty")
        return Conversation(plain=text, task=task, number=number)
    tools = tools_of(values.get("tools"), values.key("tools"), place)
    numbered = _with_system(
        _alpaca(values, bool(tools), place) if form is Format.alpaca else _chat(values, form, place), values, place
    )
    check_order(numbered, place)
    turns = tuple(turn for _, turn in numbered)
    return Conversation(
        turns, task=task, number=number, tools=tools, template_variables=_template_variables(values, place)
    )


def _chat(values: Named, form: Format, place: str) -> list[tuple[int, Turn]]:
    name = KEYS[form][0]
    return turns_of(values[name], values.key(name) if name in values.names else name, place)


def _with_system(numbered: list[tuple[int, Turn]], values: Named, place: str) -> list[tuple[int, Turn]]:
    """The turns, after the system text that a record has beside them."""
    given = values.get("system")
    system = text_of(given, values.key("system"), place)[0] if keys.present(given) else ""
    first = numbered[0][1] if numbered else None
    if not system.strip() or (first is not None and first.role == "system" and first.content == system):
        return numbered
    if first is not None and first.role == "system":
        raise ConfigError(f"{place}: has a system text in {values.key('system')!r} and another in its first turn")
    return [(0, Turn("system", system)), *numbered]


def _alpaca(values: Named, has_tools: bool, place: str) -> list[tuple[int, Turn]]:
    return list(enumerate(_alpaca_turns(values, has_tools, place), 1))


def _alpaca_turns(values: Named, has_tools: bool, place: str) -> Iterable[Turn]:
    yield from _history(values.get("history"), values.key("history"), place)
    instruction, given = (_text(values, name, place) for name in ("instruction", "input"))
    if not instruction.strip() and not given.strip():
        both = (
            f"{values.key('instruction')!r} and {values.key('input')!r} are"
            if "input" in values
            else f"{values.key('instruction')!r} is"
        )
        raise ConfigError(f"{place}: {both} empty")
    yield Turn("user", instruction, given)
    yield text_answer(values, "output", has_tools, place)


def text_answer(values: Named, name: str, has_tools: bool, place: str) -> Turn:
    """The answer that a part of a record has as text, or as calls of tools.

    Raises:
        ConfigError: it is something else, or empty.
    """
    key, value = values.key(name), values[name]
    if has_tools and are_calls(value):
        return Turn("assistant", "", tool_calls=calls_of(value, key, place))
    text, thoughts = text_of(_only_answer(value), key, place)
    reasoning = values.get("reasoning") if name == "output" else None
    if isinstance(reasoning, list) and len(reasoning) == 1:
        reasoning = reasoning[0]
    if keys.present(reasoning):
        thoughts = plain_text(reasoning, values.key("reasoning"), place)
    turn = answer(text, thoughts, place)
    if not turn.content.strip():
        why = "has thoughts and no answer after them" if turn.reasoning else "is empty"
        raise ConfigError(f"{place}: {key!r} {why}")
    return turn


def _only_answer(value: Any) -> Any:
    """The first text of SQuAD's ``answers: {text: […], answer_start: […]}``; any other value as it is."""
    texts = value.get("text") if isinstance(value, dict) and "answer_start" in value else None
    return texts[0] if isinstance(texts, list) and texts else value


def _history(value: Any, key: str, place: str) -> Iterable[Turn]:
    """Earlier rounds: pairs ``[question, answer]``, or turns."""
    if not keys.present(value):
        return
    pairs = isinstance(value, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
        for pair in value
    )
    if not pairs and not looks_like_turns(value):
        raise ConfigError(f"{place}: {key!r} must be a list of [question, answer] pairs of text")
    try:
        yield from (turn for _, turn in turns_of(value, key, place))
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"{place}, turn", f"{place}, {key!r}, turn", 1)) from None


def _task(values: Named, place: str) -> str | None:
    task = values.get("task")
    if not keys.present(task):
        return None
    if not isinstance(task, str):
        raise ConfigError(
            f"{place}: {values.key('task')!r} must be text (it groups the scores), and is {kind_of(task)}; "
            "another key can be the task: data.columns={task: …}"
        )
    return plain_text(task, values.key("task"), place)


def _template_variables(values: Named, place: str) -> Mapping[str, Any]:
    key = "chat_template_kwargs"
    found = values.get(key)
    if not keys.present(found):
        return {}
    if isinstance(found, str):
        try:
            found = parse(found)
        except ValueError:
            raise ConfigError(f"{place}: {key!r} is not JSON") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{place}: {key!r} must be an object, and is {kind_of(found)}")
    for name in RESERVED:
        if name in found:
            raise ConfigError(f"{place}: {key!r} sets {name!r}, which is not a variable of a chat template")
    return {name: value for name, value in found.items() if value is not None}


def _text(values: Named, name: str, place: str) -> str:
    value = values.get(name)
    return text_of(value, values.key(name), place)[0]


def add_placeholder(values: Named, form: Format) -> None:
    """Give a record without an answer one, so that ``read`` accepts it."""
    if form is Format.alpaca:
        values["output"] = PLACEHOLDER
        return
    key = KEYS[form][0]
    turns = listed(values.get(key)) or []
    texts = bool(turns) and isinstance(turns[-1], str)
    values[key] = [*turns, PLACEHOLDER if texts else {"role": "assistant", "content": PLACEHOLDER}]


def without_answer(found: Conversation) -> Conversation:
    """The conversation with an empty last answer."""
    return replace(found, turns=(*found.prompt, Turn("assistant", "")))

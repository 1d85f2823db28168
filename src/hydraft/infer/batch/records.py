"""A file of prompts, or of records as training reads them, with or without answers. No torch.

``{"prompt": …}`` with ``system``, ``answer`` (the reference), ``task`` and ``id`` where wanted; or alpaca, messages or ShareGPT, whose
last answer, where there is one, is the reference.
"""

from dataclasses import dataclass
from typing import Any

from hydraft.config.choices import Format
from hydraft.data import formats
from hydraft.data.formats import KEYS, ROLES, Conversation, Turn
from hydraft.errors import ConfigError

UNANSWERED = "?"
"""Stands where a record has no answer, for what reads it as training would."""


@dataclass(frozen=True)
class Record:
    """One thing to ask."""

    id: Any
    """As the file has it; None where it has none."""
    conversation: Conversation
    answered: bool
    """Whether the conversation's last turn is a reference; it is empty otherwise."""


def read(source: str, form: Format, system: str | None) -> list[Record]:
    """The records of ``input=source``; ``system`` goes ahead of those that have no system turn.

    Raises:
        ConfigError: names the file and the record.
    """
    name = f"input={source}"
    found: list[Record] = []
    kinds: dict[str, int] = {}
    seen: dict[str, int] = {}
    for number, raw in enumerate(formats.read_objects(source, name), 1):
        place = f"{name}, record {number}"
        if not isinstance(raw, dict):
            raise ConfigError(f"{place}: must be an object, and is a {type(raw).__name__}")
        kind = "prompt" if form is Format.auto and "prompt" in raw else _form(raw, form, place).value
        kinds.setdefault(kind, number)
        if len(kinds) > 1:
            (first, at), (second, then) = kinds.items()
            raise ConfigError(f"{name}: record {at} is {first} and record {then} is {second}; one form a file")
        identity = raw.get("id")
        if identity is not None and seen.setdefault(str(identity), number) != number:
            raise ConfigError(f"{place}: has the id of record {seen[str(identity)]} ({identity})")
        found.append(_prompt(raw, place) if kind == "prompt" else _trained(raw, Format(kind), place))
    if not found:
        raise ConfigError(f"{name}: no records in it")
    return found if system is None else [_told(record, system) for record in found]


def _form(raw: dict[str, Any], form: Format, place: str) -> Format:
    if form is Format.auto:
        if not any(keys[0] in raw for keys in KEYS.values()):
            raise ConfigError(
                f"{place}: no known form (its keys: {', '.join(map(str, raw)) or 'none'}; known: prompt; or one that training reads: "
                "instruction, messages, conversations)"
            )
        form = formats.form_of(raw, place)
    if form is Format.text:
        raise ConfigError(f"{place}: plain text asks nothing; give a file of prompts")
    return form


def _prompt(raw: dict[str, Any], place: str) -> Record:
    texts = {}
    for key in ("prompt", "system", "answer"):
        value = raw.get(key) or ""
        if not isinstance(value, str):
            raise ConfigError(f"{place}: {key!r} must be text, and is a {type(value).__name__}")
        texts[key] = value
    if not texts["prompt"].strip():
        raise ConfigError(f"{place}: 'prompt' is empty")
    asked = formats.ask(texts["prompt"], texts["system"] or None)
    turns = (*asked.prompt, Turn("assistant", texts["answer"]))
    return Record(raw.get("id"), Conversation(turns, task=raw.get("task")), bool(texts["answer"].strip()))


def _trained(raw: dict[str, Any], form: Format, place: str) -> Record:
    whole, answered = _completed(raw, form)
    conversation = formats.conversation_of(whole, form, place)
    if not answered:
        conversation = Conversation((*conversation.prompt, Turn("assistant", "")), task=conversation.task)
    return Record(raw.get("id"), conversation, answered)


def _completed(raw: dict[str, Any], form: Format) -> tuple[dict[str, Any], bool]:
    """A record with something for its last answer where it has none, and whether it had one."""
    if form is Format.alpaca:
        answer = raw.get("output")
        missing = answer is None or (isinstance(answer, str) and not answer.strip())
        return ({**raw, "output": UNANSWERED}, False) if missing else (raw, True)
    key, (who, what) = KEYS[form][0], ("role", "content") if form is Format.messages else ("from", "value")
    turns = raw.get(key)
    if not (isinstance(turns, list) and turns and isinstance(turns[-1], dict)):
        return raw, True  # wrong, and told so by whoever reads it
    if ROLES.get(str(turns[-1].get(who))) == "user":
        return {**raw, key: [*turns, {who: "assistant" if form is Format.messages else "gpt", what: UNANSWERED}]}, False
    return raw, True


def _told(record: Record, system: str) -> Record:
    turns = record.conversation.turns
    if turns[0].role == "system":
        return record
    told = Conversation((Turn("system", system), *turns), task=record.conversation.task)
    return Record(record.id, told, record.answered)

"""Reads the input of ``mode=batch``: prompts, or training records with or without an answer. No torch.

``{"prompt": …}``, optionally with ``system``, ``answer`` (the reference), ``task`` and ``id``; or alpaca, messages or ShareGPT, whose
last answer, if there is one, is the reference.
"""

from dataclasses import dataclass, replace
from typing import Any

from hydraft.config.choices import Format
from hydraft.data import formats
from hydraft.data.formats import KEYS, ROLES
from hydraft.data.records import Conversation, Turn, ask
from hydraft.data.sources import read_objects
from hydraft.errors import ConfigError

PLACEHOLDER = "?"
"""The answer of a record without one, so that the reader of training records accepts it."""


@dataclass(frozen=True)
class Record:
    """One prompt, with its reference if it has one."""

    id: Any
    """Its ``id`` in the file; None without one."""
    conversation: Conversation
    answered: bool
    """Whether the last turn of the conversation is a reference; otherwise it is empty."""


def read(source: str, form: Format, system: str | None) -> list[Record]:
    """The records of ``input=source``; ``system`` is added to those without a system turn.

    Raises:
        ConfigError: a record is invalid; the message has the file and the record.
    """
    name = f"input={source}"
    found: list[Record] = []
    kinds: dict[str, int] = {}
    seen: dict[str, int] = {}
    for number, raw in enumerate(read_objects(source, name), 1):
        place = f"{name}, record {number}"
        if not isinstance(raw, dict):
            raise ConfigError(f"{place}: must be an object, and is a {type(raw).__name__}")
        kind = "prompt" if form is Format.auto and "prompt" in raw else _form(raw, form, place).value
        kinds.setdefault(kind, number)
        if len(kinds) > 1:
            (first, at), (second, then) = kinds.items()
            raise ConfigError(
                f"{name}: record {at} is {first} and record {then} is {second}; a file must have one format"
            )
        identity = raw.get("id")
        if identity is not None and seen.setdefault(str(identity), number) != number:
            raise ConfigError(f"{place}: has the id of record {seen[str(identity)]} ({identity})")
        found.append(_prompt(raw, place) if kind == "prompt" else _trained(raw, Format(kind), place))
    if not found:
        raise ConfigError(f"{name}: no records in it")
    return found if system is None else [_with_system(record, system) for record in found]


def _form(raw: dict[str, Any], form: Format, place: str) -> Format:
    if form is Format.auto:
        if not any(keys[0] in raw for keys in KEYS.values()):
            raise ConfigError(
                f"{place}: unknown format (its keys: {', '.join(map(str, raw)) or 'none'}; known: prompt, or a training format: "
                "instruction, messages, conversations)"
            )
        form = formats.form_of(raw, place)
    if form is Format.text:
        raise ConfigError(f"{place}: plain text has no prompts; give a file of prompts")
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
    asked = ask(texts["prompt"], texts["system"] or None)
    turns = (*asked.prompt, Turn("assistant", texts["answer"]))
    return Record(raw.get("id"), Conversation(turns, task=raw.get("task")), bool(texts["answer"].strip()))


def _trained(raw: dict[str, Any], form: Format, place: str) -> Record:
    whole, answered = _completed(raw, form)
    conversation = formats.conversation_of(whole, form, place)
    if not answered:
        conversation = replace(conversation, turns=(*conversation.prompt, Turn("assistant", "")))
    return Record(raw.get("id"), conversation, answered)


def _completed(raw: dict[str, Any], form: Format) -> tuple[dict[str, Any], bool]:
    """A record with a placeholder if it has no last answer, and whether it had one."""
    if form is Format.alpaca:
        answer = raw.get("output")
        missing = answer is None or (isinstance(answer, str) and not answer.strip())
        return ({**raw, "output": PLACEHOLDER}, False) if missing else (raw, True)
    key, (who, what) = KEYS[form][0], ("role", "content") if form is Format.messages else ("from", "value")
    turns = raw.get(key)
    if not (isinstance(turns, list) and turns and isinstance(turns[-1], dict)):
        return raw, True  # invalid: the reader of training records refuses it
    if ROLES.get(str(turns[-1].get(who))) == "user":
        return {
            **raw,
            key: [*turns, {who: "assistant" if form is Format.messages else "gpt", what: PLACEHOLDER}],
        }, False
    return raw, True


def _with_system(record: Record, system: str) -> Record:
    turns = record.conversation.turns
    if turns[0].role == "system":
        return record
    conversation = replace(record.conversation, turns=(Turn("system", system), *turns))
    return Record(record.id, conversation, record.answered)

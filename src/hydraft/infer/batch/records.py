"""Reads the input of ``mode=batch``: prompts, or training records with or without an answer. No torch.

``{"prompt": …}``, optionally with ``system``, ``answer`` (the reference), ``task`` and ``id``; or any form of a training record, whose
last answer, if there is one, is the reference.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hydraft.config.choices import Format
from hydraft.data import formats
from hydraft.data.chat_turns import listed, role_of
from hydraft.data.column_names import KEYS
from hydraft.data.named import DEFAULTS, Named, RecordSettings
from hydraft.data.record_reader import RecordReader
from hydraft.data.records import Conversation, Turn
from hydraft.data.sources import read_objects
from hydraft.errors import ConfigError


@dataclass(frozen=True)
class Record:
    """One prompt, with its reference if it has one."""

    id: Any
    """Its ``id`` in the file; None without one."""
    conversation: Conversation
    answered: bool
    """Whether the last turn of the conversation is a reference; otherwise it is empty."""


def read(
    source: str, form: Format, system: str | None, settings: RecordSettings = DEFAULTS
) -> tuple[list[Record], list[str]]:
    """The records of ``input=source``, and notes on how they were read.

    Args:
        system: added to the records without a system turn.
        settings: the other settings that say how records are read.

    Raises:
        ConfigError: a record is invalid; the message has the file and the record.
    """
    name = f"input={source}"
    reader = RecordReader(name, form, settings, _conversation, answered=False)
    try:
        found = list(_records(read_objects(source, name), reader, name))
        notes = reader.notes()
    except ConfigError as error:
        raise ConfigError(_as_typed(str(error))) from None
    if not found:
        raise ConfigError(f"{name}: no records in it")
    notes = [_as_typed(note) for note in notes]
    return (found if system is None else [_with_system(record, system) for record in found]), notes


def _records(objects: list[Any], reader: RecordReader, name: str) -> Iterator[Record]:
    for number, values in enumerate(objects, 1):
        conversation = reader.record(values, f"{name}, record {number}", number)
        assert isinstance(conversation, Conversation)
        identity = values.get("id") if isinstance(values, dict) else None
        yield Record(identity, conversation, bool(conversation.reference))


def _as_typed(message: str) -> str:
    """A message of the reader of training records, with the names that the settings have in infer.py."""
    return re.sub(r"\bdata\.(columns|format|template)\b", r"\1", message)


def _conversation(values: dict[str, Any], form: Format, place: str, number: int) -> Conversation:
    """The conversation; without a reference, its last answer is empty."""
    assert isinstance(values, Named)
    if form is Format.text:
        raise ConfigError(f"{place}: plain text has no prompts; give a file of prompts")
    answered = _has_answer(values, form)
    if not answered:
        formats.add_placeholder(values, form)
    whole = formats.read(values, form, place, number)
    return whole if answered and whole.reference else formats.without_answer(whole)  # calls of tools are not scored


def _has_answer(values: Named, form: Format) -> bool:
    """Whether the record ends with a reference; an invalid one does, so that the reader of training records refuses it."""
    if form is Format.alpaca:
        answer = values.get("output")
        return answer is not None and not (isinstance(answer, str) and not answer.strip())
    turns = listed(values.get(KEYS[form][0]))
    if not turns:
        return True
    if isinstance(turns[-1], str):
        return len(turns) % 2 == 0
    role = turns[-1].get("role", turns[-1].get("from")) if isinstance(turns[-1], dict) else None
    return role_of(role) not in ("user", "tool")


def _with_system(record: Record, system: str) -> Record:
    turns = record.conversation.turns
    if turns[0].role == "system":
        return record
    return replace(record, conversation=replace(record.conversation, turns=(Turn("system", system), *turns)))

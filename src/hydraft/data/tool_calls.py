"""Calls of tools as chat templates want them, and the refusal of a record whose template has no place for tools. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydraft.data.records import Conversation
from hydraft.errors import ConfigError


@dataclass(frozen=True)
class CallStyle:
    """How a template wants the calls of an answer; the first style that renders one is used."""

    arguments_as_text: bool = False
    """Arguments as JSON text (DeepSeek), not as an object."""
    no_content: bool = False
    """The content of an answer that has only calls is None, not empty."""
    short_ids: bool = False
    """Ids of nine letters and digits (Mistral)."""
    named_ids: bool = False
    """Ids that have the name, which is rendered nowhere else: ``functions.name:0`` (Kimi)."""


def called(call: Mapping[str, Any], style: CallStyle, short: dict[str, str]) -> dict[str, Any]:
    """A call in OpenAI's form. ``short`` gets the id of the call and that which is rendered."""
    arguments = call.get("arguments", {})
    if style.arguments_as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    made: dict[str, Any] = {"type": "function", "function": {"name": call["name"], "arguments": arguments}}
    identity = str(call.get("id") or "")
    if style.named_ids:
        begin = f"functions.{call['name']}:"
        identity = identity or f"call-{len(short)}"
        short[identity] = identity if identity.startswith(begin) else f"{begin}{len(short)}"
    elif style.short_ids:
        identity = identity or f"call-{len(short)}"
        short[identity] = identity if len(identity) == 9 and identity.isalnum() else f"call{len(short):05d}"
    return made | ({"id": short.get(identity, identity)} if identity else {})


def refuse(chat: Conversation, what: str, template: str) -> None:
    """Refuse a conversation with tools.

    Raises:
        ConfigError: always.
    """
    which = f"record {chat.number}" if chat.number else "a record"
    raise ConfigError(
        f"data.template: {which} has {what}, which {template} has no place for: choose a model whose chat template has one "
        "(model=qwen), or remove them"
    )

"""Chats in the forms that the answers of preference data have. No torch."""

import re
from typing import Any

from hydraft.data.chat_turns import ROLE_KEYS, looks_like_turns, role_of
from hydraft.data.reading.json_values import parse

MARK = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
"""What begins a turn in Anthropic's HH-RLHF, where a dialogue is one text."""


def chat_of(value: Any) -> list[Any] | None:
    """The turns of a chat; None if a value is none.

    It is a list of turns, one turn, the JSON of either (a cell of a table), or a text whose turns begin with ``Human:`` and
    ``Assistant:`` (HH-RLHF).
    """
    if isinstance(value, str):
        if value.lstrip().startswith(("[", "{")):
            try:
                value = parse(value)
            except ValueError:
                return None
        else:
            return _dialogue(value)
    if isinstance(value, dict):
        return [value] if any(key in value for key in ROLE_KEYS) else None
    return value if looks_like_turns(value) else None


def is_whole(value: Any) -> bool:
    """Whether a value is a chat from its beginning, not only an answer."""
    turns = chat_of(value)
    if not turns:
        return False
    name = next((turns[0][key] for key in ROLE_KEYS if key in turns[0]), "user")  # a round begins with a question
    return role_of(name) in ("system", "user")


def _dialogue(text: str) -> list[Any] | None:
    before, *parts = MARK.split(text)
    if before or parts[:1] != ["Human"] or "Assistant" not in parts[::2]:
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[name], "content": content.strip()} for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    return turns


def question_of(value: Any) -> list[Any] | None:
    """``chat_of`` a prompt: without the mark at its end, where the answer begins."""
    turns = chat_of(value)
    if turns and isinstance(value, str) and turns[-1] == {"role": "assistant", "content": ""}:
        return turns[:-1]
    return turns

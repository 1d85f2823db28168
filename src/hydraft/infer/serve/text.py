"""Texts that a client or a model may have written, made safe to send and to print."""

import json
from typing import Any

from hydraft.data.reading.row import is_broken
from hydraft.system.escaping import escaped

LONGEST = 500
"""Characters of a message that is sent back or logged."""


def printable(text: str) -> str:
    """``text`` as one line of at most ``LONGEST`` characters, without control characters and those that UTF-8 does not have."""
    return escaped(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")


def as_json(value: Any, separators: tuple[str, str] | None = None) -> str:
    """``value`` as JSON that UTF-8 can encode: halves of surrogate pairs, which a model can write in a call, are escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=separators)
    return json.dumps(value, separators=separators) if is_broken(text) else text

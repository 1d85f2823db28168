"""The text of a value in a record. No torch."""

import math
from collections.abc import Mapping
from typing import Any

from hydraft.errors import ConfigError

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of the parts of a content that are text (OpenAI)."""

THOUGHT_PARTS = ("thinking", "reasoning")
"""Types of the parts that are the thoughts of an answer (Anthropic, Mistral)."""


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words, with its article."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN (an empty cell of a table)"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    kinds = {str: "text", dict: "an object", list: "a list", tuple: "a list", int: "a number", float: "a number"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def plain_text(value: Any, key: str, place: str) -> str:
    """``value`` as text; null is none.

    Raises:
        ConfigError: it is not text, or has a character that UTF-8 does not have.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigError(f"{place}: {key!r} must be text, and is {kind_of(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"{place}: {key!r} {_broken(ord(value[error.start]))}") from None
    return value


def _broken(code: int) -> str:
    """What is wrong with a character that UTF-8 does not have; Python reads a byte that is not UTF-8 as one of them."""
    if 0xDC80 <= code <= 0xDCFF:
        return f"is not UTF-8 text (has the byte 0x{code - 0xDC00:02x})"
    return f"has half of a character (\\u{code:04x}, a surrogate without its pair)"


def text_of(value: Any, key: str, place: str) -> tuple[str, str]:
    """The text of a content, which may be a list of parts (OpenAI), and the thoughts in parts of their own.

    Raises:
        ConfigError: a part is not text (an image, say), or a value is not text.
    """
    if not isinstance(value, list) or not all(isinstance(part, Mapping) for part in value):
        return plain_text(value, key, place), ""
    texts, thoughts = "", ""
    for number, part in enumerate(value, 1):
        where = f"{place}, part {number}"
        kind = part.get("type", "text")
        if kind in TEXT_PARTS and "text" in part:
            texts += plain_text(part["text"], "text", where)
        elif kind in THOUGHT_PARTS:
            inner = part.get(kind, part.get("text"))
            thoughts += text_of(inner, str(kind), where)[0]
        else:
            what = f"is of the type {kind}" if isinstance(kind, str) else f"is {kind_of(part)}"
            raise ConfigError(f"{where}: {what}; of the parts of {key!r} only text can be trained")
    return texts, thoughts

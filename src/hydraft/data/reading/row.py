"""What a reader yields for each record of a file. No torch."""

from dataclasses import dataclass
from typing import Any

from hydraft.system.escaping import escaped

SHOWN = 1000
"""Characters of the beginning and of the end of a message that are shown."""


@dataclass(slots=True)
class Row:
    """One record as it is in the file, unchecked."""

    value: Any = None
    line: int = 0
    """Where it is in the file, from 1; 0 if that is not known."""
    fault: str = ""
    """Why it could not be read; ``value`` is None then."""
    remark: str = ""
    """What is unusual in it and changes nothing."""
    broken: bool = False
    """Whether its text has something that is no character (see ``broken_text``)."""


def is_broken(text: str) -> bool:
    """Whether ``text`` has half a surrogate pair, or a byte that was not UTF-8 (which Python reads as one)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def broken_text(value: Any) -> str | None:
    """What is wrong in the text inside ``value``, whatever it is made of; None if all of it is text."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            if 0xDC80 <= code <= 0xDCFF:
                return f"is not UTF-8 text (has the byte 0x{code - 0xDC00:02x})"
            return f"has half of a character (\\u{code:04x}, a surrogate without its pair)"
        return None
    if isinstance(value, dict):
        parts = [*value, *value.values()]
    elif isinstance(value, (list, tuple)):
        parts = list(value)
    else:
        parts = list(vars(value).values()) if hasattr(value, "__dict__") else []
    return next((found for part in parts if (found := broken_text(part)) is not None), None)


def printable(message: str) -> str:
    """A message with parts of a record in it, as one line that a terminal shows as it is: a long one without its middle."""
    if len(message) > 2 * SHOWN:
        message = f"{message[:SHOWN]} … {message[-SHOWN:]}"
    return escaped(message)


def without_nulls(columns: dict[str, Any]) -> dict[str, Any]:
    """A row of a table as a record: columns without a value in this row (null or NaN) are left out."""
    return {name: value for name, value in columns.items() if value is not None and value == value}

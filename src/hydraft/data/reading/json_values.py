"""Decodes JSON values one after another, from a window on the text of a file. No torch."""

import json
from json import JSONDecodeError
from typing import Any, TextIO

from hydraft.data.reading.row import Row, is_broken

CHUNK = 1 << 20
"""Characters that are read at a time."""

BLANK = " \t\r\n\x1e\ufeff"
"""What may stand between records: white space, RFC 7464's separator, the byte order mark of a file that was appended."""

DIGITS = 4000
"""Longer integers become floats: they are no text and no count, and Python refuses to read them."""

DEPTH = 100
"""The deepest nesting of lists and objects that is read: as in Parquet files. What encodes a record calls itself for each level."""

MARKED = "follows a byte order mark in the middle of the file"
"""The remark on a record where another file was appended."""


class Decoder:
    """Python's JSON decoder, but for NaN (null), integers of any length, and keys that an object has twice."""

    def __init__(self) -> None:
        self._json = json.JSONDecoder(
            object_pairs_hook=self._object, parse_int=_integer, parse_constant=lambda name: _CONSTANTS[name]
        )
        self._twice: list[str] = []
        self._different: list[str] = []

    def __call__(self, text: str, start: int) -> tuple[Row, int]:
        """The value at ``start`` as a row, and where it ends.

        Raises:
            JSONDecodeError, RecursionError: it is not JSON, or nested too deeply.
        """
        self._twice, self._different = [], []
        value, end = self._json.raw_decode(text, start)
        if self._different:
            return Row(fault=f"has the key {self._different[0]!r} twice, with different values"), end
        if is_deep(value, text.count("[", start, end) + text.count("{", start, end)):
            return Row(fault=TOO_DEEP), end
        row = Row(value)
        if self._twice:
            row.remark = f"has the key {self._twice[0]!r} twice, with the same value"
        if text.find("\\u", start, end) >= 0 or not text.isascii():
            row.broken = is_broken(text[start:end]) or _has_escaped_surrogate(text, start, end)
        return row, end

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            seen: dict[str, Any] = {}
            for key, value in pairs:
                if key in seen:
                    (self._twice if seen[key] == value else self._different).append(key)
                seen[key] = value
        return made


TOO_DEEP = f"nested too deeply (more than {DEPTH} levels)"


def parse(text: str) -> Any:
    """The value of JSON text inside a record.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    if is_deep(value, text.count("[") + text.count("{")):
        raise ValueError(TOO_DEEP)
    return value


def is_deep(value: Any, brackets: int) -> bool:
    """Whether a value is nested too deeply; ``brackets``: the opening ones in its text, to tell most values at once."""
    if brackets <= DEPTH:
        return False
    level = [value]
    for _ in range(DEPTH):
        level = [
            part
            for one in level
            for part in (one.values() if isinstance(one, dict) else one)
            if isinstance(part, (dict, list))
        ]
        if not level:
            return False
    return True


_CONSTANTS = {"NaN": None, "Infinity": float("inf"), "-Infinity": float("-inf")}


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= DIGITS else float(digits)


def _has_escaped_surrogate(text: str, start: int, end: int) -> bool:
    return text.find("\\ud", start, end) >= 0 or text.find("\\uD", start, end) >= 0


class Text:
    """A window on the text of a file, which grows at its end as far as is needed."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.text = file.read(CHUNK)
        self.at = 0
        self.marked = False
        """Whether ``peek`` has passed a byte order mark."""
        self._lines = 0  # line breaks before the window

    def more(self) -> bool:
        """Drop what has been read, and read on; false at the end of the file."""
        chunk = self.file.read(max(CHUNK, len(self.text) - self.at))  # twice as much each time: long values stay linear
        if not chunk:
            return False
        self._lines += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :] + chunk, 0
        return True

    def line(self, position: int) -> int:
        """The line of a position in the window, from 1."""
        return self._lines + self.text.count("\n", 0, position) + 1

    def peek(self, skipped: str = BLANK) -> str:
        """Move to the next character that is none of ``skipped``, and return it; empty at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in skipped:
                self.marked = self.marked or self.text[self.at] == "\ufeff"
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def until_line_break(self) -> str:
        """The rest of this line, without the line break; moves behind it."""
        while (end := self.text.find("\n", self.at)) < 0:
            if not self.more():
                end = len(self.text)
                break
        line, self.at = self.text[self.at : end], min(end + 1, len(self.text))
        return line

    def value(self, decode: Decoder) -> Row:
        """The JSON value here; moves behind it.

        Raises:
            JSONDecodeError: there is none.
        """
        while True:
            try:
                row, end = decode(self.text, self.at)
            except JSONDecodeError as error:
                if not is_incomplete(error) or not self.more():
                    raise
                continue
            if end == len(self.text) and self.text[end - 1] not in '}]"' and self.more():
                continue  # a number may go on
            self.at = end
            if self.marked and not row.remark:
                row.remark = MARKED
            self.marked = False
            return row


def is_incomplete(error: JSONDecodeError) -> bool:
    """Whether more text may make this JSON: the error is at the end, or in a string that does not end."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(error.doc) - len("-Infinity")

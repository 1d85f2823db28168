"""Reads JSON text record by record, in any of the forms that files of records have. No torch.

JSON lines; a list; objects or lists one after another, over as many lines as they like; an object around one list. Of a file, only
the part around the current record is in memory.
"""

from collections.abc import Callable, Iterator
from json import JSONDecodeError
from typing import Any, TextIO

from hydraft.data.reading.json_values import BLANK, CHUNK, MARKED, TOO_DEEP, Decoder, Text, is_incomplete
from hydraft.data.reading.row import Row
from hydraft.errors import ConfigError

LISTS = ("data", "records", "items", "examples", "instances", "rows", "samples", "entries", "dataset", "train")
"""Keys of an object around the list of records."""

Say = Callable[[str], None]
"""Is told a line for the user."""


def rows(file: TextIO, label: str, say: Say) -> Iterator[Row]:
    """The records of a file of JSON.

    Args:
        label: the file, for messages.
        say: is told what was understood that a reader may not expect.

    Raises:
        ConfigError: it is not JSON, in a way that hides where the next record begins.
    """
    text, decode = Text(file), Decoder()
    first = text.peek()
    if not first:
        return
    if first == "[":
        yield from _lines(text, decode) if _lists_of_turns(text, decode) else _lists(text, decode, label)
        return
    whole = _first_line(text, decode)
    if whole is not None and not _ends_after_first_line(text):
        yield from _lines(text, decode)
    elif (key := _wrapper(text, decode)) is not None:
        say(f"{label}: an object; the list under its key {key!r} is read")
        yield from _lists(text, decode, label, key)
    elif whole is None and _broken_first_line(text, decode):
        yield from _lines(text, decode)
    else:
        yield from _values(text, decode, label)


def _first_line(text: Text, decode: Decoder) -> Row | None:
    """The value of the first line; None if the line holds something else, or goes on outside the window."""
    end = text.text.find("\n", text.at)
    line = text.text[text.at : end if end >= 0 else len(text.text)]
    try:
        row, stop = decode(line, 0)
    except (JSONDecodeError, RecursionError):
        return None
    return None if line[stop:].strip(BLANK) else row


def _ends_after_first_line(text: Text) -> bool:
    end = text.text.find("\n", text.at)
    return end < 0 or not text.text[end:].strip(BLANK)


def _lists_of_turns(text: Text, decode: Decoder) -> bool:
    """Whether each line is a list of messages, not of records."""
    row, end = _first_line(text, decode), text.text.find("\n", text.at)
    return row is not None and is_turns(row.value) and end >= 0 and text.text[end:].lstrip(BLANK).startswith("[")


def is_turns(value: Any) -> bool:
    """Whether ``value`` is a list of messages: one record."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value)
    )


def _broken_first_line(text: Text, decode: Decoder) -> bool:
    """Whether the file has JSON lines, but for the first."""
    start = text.at
    try:
        decode(text.text, start)
        return False  # a value over several lines
    except RecursionError:
        return True
    except JSONDecodeError as error:
        if is_incomplete(error) and len(text.text) >= CHUNK:
            return False
    for line in text.text[start:].split("\n")[1:]:
        if line.startswith("{"):
            try:
                row, end = decode(line, 0)
            except (JSONDecodeError, RecursionError):
                continue
            if isinstance(row.value, dict) and not line[end:].strip(BLANK):
                return True
    return False


def _wrapper(text: Text, decode: Decoder) -> str | None:
    """Move to the list of records in an object around it, and return its key; None if this is another object."""
    start, at = text.at, text.at + 1
    if text.text[start] != "{":
        return None
    try:
        while True:
            at = _skip(text.text, at)
            key, at = decode(text.text, at)
            at = _skip(text.text, at)
            if text.text[at : at + 1] != ":":
                return None
            at = _skip(text.text, at + 1)
            if (
                text.text[at : at + 1] == "["
                and text.text[_skip(text.text, at + 1) :][:1] == "{"
                and key.value in LISTS
            ):
                text.at = at
                return str(key.value)
            _, at = decode(text.text, at)
            at = _skip(text.text, at)
            if text.text[at : at + 1] != ",":
                return None
            at += 1
    except (JSONDecodeError, RecursionError):
        return None


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in BLANK:
        at += 1
    return at


def _lines(text: Text, decode: Decoder) -> Iterator[Row]:
    number = text.line(text.at) - 1
    while text.at < len(text.text) or text.more():
        number += 1
        line = text.until_line_break()
        marked = line.startswith("\ufeff") and number > 1
        at = _skip(line, 0)
        while at < len(line):
            try:
                row, at = decode(line, at)
            except JSONDecodeError as error:
                row, at = Row(fault=f"not JSON ({error.msg})"), len(line)
            except RecursionError:
                row, at = Row(fault=TOO_DEEP), len(line)
            if marked and not row.remark:
                row.remark = MARKED
            row.line = number
            yield row
            at = _skip(line, at)
            while line[at : at + 1] == ",":
                at = _skip(line, at + 1)


def _values(text: Text, decode: Decoder, label: str) -> Iterator[Row]:
    """Values one after another, with or without commas between them."""
    while text.peek(BLANK + ","):
        yield _value(text, decode, label)


def _lists(text: Text, decode: Decoder, label: str, key: str | None = None) -> Iterator[Row]:
    """The elements of a list, and of lists that follow it; with ``key``, the one inside an object."""
    while text.peek():
        if text.text[text.at] != "[":
            raise _refused(label, text, "something else follows the list")
        text.at += 1
        while (following := text.peek(BLANK + ",")) != "]":
            if not following:
                raise _refused(label, text, "the file ends inside a list, so it is cut off")
            yield _value(text, decode, label)
            if (following := text.peek()) not in (",", "]", ""):
                raise _refused(label, text, "Expecting ',' delimiter")
        text.at += 1
        if key is not None:
            _rest_of_object(text, decode, label, key)
            key = None
            if text.peek():
                raise _refused(label, text, "something else follows the object")


def _rest_of_object(text: Text, decode: Decoder, label: str, key: str) -> None:
    while text.peek(BLANK + ",") == '"':
        other = _value(text, decode, label).value
        if text.peek(BLANK + ":") == "[":
            value = _value(text, decode, label).value
            if isinstance(value, list) and any(isinstance(one, dict) for one in value):
                raise ConfigError(
                    f"{label}: an object with lists under {key!r} and {other!r}; write the list that is meant to a file of its own"
                )
        else:
            _value(text, decode, label)
    if text.peek() != "}":
        raise _refused(label, text, "the file ends inside an object, so it is cut off")
    text.at += 1


def _value(text: Text, decode: Decoder, label: str) -> Row:
    try:
        return text.value(decode)
    except JSONDecodeError as error:
        raise _refused(label, text, error.msg, error.pos) from None
    except RecursionError:
        raise _refused(label, text, TOO_DEEP) from None


def _refused(label: str, text: Text, reason: str, position: int | None = None) -> ConfigError:
    line = text.line(text.at if position is None else position)
    return ConfigError(f"{label}: not JSON (line {line}: {reason})")

"""Files of lines that are appended to: JSON Lines and logs. A line is in such a file whole or not at all. No torch.

Lines are written at once, at the end of the file and under its lock. If that fails (a full disk), the file is cut back to where it
was. What a process that was killed, a power cut or an earlier version left behind the last whole line is not read, and it is cut
off before the next line is written.
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydraft.system import files

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Errors of file systems that cannot lock."""
BLOCK = 1 << 16


@dataclass(frozen=True)
class Lines:
    """What a file of JSON Lines holds."""

    values: list[dict[str, Any]]
    damaged: int
    """Number of lines that are no JSON objects, such as a last one that was cut off; they are left out."""


def read(path: Path) -> Lines:
    """The JSON objects in a file, oldest first; none if there is no file.

    Raises:
        OSError: it cannot be read.
    """
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        return Lines([], 0)


def parse(data: bytes) -> Lines:
    """The JSON objects in lines of UTF-8."""
    found = [_object(line) for line in data.split(b"\n") if line.strip()]
    values = [value for value in found if value is not None]
    return Lines(values, len(found) - len(values))


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def append(path: Path, *values: dict[str, Any], sync: bool = False) -> None:
    """Append JSON objects to a file, a line each, with null for numbers that are not finite; all of them or none.

    Args:
        path: created if it is missing.
        values: the objects.
        sync: flush them to disk before returning.

    Raises:
        OSError: they could not be written; the file is as it was, without a line that had been cut off before.
    """
    with _locked(path) as handle:
        append_to(handle, path, *values, sync=sync)


def append_to(handle: int, path: Path, *values: dict[str, Any], sync: bool = False) -> None:
    """As ``append``, to a file that is open for reading and appending, and locked, as ``handle``."""
    data = _text(values).encode("utf-8", "backslashreplace")  # \udc80 is JSON too
    with files.named(path):
        size, ended = mend(handle)
        _write(handle, data if ended else b"\n" + data, size, sync)


def rewrite(path: Path, values: Sequence[dict[str, Any]]) -> None:
    """Replace the lines of a file of JSON Lines, atomically."""
    files.write_text(path, _text(values), "backslashreplace")


def _text(values: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(files.finite(value), ensure_ascii=False) + "\n" for value in values)


def append_text(path: Path, text: str) -> None:
    """Append lines of text to a file, created if it is missing; what is there before them is not changed.

    Raises:
        OSError: they could not be written; the file is as it was.
    """
    data = (text if text.endswith("\n") else f"{text}\n").encode("utf-8", "backslashreplace")
    with _locked(path) as handle, files.named(path):
        size = os.fstat(handle).st_size
        ended = size == 0 or os.pread(handle, 1, size - 1) == b"\n"
        _write(handle, data if ended else b"\n" + data, size, sync=False)


def mend(handle: int) -> tuple[int, bool]:
    """Cut off what is behind the last whole line of a file of JSON Lines that is open for reading and appending, and locked.

    A last line that lacks only its end is whole.

    Returns:
        The size of the file in bytes, and whether its last line has an end.
    """
    size = os.fstat(handle).st_size
    start, tail = size, b""
    while start and b"\n" not in tail:
        begin = max(0, start - BLOCK)
        tail = os.pread(handle, start - begin, begin) + tail
        start = begin
    tail = tail[tail.rfind(b"\n") + 1 :]
    if not tail:
        return size, True
    if _object(tail) is not None:
        return size, False
    os.ftruncate(handle, size - len(tail))
    return size - len(tail), True


def _write(handle: int, data: bytes, size: int, sync: bool) -> None:
    """Write ``data`` to the end of a file of ``size`` bytes, or leave the file at that size."""
    left = memoryview(data)
    try:
        while left:  # on an almost full disk a write may be partial, and the next one says why
            left = left[os.write(handle, left) :]
        if sync:
            os.fsync(handle)
    except BaseException:
        os.ftruncate(handle, size)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A handle of a file, opened for reading and appending, which no other process has locked in the meantime."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield handle
    finally:
        os.close(handle)  # and unlocked

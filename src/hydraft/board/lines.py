"""Reads what is appended to a file of JSON Lines since a cursor. No torch."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydraft.system import line_file

MOST = 8 * 2**20
"""Bytes that are read at once."""


@dataclass
class Part:
    """The new lines of a file."""

    cursor: str
    """Where the next part begins: the file's inode and an offset in bytes."""
    anew: bool
    """Whether it is a part of another file than the cursor's: what was read before is no longer in it."""
    more: bool
    """Whether there is more than this part."""
    values: list[dict[str, Any]] = field(default_factory=list)
    """The whole lines; damaged ones are left out."""


def read(file: Path, cursor: str = "", most: int = MOST) -> Part:
    """The whole lines of ``file`` after ``cursor``. A last line without its end is left for later.

    Raises:
        OSError: the file cannot be read. A missing one is empty.
    """
    inode, offset = position(cursor)
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Part("", inode is not None, False)
    with os.fdopen(handle, "rb") as opened:
        about = os.fstat(opened.fileno())
        anew = inode != about.st_ino or offset > about.st_size
        offset = 0 if anew else offset
        opened.seek(offset)
        data = opened.read(most)
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) == most:  # a line without an end that is longer than any of ours
            end = most
        values = line_file.parse(data[:end]).values
        return Part(
            f"{about.st_ino}-{offset + end}", anew and inode is not None, offset + len(data) < about.st_size, values
        )


def ends(file: Path, size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last training step and the last evaluation in the last ``size`` bytes of a metrics.jsonl; each empty if there is none.

    Lines are parsed from the end, and no more than are needed.
    """
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as opened:
            whole = os.fstat(opened.fileno()).st_size
            start = max(0, whole - size)
            opened.seek(start)
            data = opened.read(size)
    except OSError:
        return {}, {}
    found = data[: data.rfind(b"\n") + 1].split(b"\n")
    step: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    for line in reversed(found[1:] if start else found):
        evaluates, trains = (
            not evaluation and b'"eval_' in line,
            not step and b'"loss"' in line and b'"sick"' not in line,
        )
        if evaluates or trains:
            (value,) = line_file.parse(line).values or [{}]
            if evaluates and any(key.startswith("eval_") for key in value):
                evaluation = value
            elif trains and isinstance(value.get("loss"), (int, float)):
                step = value
        if step and evaluation:
            break
    return step, evaluation


def position(cursor: str) -> tuple[int | None, int]:
    """Inode and offset of a cursor; of one that is none of ours, as at the beginning."""
    inode, _, offset = cursor.partition("-")
    if inode.isdecimal() and offset.isdecimal() and len(cursor) < 60:
        return int(inode), int(offset)
    return None, 0

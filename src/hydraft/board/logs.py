"""The end of a log and what is appended to it, without escape sequences and secrets. No torch."""

import os
import re
from pathlib import Path
from typing import Any

from hydraft.board.lines import position
from hydraft.system.redaction import redact_text

TAIL = 1 << 17
"""Bytes of a log that are shown at first."""
MOST = 1 << 20
"""Bytes that are read at once."""

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def part(file: Path, cursor: str = "") -> dict[str, Any]:
    """The whole lines after a cursor; without one, those at the end of the file.

    ``cursor`` is where the next part begins, ``anew`` says that it is another file than before, and ``cut`` that there are lines
    before the first that is shown.

    Raises:
        OSError: the file cannot be read.
    """
    inode, offset = position(cursor)
    handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as opened:
        about = os.fstat(opened.fileno())
        anew = inode != about.st_ino or offset > about.st_size
        start = max(0, about.st_size - TAIL) if anew else offset
        start = max(start, about.st_size - MOST)
        opened.seek(start)
        data = opened.read(MOST)
    cut = start > (0 if anew else offset)
    skipped = data.find(b"\n") + 1 if cut else 0
    end = data.rfind(b"\n") + 1 or (len(data) if len(data) >= MOST else 0)
    text = data[skipped:end].decode("utf-8", "replace")
    return {
        "cursor": f"{about.st_ino}-{start + end}",
        "anew": anew,
        "cut": cut,
        "size": about.st_size,
        "text": clean(text),
    }


def clean(text: str) -> str:
    """``text`` as a terminal would leave it: without colours, and of a line that was overwritten the last form."""
    text = ESCAPES.sub("", text).replace("\r\n", "\n")
    text = "\n".join(line.rpartition("\r")[2] for line in text.split("\n"))
    return redact_text(UNPRINTABLE.sub("", text))

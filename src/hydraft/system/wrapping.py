"""Lines on a terminal: broken between words, never inside one, and a command to paste stays on one line. No torch."""

import re
import sys
from typing import TextIO

COMMAND = re.compile(r"(?:(?<=: )|(?<=^))(?:python|pip|hydraft|wandb|ssh|make) \S.*$")
"""A command at the end of a line: with a line break in it, half of it would be pasted."""


def wrapped(text: str, width: int) -> str:
    """``text`` with line breaks in place of spaces, so that its lines have at most ``width`` columns where their words allow it."""
    return "\n".join(_wrapped_line(line, width) for line in text.split("\n"))


def _wrapped_line(line: str, width: int) -> str:
    from rich.cells import cell_len

    if cell_len(line) <= width:
        return line
    command = COMMAND.search(line)
    words = (line if command is None else line[: command.start()].rstrip()).split(" ")
    words += [] if command is None else [command[0]]
    lines = [words[0]]
    for word in words[1:]:
        if cell_len(lines[-1]) + 1 + cell_len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def columns(stream: TextIO | None = None) -> int | None:
    """The width of a stream's terminal, at least 20; None if it is a file or a pipe, whose lines are left as they are."""
    import shutil

    stream = stream or sys.stdout
    return max(20, shutil.get_terminal_size().columns) if stream.isatty() else None


def say(text: str, stream: TextIO | None = None) -> None:
    """Print ``text`` on ``stream``, by default stdout."""
    stream = stream or sys.stdout
    width = columns(stream)
    print(text if width is None else wrapped(text, width), file=stream)

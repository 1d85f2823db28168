"""The standard streams of a command: opened if they are closed, and written to without an error after their reader has left. No torch.

``guard`` comes first in every command, before anything can open a file as descriptor 0, 1 or 2. By default a command ends when nobody
reads what it prints, as other programs do. One that has more to do than to print calls ``go_on``.
"""

import errno
import io
import os
import re
import select
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

from hydraft.system.escaping import escaped

EXIT_NO_READER = 128 + signal.SIGPIPE
"""What a shell reports of a program that wrote to a closed pipe."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors after which there may be room again later."""


COMMANDS = re.compile(r"\x1b(?!\[(?:[0-9;]*[A-GKm]|\?25[hl]))|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]")
"""Control characters (ECMA-48) other than a tab, a new line, and the sequences for colours, moves of the cursor and erasing a line, with
which bars and tables are drawn: others have a terminal set its title or the clipboard, clear its screen, or type an answer."""


@dataclass
class _Process:
    goes_on: bool = False
    """Whether this process goes on without an output that is lost."""
    told: bool = False
    """Whether it has said that one is lost."""
    gone: bool = False
    """Whether nobody reads its stdout any more."""
    messages: int = 2
    """The file descriptor that it says so on."""
    replaced: list[Any] = field(default_factory=list)
    """The streams that ``guard`` has replaced; one that is not kept may close its descriptor."""


PROCESS = _Process()
"""The standard streams belong to a process, and so does what happens when one of them is lost."""


class Output(io.FileIO):
    """A file descriptor that text is printed to. Writing to it raises no OSError."""

    def __init__(self, descriptor: int, label: str | None, closefd: bool = False) -> None:
        """``label``: its name in the message that it is lost; None for no message."""
        super().__init__(descriptor, "wb", closefd=closefd)
        self.label = label

    def write(self, data: Any, /) -> int:
        """Write all of ``data``, or drop it if that is not possible.

        Raises:
            SystemExit: it is lost, and this process has nothing else to do.
        """
        rest = memoryview(data).cast("B")
        size = rest.nbytes
        while rest:
            try:
                written = super().write(rest)
            except OSError as error:
                _lose(self.fileno(), self.label, error)
                return size
            if written is None:  # another process has made the pipe non-blocking
                ready = select.poll()
                ready.register(self, select.POLLOUT)
                ready.poll()
            else:
                rest = rest[written:]
        return size


class Text(io.TextIOWrapper):
    """A stream of text; on a terminal, text from outside (names, records, answers, errors) cannot give it commands."""

    shown = False
    """Whether it is a terminal."""

    def write(self, text: str, /) -> int:
        """Write ``text``; what would command a terminal is shown as an escape sequence of Python's."""
        super().write(COMMANDS.sub(lambda found: escaped(found[0]), text) if self.shown else text)
        return len(text)


def _lose(descriptor: int, label: str | None, error: OSError) -> None:
    """What is written to ``descriptor`` is lost: say so once, and go on or end."""
    full, quiet = error.errno in FULL, label is None
    goes_on = PROCESS.goes_on or quiet
    if not (full and goes_on):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor, os.get_inheritable(descriptor))
        os.close(nowhere)
        PROCESS.gone = PROCESS.gone or descriptor == 1
    if not quiet and not PROCESS.told and (full or goes_on):
        PROCESS.told = True
        rest = "; this goes on, and what it prints is lost" if goes_on else ""
        with suppress(OSError):
            os.write(PROCESS.messages, f"{label}: {error.strerror}{rest}\n".encode())
    if not goes_on:
        raise SystemExit(1 if full else EXIT_NO_READER)


def guard(label: str = "stdout") -> None:
    """Open the standard streams that are closed on /dev/null, and replace ``sys.stdout`` and ``sys.stderr`` by guarded ones.

    Args:
        label: what stdout is in the message that it is lost.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # the lowest free one is this one, unless a thread is opening files too
            opened = os.open(os.devnull, os.O_RDWR)
            os.dup2(opened, descriptor)
            os.set_inheritable(descriptor, True)
            if opened != descriptor:
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None or _descriptor(stream) == descriptor:  # not the one of a test that records what is printed
            PROCESS.replaced.append(stream)
            setattr(sys, name, writer(descriptor, label if descriptor == 1 else None, stream))


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, AttributeError, ValueError):
        return None


def writer(descriptor: int, label: str | None, like: Any = None, closefd: bool = False) -> Text:
    """A guarded stream of text.

    Args:
        descriptor: the file descriptor to write to.
        label: its name in the message that it is lost; None for no message.
        like: a stream whose encoding and buffering it has; without one it is UTF-8 and buffered.
        closefd: whether the stream closes the descriptor when it is closed.
    """
    with suppress(OSError, ValueError):
        if like is not None:
            like.flush()
    unbuffered = getattr(like, "write_through", False)
    raw = Output(descriptor, label, closefd)
    errors = getattr(like, "errors", None)
    text = Text(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=getattr(like, "encoding", None) or "utf-8",
        errors="backslashreplace" if errors in (None, "strict") else errors,  # a path may have bytes that are no text
        line_buffering=getattr(like, "line_buffering", False),
        write_through=unbuffered,
    )
    text.shown = raw.isatty()
    return text


def go_on() -> None:
    """From now on this process goes on if its output is lost; a line on stderr says so."""
    PROCESS.goes_on = True


def messages_to(descriptor: int) -> None:
    """Say on ``descriptor`` that an output is lost, in place of stderr."""
    PROCESS.messages, PROCESS.told = descriptor, False


def is_lost() -> bool:
    """Whether nobody reads stdout any more, if this process goes on without it."""
    if not PROCESS.goes_on:
        return False
    state = select.poll()
    state.register(1, 0)
    if any(happened & select.POLLERR for _, happened in state.poll(0)):
        _lose(1, "stdout", OSError(errno.EPIPE, os.strerror(errno.EPIPE)))
    return PROCESS.gone


def show(data: bytes) -> None:
    """Write bytes to stdout at once."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()

"""A command in a real terminal (a pty), with keys as a user types them."""

import os
import pty
import re
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from conftest import SCALE


class Terminal:
    """``with Terminal(command, folder, environment) as terminal``: the command is killed at the end of the block."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.process, self.end = pty.fork()
        if self.process == 0:
            variables = {**environment, "TERM": "xterm", "LC_ALL": "C.UTF-8", "PROMPT_TOOLKIT_NO_CPR": "1"}
            os.chdir(folder)
            os.execve(command[0], list(command), variables)
        self.shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        os.close(self.end)

    def type(self, text: str) -> None:
        """Type ``text``."""
        self.shown = ""
        os.write(self.end, text.encode())

    def wait(self, pattern: str, seconds: float = 90, ended: bool = False) -> str:
        """Wait until ``pattern`` is in the output since the last keys, and return it without terminal control codes."""
        deadline = time.monotonic() + seconds * SCALE
        while not re.search(pattern, plain(self.shown), flags=re.DOTALL):
            assert time.monotonic() < deadline, f"no {pattern!r} in {plain(self.shown)!r}"
            if select.select([self.end], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self.end, 65536).decode(errors="replace")
                except OSError:  # the other end is closed
                    assert ended, plain(self.shown)
                    break
        return plain(self.shown)


def plain(shown: str) -> str:
    """What a terminal shows, without its control codes."""
    return re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|[=>])|[\r\b]", "", shown)

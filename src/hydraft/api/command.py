"""Runs train.py in a process of its own, as a person would in a terminal, and follows what it prints. No torch.

The calling process, such as the kernel of a notebook, keeps its memory and has no CUDA context. The process has a session of its own, so
that an interrupt reaches it only from here; if the caller is killed, it gets SIGTERM, and saves what it has.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import IO

from hydraft.errors import EXIT_REFUSED, ConfigError, RunFailed, RunStopped
from hydraft.system.source_tree import ROOT, own_code_first

POLL_SECONDS = 0.1

HELD_SECONDS = 1.0
"""For which a line on stderr is held back: it may be the error that the command ends with."""

LINES = 40
"""Of what it printed last, those that are kept for an error."""

OF_A_NOTEBOOK = ("FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "MPLBACKEND")
"""With these, the command would take its files for a terminal, and draw into a notebook."""

WITH_PARENT = (
    "import os, sys\n"
    "from hydraft.system.parent_death import die_with_parent\n"
    "die_with_parent(15)\n"  # kept when another program is executed, prctl(2)
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)
"""A program that has the kernel send SIGTERM when its parent ends, and then is Python with its arguments."""

PROMPT = re.compile(r"^(?:train\.py|hydraft train): ", re.MULTILINE)


def program(script: str) -> list[str]:
    """What a person would type before the overrides, without Python: the script in the project's folder."""
    return [str(ROOT / script)]


def kept(lines: list[str], new: Sequence[str]) -> None:
    """Append ``new`` to ``lines``, of which the last ones are kept."""
    lines += new
    del lines[:-LINES]


def _environment() -> dict[str, str]:
    """That of the caller, without what the kernel of a notebook has for its own output."""
    kept = {name: value for name, value in os.environ.items() if name not in OF_A_NOTEBOOK}
    return {**kept, "PYTHONPATH": own_code_first(), "PYTHONUNBUFFERED": "1"}


class Command:
    """A command that runs. Its output goes to files, which it can still write to when the caller has ended."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Start ``train.py arguments``."""
        self.streams: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self._rests = [b"", b""]
        self._read = [0, 0]
        self._held: list[str] = []
        self._held_since = 0.0
        self.printed: list[str] = []
        """The last lines of its output."""
        self.errors: list[str] = []
        """The last lines on its stderr."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", WITH_PARENT, *program("train.py"), *arguments],
            stdin=subprocess.DEVNULL, stdout=self.streams[0], stderr=self.streams[1], start_new_session=True,
            env=_environment(),
        )  # fmt: skip

    def wait(self, follow: Callable[[list[str]], None]) -> None:
        """Wait until it has ended. An interrupt of the caller (Ctrl-C, or that of a notebook) is a graceful shutdown of the command.

        Args:
            follow: gets the new lines of its output, often.

        Raises:
            ConfigError: it refused a setting.
            RunFailed: it failed; the message is what it printed.
            RunStopped: it was interrupted, and has saved what it said.
        """
        interrupted = False
        try:
            while True:
                try:
                    ended = self.process.poll() is not None
                    follow(self._new_lines(ended))
                    if ended:
                        break
                    time.sleep(POLL_SECONDS)
                except KeyboardInterrupt:
                    interrupted = True
                    self._signal(signal.SIGINT)  # a second one ends it at once
        finally:
            self._signal(signal.SIGTERM)  # nothing, unless an error ended the loop
            self.process.wait()
            for stream in self.streams:
                stream.close()
        self._raise(self.process.returncode, interrupted)

    def _signal(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def _new_lines(self, ended: bool) -> list[str]:
        """The whole lines that it has printed since the last call. Those on stderr come later, and not if it ends with them: as an error."""
        found = self._whole(0)
        kept(self.printed, found)
        if errors := self._whole(1):
            self._held += errors
            self._held_since = time.monotonic()
            kept(self.errors, errors)
        shows = self.process.returncode == 0 if ended else time.monotonic() - self._held_since > HELD_SECONDS
        if shows:
            found, self._held = [*self._held, *found], []
        return found

    def _whole(self, number: int) -> list[str]:
        """The whole lines of a stream since the last call."""
        data = os.pread(self.streams[number].fileno(), 1 << 24, self._read[number])
        self._read[number] += len(data)
        *whole, self._rests[number] = (self._rests[number] + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in whole]

    def _raise(self, code: int, interrupted: bool) -> None:
        """Raise what the command ended with."""
        if code == 0:
            return
        said = "\n".join(line for line in self.errors if line.strip())
        if code == EXIT_REFUSED and said:
            raise ConfigError(PROMPT.split(said)[-1])
        number = code - 128 if code > 128 else -code
        if interrupted or number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            raise RunStopped(said or "stopped before it had begun", number if number > 0 else signal.SIGINT)
        if code < 0:
            said = f"the process was ended by {signal.Signals(-code).name}" + (f": {said}" if said else "")
        raise RunFailed(said or "\n".join(self.printed) or f"exit code {code}", code)

"""Processes that are named in files. No torch."""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class ProcessId:
    """A process by its id and its start time: the kernel gives the id of a process that has ended to another one."""

    pid: int
    started: int | None = None
    """Clock ticks from the start of the machine; None if it is not known, so that the id alone counts."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """The process that has this id now."""
        found = _stat(pid)
        return cls(pid, None if found is None else int(found[19]))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of ``str``."""
        numbers = [int(word) for word in text.split()]
        return cls(numbers[0], numbers[1] if len(numbers) > 1 else None)

    def __str__(self) -> str:
        return str(self.pid) if self.started is None else f"{self.pid} {self.started}"

    @property
    def state(self) -> str:
        """Its state as in ps: Z if it has ended and its parent has not noticed, X if there is no such process."""
        found = _stat(self.pid)
        if found is None or (self.started is not None and int(found[19]) != self.started):
            return "X"
        return found[0]

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.state not in ("Z", "X")

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended; never to another process that has its id."""
        with suppress(ProcessLookupError):
            if not hasattr(os, "pidfd_open"):  # only on Linux
                if self.runs:
                    os.kill(self.pid, number)
                return
            handle = os.pidfd_open(self.pid)  # from here on, it means this process even if the id is given away
            try:
                if self.runs:
                    signal.pidfd_send_signal(handle, number)
            finally:
                os.close(handle)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on (proc(5) counts it as the third); None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None

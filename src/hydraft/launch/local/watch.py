"""Watches the ranks of this machine while torch's agent waits for them: ends a hang, and a wait for ranks that are gone. No torch."""

import signal
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from hydraft.launch.local import hang
from hydraft.launch.local.rank import exit_failure
from hydraft.system import files
from hydraft.system.processes import ProcessId

LOOK_SECONDS = 0.5
GONE_SECONDS = 3.0
"""From the end of a rank without a note to ending the others; the agent itself notices in a tenth of a second."""
STUCK_SECONDS = 5.0
"""From the end of all ranks to interrupting the agent."""


@dataclass
class RankWatch(AbstractContextManager["RankWatch"]):
    """Watches the ranks in a thread, inside its ``with`` block, which waits for them in the main thread.

    It leaves a failure as ``hung`` or ``gone`` in the folder of notes before it ends the ranks.
    """

    notes: Path
    """Where the ranks leave process ids, heartbeats and how they ended."""
    folder: Path
    """The run's folder, with the ranks' logs."""
    count: int
    """Ranks of this machine."""
    alone: bool
    """Whether no other machine has ranks of this run: otherwise an agent whose ranks are done waits for those."""
    hang_timeout: float | None
    """Seconds without progress after which the ranks are ended; None if another process monitors that."""
    server: ProcessId | None = None
    """The fork server that the ranks are forked from; None if this process forks or spawns them itself."""
    noticed: threading.Event = field(default_factory=threading.Event)
    """Set when the agent itself has seen a failure, and ends the other ranks."""
    interrupted: bool = False
    """Whether the agent waited for ranks that had all ended, and was interrupted by SIGQUIT."""
    _done: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    @property
    def complete(self) -> bool:
        """Whether every rank has noted that it is done."""
        return len(list(self.notes.glob("[0-9]*.done"))) >= self.count

    def _watch(self) -> None:
        monitor = hang.RankMonitor(self.notes)
        gone_at: float | None = None
        ended_at: float | None = None
        while not self._done.wait(LOOK_SECONDS):
            now = time.monotonic()
            gone = hang.gone(self.notes)
            if self.hang_timeout is not None and not gone and hang.is_hung(monitor.status(), self.hang_timeout):
                failure = hang.diagnose(monitor.stacks(self.folder))
                files.write_json(self.notes / "hung", failure.to_dict())
                monitor.kill()
            gone_at = (gone_at or now) if gone and not self.noticed.is_set() else None
            if gone_at is not None and now - gone_at > GONE_SECONDS and not (self.notes / "gone").exists():
                failure = replace(exit_failure(None), rank=min(gone))
                files.write_json(self.notes / "gone", failure.to_dict())
                monitor.kill()
            ended_at = (ended_at or now) if self._all_ended() else None
            if ended_at is not None and now - ended_at > STUCK_SECONDS:
                self._interrupt()
                return

    def _all_ended(self) -> bool:
        """Whether nothing is left that the agent could be waiting for."""
        processes = hang.processes(self.notes)
        ended = len(processes) >= self.count and not any(process.runs for process in processes.values())
        return ended and (self.alone or not self.complete)

    def _interrupt(self) -> None:
        """End the agent's wait: by the end of the server that should have reported the end of its forks, or else by a signal."""
        if self.server is not None:
            self.server.signal(signal.SIGKILL)
        if not self._done.wait(2):
            self.interrupted = True
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGQUIT)  # torch's handler raises SignalException

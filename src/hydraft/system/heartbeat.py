"""A rank's heartbeat: the modification time of a file, updated whenever the rank makes progress. No torch."""

import faulthandler
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

DUMP_SIGNAL = signal.SIGUSR2
"""Makes a rank write the Python stack of each of its threads to its log."""

CHECK_SECONDS = 2.0


class Heartbeat:
    """The heartbeat of one rank. A rank's entry point creates it and calls ``start``; without that, nothing is written."""

    def __init__(self) -> None:
        self._file: int | None = None
        self._path: Path | None = None

    def start(self, file: Path) -> None:
        """Write heartbeats to ``file`` from now on, and dump the stacks to stderr upon ``DUMP_SIGNAL``."""
        self._path = file
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
        faulthandler.register(DUMP_SIGNAL, all_threads=True)
        self.beat()

    def beat(self) -> None:
        """The rank has made progress."""
        if self._file is not None:
            os.utime(self._file)

    def stop(self) -> None:
        """The rank is no longer monitored: what it still does may take any time."""
        if self._file is not None and self._path is not None:
            os.close(self._file)
            self._path.unlink(missing_ok=True)
            self._file = None

    @contextmanager
    def while_working(self) -> Iterator[None]:
        """For a block that cannot call ``beat`` itself, such as reading a checkpoint: beat while the process computes or reads."""
        done = threading.Event()

        def check() -> None:
            process, before = psutil.Process(), -1.0
            while not done.wait(CHECK_SECONDS):
                times, moved = process.cpu_times(), process.io_counters()
                now = times.user + times.system + (moved.read_chars + moved.write_chars) / 2**20
                if now - before > 0.1:  # a tenth of a second of CPU time, or of a MiB
                    self.beat()
                before = now

        checker = threading.Thread(target=check, daemon=True)
        if self._file is not None:
            checker.start()
        try:
            yield
        finally:
            done.set()
            self.beat()

"""A rank's sign of life: the time of a file, set anew wherever the rank gets on. No torch here.

Where no launcher of ours watches, nothing is written.
"""

import faulthandler
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

DUMP = signal.SIGUSR2
"""Makes a rank write the Python stack of each of its threads to its log."""

LOOK_SECONDS = 2.0

_file: int | None = None
_path: Path | None = None


def start(file: Path) -> None:
    """Beat into ``file`` from now on, and answer ``DUMP`` on stderr."""
    global _file, _path
    _path = file
    _file = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
    faulthandler.register(DUMP, all_threads=True)
    beat()


def beat() -> None:
    """This rank got on."""
    if _file is not None:
        os.utime(_file)


def stop() -> None:
    """What this rank still does may take as long as it likes: no one watches it any more."""
    global _file, _path
    if _file is not None and _path is not None:
        os.close(_file)
        _path.unlink(missing_ok=True)
        _file = None


@contextmanager
def while_working() -> Iterator[None]:
    """Beat for a block that cannot, such as reading a checkpoint: as long as this process computes or reads."""
    done = threading.Event()

    def look() -> None:
        process, before = psutil.Process(), -1.0
        while not done.wait(LOOK_SECONDS):
            times, moved = process.cpu_times(), process.io_counters()
            now = times.user + times.system + (moved.read_chars + moved.write_chars) / 2**20
            if now - before > 0.1:  # a tenth of a second of work, or of a MiB
                beat()
            before = now

    watcher = threading.Thread(target=look, daemon=True)
    if _file is not None:
        watcher.start()
    try:
        yield
    finally:
        done.set()
        beat()

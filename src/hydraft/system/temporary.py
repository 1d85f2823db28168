"""Temporary folders that do not stay when their process is killed: the next command that makes one removes them. No torch.

A folder's ``.owner`` names its host and is locked as long as its process, or a fork of it, runs: the kernel releases the lock when
the last of them ends, by whatever signal.
"""

import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "hydraft-"
OWNER = ".owner"
KEPT = f"{OWNER}.kept"
KEPT_SECONDS = 14 * 86400
"""For how long a folder with such logs stays."""
UNKNOWN_SECONDS = 86400
"""For how long an empty folder without an owner is left alone: it may be a command's that is about to name itself."""

_locks: dict[Path, int] = {}


def make(kind: str, kept: bool = False, within: Path | None = None) -> Path:
    """Make a private temporary folder for this process, and remove those of ended ones; ``remove`` ends it.

    Args:
        kind: a part of its name.
        kept: whether it holds logs that a user is told about, and so stays for two weeks if its process is killed.
        within: the folder to make it in, instead of the system's for temporary files.
    """
    sweep(within)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-", dir=within))
    lock = os.open(folder / f"{OWNER}.new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    _locks[folder] = lock
    with suppress(OSError):  # a file system without locks: nothing there is swept
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock, f"{socket.gethostname()}\n".encode())
        (folder / f"{OWNER}.new").rename(folder / OWNER)  # only now can another process try the lock
    if kept:
        (folder / KEPT).touch()
    return folder


def remove(folder: Path) -> None:
    """Remove a folder of ``make``."""
    shutil.rmtree(folder, ignore_errors=True)
    if (lock := _locks.pop(folder, None)) is not None:
        os.close(lock)


@contextmanager
def folder(kind: str, within: Path | None = None) -> Iterator[Path]:
    """A temporary folder for the length of the block."""
    made = make(kind, within=within)
    try:
        yield made
    finally:
        remove(made)


def sweep(within: Path | None = None) -> list[Path]:
    """Remove and return the temporary folders of this user's commands on this machine that have ended."""
    removed = []
    with suppress(OSError):
        for entry in os.scandir(within or tempfile.gettempdir()):
            with suppress(OSError):
                about = entry.stat(follow_symlinks=False)
                own = entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False)
                if own and about.st_uid == os.geteuid() and _remove_ended(Path(entry.path), about):
                    removed.append(Path(entry.path))
    return removed


def _remove_ended(folder: Path, about: os.stat_result) -> bool:
    """Remove ``folder`` unless a process owns it, or it is kept."""
    owner, age = folder / OWNER, time.time() - about.st_mtime
    try:
        lock = os.open(owner, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        if age > UNKNOWN_SECONDS:
            folder.rmdir()  # raises OSError if there is anything in it
            return True
        return False
    try:
        if os.read(lock, 300).decode(errors="replace").strip() != socket.gethostname():
            return False  # locks of another host may not be seen here
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises OSError if its process runs
        if (folder / KEPT).exists() and age < KEPT_SECONDS:
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()
    finally:
        os.close(lock)

"""A small file system in main memory that tests fill."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = 4096
BALLAST = ".ballast"


@contextmanager
def mounted(folder: Path, size: str, options: str = "") -> Iterator[Path]:
    """Mount a tmpfs of ``size`` ("1m") at ``folder``, and unmount it afterwards; the test is skipped where that is not allowed."""
    folder.mkdir(parents=True)
    wanted = ["mount", "-t", "tmpfs", "-o", f"size={size}{options}", "tmpfs", str(folder)]
    made = subprocess.run(wanted, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, pages: int = 0) -> None:
    """Fill a file system, but for a number of pages."""
    with (disk / BALLAST).open("wb", buffering=0) as file:
        try:
            while file.write(bytes(PAGE)):
                pass
        except OSError:
            file.truncate(max(0, os.fstat(file.fileno()).st_size // PAGE - pages) * PAGE)


def make_room(disk: Path) -> None:
    """Remove what ``fill`` has written."""
    (disk / BALLAST).unlink()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the ballast and locks."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in (BALLAST, ".ledger.lock", ".lock")
    }

"""The processes that run a sweep, each named by a file in its folder while it does, so that a sweep can be stopped. No torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hydraft.runs import run_folder
from hydraft.system import files

NAMES = ".holder.*.json"
"""The files of a sweep: of two commands that work on it, each has its own."""


@contextmanager
def named(folder: Path) -> Iterator[None]:
    """While the block runs jobs, name this process in the sweep's ``folder``. A disk that is full hinders no job."""
    file = folder / NAMES.replace("*", str(os.getpid()))
    with suppress(OSError):
        files.write_json(file, run_folder.this_process())
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)

"""Where a rank begins: its output goes to its log, its end is tied to its parent's, then the worker runs."""

import importlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from hydraft import rundir
from hydraft.launch.lifeline import die_with_parent


def error_file(folder: Path, rank: int) -> Path:
    """Where a rank that raised says when and why."""
    return folder / f".rank-{rank}-error.json"


def enter(folder: str) -> None:
    """Run this rank of the run in ``folder``; what libraries print lands in ``rank-N.log``."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher, which ends the ranks
    rank = int(os.environ["RANK"])
    terminal = os.dup(1)
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(Path(folder) / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    worker = importlib.import_module("hydraft.worker")
    try:
        worker.main(Path(folder), terminal)
    except BaseException as error:
        traceback.print_exc()  # into the log; the launcher tells the terminal
        cause = {"time": time.time(), "cause": " ".join(f"{type(error).__name__}: {error}".split())}
        rundir.write_json(error_file(Path(folder), rank), cause)
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()

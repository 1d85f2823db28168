"""Where a rank begins: its output goes to its log, its end is tied to its parent's, then the worker runs."""

import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from hydraft.launch.local import fork_server
from hydraft.system import files, heartbeat, signals
from hydraft.system.library_logs import quiet_bitsandbytes
from hydraft.system.parent_death import die_with_parent


def enter(folder: str, notes: str, terminal: str | None, environment: dict[str, str]) -> None:
    """Run this rank of the run in ``folder``; what libraries print lands in ``rank-N.log``.

    Args:
        folder: the run's folder.
        notes: a folder where the ranks leave their process ids, beats, and why they failed, for the launcher.
        terminal: a device or pipe that rank 0 shows itself on; None for the stdout that it was born with.
        environment: set before anything else.
    """
    die_with_parent()
    os.environ.update(environment)
    rank = int(os.environ["RANK"])
    signals.listen(Path(notes), rank)
    files.write_text(Path(notes) / f"{rank}.pid", str(os.getpid()))
    shown = terminal if rank == 0 else os.devnull
    screen = os.dup(1) if shown is None else os.open(shown, os.O_WRONLY | os.O_NOCTTY)
    try:
        _redirect(Path(folder) / f"rank-{rank}.log")
        heartbeat.start(Path(notes) / f"{rank}.beat")
        _check_gpu()
        quiet_bitsandbytes()
        importlib.import_module("hydraft.training.worker").main(Path(folder), screen)
    except BaseException as error:
        traceback.print_exc()  # into the log; the launcher tells the terminal
        _note_failure(Path(notes), rank, error)
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _check_gpu() -> None:
    """Refuse to go on as a fork that cannot use its GPU: torch would see none, or fail somewhere later.

    Raises:
        RuntimeError: so it is; the launcher asked before it forked (``local.method``), and CUDA was touched since.
    """
    why = fork_server.without_gpu() if os.environ.get("DS_ACCELERATOR") == "cuda" else None
    if why is not None:
        raise RuntimeError(f"this rank is a fork that cannot use a GPU: {why}")


def _note_failure(notes: Path, rank: int, error: BaseException) -> None:
    """Leave when and why this rank failed, and which ranks were gone by then: theirs is the cause, ours the effect."""
    gone = [
        int(file.stem)
        for file in notes.glob("*.pid")
        if not Path(f"/proc/{file.read_text()}").exists() and not (notes / f"{file.stem}.json").exists()
    ]
    cause = " ".join(f"{type(error).__name__}: {error}".split())
    files.write_json(notes / f"{rank}.json", {"time": time.time(), "cause": cause, "gone": gone})


def read_failures(notes: Path) -> dict[int, dict[str, Any]]:
    """What the ranks that raised left behind, by rank."""
    return {int(file.stem): json.loads(file.read_text()) for file in notes.glob("[0-9]*.json")}


def ended_by(code: int) -> str:
    """A process's exit code (negative: the signal) as the cause of a rank that left no note."""
    cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return f"{cause} (out of memory, if no one sent it)" if code == -signal.SIGKILL else cause


def _redirect(log: Path) -> None:
    """Send what this process prints, compiled code included, to ``log``."""
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # whatever comes of the log, the terminal is the launcher's
    os.dup2(nowhere, 2)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    os.close(nowhere)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

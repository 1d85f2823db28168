"""Entry point of a rank: redirects its output to its log, ties its life to its parent's, and runs the worker."""

import json
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

from hydraft.errors import Failure, FailureReason
from hydraft.launch.local import fork_server, hang
from hydraft.system import deferred_compile, files, streams
from hydraft.system.heartbeat import Heartbeat
from hydraft.system.imports import import_large
from hydraft.system.parent_death import die_with_parent
from hydraft.system.processes import ProcessId
from hydraft.system.signals import SignalListener
from hydraft.training.rendezvous import Rendezvous


def enter(folder: str, notes: str, terminal: str | None, environment: dict[str, str]) -> None:
    """Run this rank of the run in ``folder``; what libraries print is written to ``rank-N.log``.

    Args:
        folder: the run's folder.
        notes: a folder where the ranks leave process ids, heartbeats and failures for their launcher.
        terminal: the device or pipe that rank 0 prints to; None for the stdout that this process was started with.
        environment: variables that are set before anything else is done.
    """
    die_with_parent()
    os.environ.update(environment)
    rank = int(os.environ["RANK"])
    listener, heartbeat = SignalListener(), Heartbeat()
    listener.start(Path(notes), rank)
    process = ProcessId.of(os.getpid())
    files.write_text(Path(notes) / f"{rank}.pid", str(process))
    (Path(notes) / f".{rank}.done").touch()  # renamed at the end, which works on a full disk too
    output = terminal if rank == 0 else os.devnull
    screen = os.dup(1) if output is None else os.open(output, os.O_WRONLY | os.O_NOCTTY)
    streams.go_on()
    streams.messages_to(os.dup(2))
    try:
        _redirect(Path(folder) / f"rank-{rank}.log")
        heartbeat.start(Path(notes) / f"{rank}.beat")
        _check_gpu()
        deferred_compile.prepare()
        worker = import_large("hydraft.training.worker")
        worker.main(Path(folder), screen, listener, heartbeat, Rendezvous.read(Path(notes)))
        (Path(notes) / f".{rank}.done").rename(Path(notes) / f"{rank}.done")
    except BaseException as error:
        traceback.print_exc()  # to the log; the launcher prints the cause on the terminal
        if os.getpid() == process.pid:  # not a fork of this rank, which a library has made
            _note_failure(Path(notes), rank, error)
        if isinstance(error, SystemExit) and not error.code:  # not the end of a rank that is done
            raise SystemExit(1) from error
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _check_gpu() -> None:
    """Refuse to continue in a fork that cannot use its GPU: torch would not see it, or fail at some later point.

    Raises:
        RuntimeError: CUDA was initialised in the parent after the launcher had checked it (``elastic.start_method``).
    """
    why = fork_server.without_gpu() if os.environ.get("DS_ACCELERATOR") == "cuda" else None
    if why is not None:
        raise RuntimeError(f"this rank is a fork that cannot use a GPU: {why}")


@dataclass(frozen=True)
class FailureNote:
    """What a rank that raised leaves for its launcher, as ``N.json``."""

    failure: Failure
    time: float
    """When it raised, in seconds since the epoch."""
    ended_before: list[int]
    """Ranks that had ended without a note by then: their end is the cause, and this failure its effect."""


def _note_failure(notes: Path, rank: int, error: BaseException) -> None:
    failure = Failure.from_exception(error)
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        failure = exit_failure(int(error.code or 0))
        failure = replace(failure, message=f"{failure.message}, by sys.exit: the traceback is in its log")
    note = {"failure": failure.to_dict(), "time": time.time(), "ended_before": sorted(hang.gone(notes))}
    files.write_json(notes / f"{rank}.json", note)


def read_failures(notes: Path) -> dict[int, FailureNote]:
    """The notes of the ranks that raised, by rank."""
    found = {int(file.stem): json.loads(file.read_text()) for file in notes.glob("[0-9]*.json")}
    return {
        rank: FailureNote(**{**values, "failure": Failure.from_dict(values["failure"])})
        for rank, values in found.items()
    }


def exit_failure(code: int | None) -> Failure:
    """The failure of a process that left no note, from its exit code (negative: the signal that ended it; None: not known)."""
    if code is None:
        return Failure(FailureReason.killed, "ended without a report (killed, or it exited)")
    if code == 0:
        return Failure(FailureReason.killed, "exited with code 0 before the run was complete")
    if code > 0:
        return Failure(FailureReason.killed, f"exited with code {code}")
    message = f"killed by {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        message += " (out of memory, unless someone sent the signal)"
    return Failure(FailureReason.killed, message, signal=-code)


def _redirect(log: Path) -> None:
    """Redirect the output of this process, that of compiled code included, to ``log``."""
    sys.stdout.flush()
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # even if the log cannot be opened, the terminal belongs to the launcher
    os.dup2(nowhere, 2)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    os.close(nowhere)
    streams.guard(log.name)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

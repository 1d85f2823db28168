"""Which process runs a run or a sweep, and a signal to it: never to another process, nor to one of another user or host. No torch."""

import os
import re
import shlex
import signal
import socket
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydraft.board.process import HOLDER
from hydraft.board.started import Started
from hydraft.config.choices import Launcher
from hydraft.errors import ConfigError
from hydraft.sweep.holder import NAMES
from hydraft.system import files
from hydraft.system.processes import ProcessId

SIGNAL = signal.SIGTERM
"""The first one has a run finish its step and save, and a second one ends it at once (``launch/local/shutdown.py``)."""


@dataclass(frozen=True)
class Holder:
    """A process as a file in the folder names it."""

    file: Path
    host: str
    pid: int
    started: int | None


def holders(folder: Path, sweep: bool) -> list[Holder]:
    """The processes that files in the ``folder`` of a run or sweep name."""
    found = []
    for file in sorted(folder.glob(NAMES if sweep else HOLDER)):
        known: dict[str, Any] = files.read_object(file) if _is_own(file) else {}
        host, pid, started = known.get("host"), known.get("pid"), known.get("started")
        if isinstance(host, str) and type(pid) is int and pid > 1:
            found.append(Holder(file, host, pid, started if type(started) is int else None))
    return found


def _is_own(file: Path) -> bool:
    """Whether a file is one that this user has written: another's could name any process."""
    try:
        found = file.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & stat.S_IWOTH


def find(folder: Path, sweep: bool, started: Started | None, launcher: str | None = None) -> list[ProcessId]:
    """The processes of this host that run what is in a folder.

    Args:
        folder: of a run or a sweep.
        sweep: which of both.
        started: the board's own command that runs it.
        launcher: ``cluster.launcher`` of the run.

    Raises:
        ConfigError: nothing runs it, or it cannot be stopped from here; the message has the command that can.
    """
    if started is not None and started.runs:
        return [ProcessId.of(started.process.pid)]
    named = holders(folder, sweep)
    if not named:
        raise ConfigError(f"{folder}: no process of yours runs it{_of_slurm(folder, launcher)}")
    here = [one for one in named if one.host == socket.gethostname()]
    if not here:
        one = named[0]
        way = f"ssh {shlex.quote(one.host)} kill -TERM {one.pid}"
        raise ConfigError(
            f"{folder}: process {one.pid} on {one.host} runs it, which this board cannot reach: {way}{_of_slurm(folder, launcher)}"
        )
    found = [ProcessId(one.pid, one.started) for one in here if one.started is not None]
    if not found:
        raise ConfigError(
            f"{folder}: an earlier version started it, which did not write down when: if ps shows that process {here[0].pid} is it, "
            f"kill -TERM {here[0].pid}"
        )
    alive = [one for one in found if one.runs and _is_mine(one)]
    if not alive:
        raise ConfigError(f"{folder}: the process that ran it has ended")
    return alive


def _of_slurm(folder: Path, launcher: str | None) -> str:
    if launcher != Launcher.slurm.value and not (folder / "job.sbatch").exists():
        return ""
    try:
        found = re.search(r"--job-name=(\S+)", (folder / "job.sbatch").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    which = f"--name={shlex.quote(found[1])}" if found else "<job>"
    return f"; its Slurm job saves and ends with: scancel --batch --signal=TERM {which}"


def _is_mine(process: ProcessId) -> bool:
    """Whether a process belongs to this user."""
    try:
        return Path(f"/proc/{process.pid}").stat().st_uid == os.geteuid()
    except OSError:
        return not Path("/proc/self").exists()  # the kernel refuses a signal to another user's process


class Stops:
    """The runs and sweeps that the board was asked to stop."""

    def __init__(self) -> None:
        self._asked: dict[str, tuple[list[ProcessId], float, bool]] = {}

    def stop(self, name: str, processes: list[ProcessId], now: bool) -> None:
        """Signal the processes of a run or sweep. The first time they save and end; with ``now`` at once.

        Raises:
            ConfigError: they were asked before, and the request is not to stop them at once.
        """
        known = self.asked().get(name)
        if known is not None and not now:
            raise ConfigError(f"{name}: is being stopped; to end it at once, without saving, stop it now")
        for one in processes:
            one.signal(SIGNAL)
            if now and known is None:  # its first signal lets it save
                time.sleep(1.1)  # a repetition within a second is taken for the same (REPEAT_SECONDS)
                one.signal(SIGNAL)
        self._asked[name] = processes, time.time(), now

    def asked(self) -> dict[str, dict[str, Any]]:
        """What is being stopped: since when, and whether at once."""
        self._asked = {name: asked for name, asked in self._asked.items() if any(one.runs for one in asked[0])}
        return {name: {"since": since, "now": now} for name, (_, since, now) in self._asked.items()}

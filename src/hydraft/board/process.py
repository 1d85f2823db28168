"""Whether the process that runs a run is still there. No torch."""

import socket
from pathlib import Path
from typing import Any

import psutil

from hydraft.sweep.holder import NAMES as SWEEP_HOLDERS
from hydraft.system import files

HOLDER = ".holder.json"
"""Of a run."""


def holder(folder: Path, name: str = HOLDER) -> dict[str, Any] | None:
    """Host and process id of the process that holds a run's lock, as it wrote them; None if nothing holds it.

    The lock itself is not tried: the attempt alone could refuse a run that begins at that moment.
    """
    file = folder / name
    known = files.read_object(file)
    if not isinstance(known.get("host"), str) or type(known.get("pid")) is not int:
        return None
    try:
        written = file.stat().st_mtime
    except OSError:
        return None
    return {"host": known["host"], "pid": known["pid"], "alive": is_alive(known["host"], known["pid"], written)}


def runs_sweep(folder: Path) -> bool:
    """Whether a process of this host runs the sweep in ``folder``, also while its jobs have not begun."""
    found = [holder(folder, file.name) for file in folder.glob(SWEEP_HOLDERS)]
    return any(one is not None and one["alive"] for one in found)


def is_alive(host: str, pid: int, since: float) -> bool | None:
    """Whether a process that was there at the time ``since`` still is; None on another host, where this cannot be known."""
    if host != socket.gethostname():
        return None
    try:
        process = psutil.Process(pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= since + 2)
    except psutil.AccessDenied:
        return True
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False

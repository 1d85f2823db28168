"""Whether the process that runs a run is still there. No torch."""

import socket
from pathlib import Path
from typing import Any

import psutil

from hydraft.system import files

HOLDER = ".holder.json"


def holder(folder: Path) -> dict[str, Any] | None:
    """Host and process id of the process that holds a run's lock, as it wrote them; None if nothing holds it.

    The lock itself is not tried: the attempt alone could refuse a run that begins at that moment.
    """
    file = folder / HOLDER
    known = files.read_object(file)
    if not isinstance(known.get("host"), str) or type(known.get("pid")) is not int:
        return None
    try:
        written = file.stat().st_mtime
    except OSError:
        return None
    return {"host": known["host"], "pid": known["pid"], "alive": is_alive(known["host"], known["pid"], written)}


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

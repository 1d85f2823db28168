"""Ends the processes that a test process started, once that process has ended, for whatever reason.

A test process starts ``python tests/support/reaper.py PID MARK`` and sets ``HYDRAFT_TESTS=MARK`` in its environment,
which all its descendants inherit. When PID ends, even by SIGKILL, every process with that mark is killed, and its
network namespaces are deleted. The marks of pytest-xdist workers start with that of their controller.
"""

import os
import secrets
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

VARIABLE = "HYDRAFT_TESTS"


def start(worker: bool) -> None:
    """Start a reaper for this process; ``worker`` means that it is a pytest-xdist worker."""
    if not hasattr(os, "pidfd_open"):  # only on Linux
        return
    mark = secrets.token_hex(4)
    if worker:
        mark = f"{os.environ[VARIABLE]}.{mark}"
    # without the variable, or another reaper would end it
    clean = {name: value for name, value in os.environ.items() if name != VARIABLE}
    os.environ[VARIABLE] = mark
    command = [sys.executable, "-S", "-E", __file__, str(os.getpid()), mark]
    null = subprocess.DEVNULL
    subprocess.run(command, env=clean, stdin=null, stdout=null, stderr=null, start_new_session=True, check=True)


def marked(mark: str) -> list[int]:
    """The processes with that mark, or with one that starts with it. A process that has ended has no environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for variable in (folder / "environ").read_bytes().split(b"\0"):
                name, _, value = variable.decode(errors="replace").partition("=")
                if name == VARIABLE and (value == mark or value.startswith(f"{mark}.")):
                    found.append(int(folder.name))
    return found


def _steps(pids: list[int]) -> list[int]:
    """The slurmstepd parents of ``pids``: a slurmstepd overwrites its environment and is not a child of its slurmd."""
    found = []
    for pid in pids:
        with suppress(OSError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd"):
                found.append(parent)
    return found


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _namespaces(pid: int) -> list[str]:
    """Network namespaces that process ``pid`` created (see lab.py)."""
    folder = Path("/run/netns")
    return [space.name for space in folder.glob(f"hydraft-{pid}-*")] if folder.exists() else []


def main(pid: int, mark: str) -> None:
    """Wait until ``pid`` has ended, then end everything that it started."""
    process = os.pidfd_open(pid)
    if os.fork():  # detached, so that the process under test has no unknown child
        os._exit(0)
    select.select([process], [], [])
    for space in _namespaces(pid):
        inside = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False).stdout
        _kill([int(number) for number in inside.split()])
        subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)
    found_none = 0
    while found_none < 3:  # a process that is being forked has no environment yet
        pids = marked(mark)
        pids += _steps(pids)
        found_none = 0 if pids else found_none + 1
        _kill(pids)
        time.sleep(0.1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

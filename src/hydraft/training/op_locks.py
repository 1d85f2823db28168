"""Locks of builds that end with their holder, for those that already wait too. No torch at module level.

Before 2.14, torch protects a build with a file named ``lock``, which stays when the build is killed, and waits for it without a timeout. Ours
names its holder and is locked by the kernel until the holder ends.
"""

import fcntl
import getpass
import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydraft.system import mounts
from hydraft.system.processes import ProcessId

SAY_SECONDS = 15.0
"""How often a wait is told."""

Say = Callable[[str], object]


def sign(handle: int, lock: Path) -> None:
    """Name this process as the holder of a lock that it has just made; ``handle`` is open until it releases it."""
    with suppress(OSError):  # a file system without such locks: the process id tells
        fcntl.flock(handle, fcntl.LOCK_EX)
    with suppress(OSError):  # a full disk: the lock is held all the same
        lock.write_text(describe_self())


def describe_self() -> str:
    """This process as the holder of a lock."""
    me = ProcessId.of(os.getpid())
    return json.dumps({"host": socket.gethostname(), "user": _user(), "pid": me.pid, "started": me.started})


def clear(lock: Path) -> bool:
    """Remove ``lock`` if its holder has ended; of several processes that try, one returns True."""
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
        if not os.path.samestat(os.fstat(handle), lock.stat()) or not _has_ended(lock, handle):
            return False
        lock.unlink()
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def _has_ended(lock: Path, handle: int) -> bool:
    """Whether the holder of a lock, which ``handle`` has open and locked, has ended for certain."""
    known = read(lock)
    if (
        known is None
    ):  # made by torch alone: only this machine's processes can be asked, and only by their user or by root
        ours = os.geteuid() in (0, os.fstat(handle).st_uid)
        return ours and not mounts.is_network(lock) and not _is_used(lock, handle)
    if known.get("host") != socket.gethostname():
        return False
    return not _runs_here(known) and not _is_used(lock, handle)


def _runs_here(known: dict[str, Any]) -> bool:
    """Whether a holder, as it has described itself, is a process of this machine that has not ended."""
    here = known.get("host") == socket.gethostname()
    return here and ProcessId(known["pid"], known.get("started")).runs


def read(lock: Path) -> dict[str, Any] | None:
    """The holder of a lock, as it has described itself; None if it has not."""
    try:
        known = json.loads(lock.read_text(errors="replace"))
        return known if isinstance(known, dict) and isinstance(known.get("pid"), int) else None
    except (OSError, ValueError):
        return None


def holder(lock: Path) -> str:
    """Who holds a lock, for messages."""
    known = read(lock)
    if known is None:
        try:
            return f"a process of user {lock.owner()}"
        except (OSError, KeyError):
            return "another process"
    return f"process {known['pid']} of user {known.get('user')} on {known.get('host')}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.geteuid())


def _is_used(lock: Path, handle: int) -> bool:
    """Whether a process of this machine has ``lock`` open (torch keeps the descriptor while it builds), or builds in its folder.

    Our own ``handle`` does not count.
    """
    target, own = lock.resolve(), f"/proc/{os.getpid()}/fd/{handle}"
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another user
            if (process / "cwd").readlink() == target.parent:  # of ninja, which may outlive the process that started it
                return True
            if any(Path(entry.path).readlink() == target for entry in os.scandir(process / "fd") if entry.path != own):
                return True
    return False


def install(say: Say) -> None:
    """Have torch's builds in this process wait for holders that live, and for no others; ``say`` is told who that is."""
    from torch.utils import cpp_extension

    torchs: Any = vars(cpp_extension).get("FileBaton")
    if torchs is None:  # torch 2.14 has the kernel lock a file in its place
        return
    if getattr(torchs, "say", None) is not None:
        torchs.say = staticmethod(say)
        return

    class Baton(torchs):  # type: ignore[misc]
        """torch's lock, which names its holder; waits until it is free or built."""

        def try_acquire(self) -> bool:
            lock, known = Path(self.lock_file_path), None
            began, told = time.monotonic(), float("-inf")
            while not super().try_acquire():
                known = read(lock) or known
                if not clear(lock) and lock.exists():
                    now = time.monotonic()
                    if now - told > SAY_SECONDS:
                        told = now
                        Baton.say(waiting(lock, now - began))
                    time.sleep(self.wait_seconds)
                if known is not None and not lock.exists() and _runs_here(known):
                    return False  # it has built, and gone on
            sign(self.fd, lock)
            if not lock.with_name(f"{lock.parent.name}.so").exists():
                Baton.say(f"compiling {lock.parent.name}")
            return True

    Baton.say = staticmethod(say)
    vars(cpp_extension)["FileBaton"] = Baton


def waiting(lock: Path, seconds: float) -> str:
    """A line about a wait for a lock."""
    remedy = f"if it is gone, remove {lock}"
    return f"waiting {seconds:.0f} s for {holder(lock)}, which builds {lock.parent.name} ({remedy})"

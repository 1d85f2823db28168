"""What the processes of a run listen on, and what another user of the machine can do with it."""

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import family

NOBODY = 65534
TABLES = {"tcp": socket.AF_INET, "tcp6": socket.AF_INET6, "udp": socket.AF_INET, "udp6": socket.AF_INET6,
          "udplite": socket.AF_INET, "raw": socket.AF_INET, "raw6": socket.AF_INET6}  # fmt: skip
LISTEN, UNCONNECTED = "0A", "07"
"""States in the kernel's tables: of a TCP socket that listens, and of a UDP socket that receives from anyone."""
ACCEPTS = 1 << 16
"""The flag of a unix socket that listens (__SO_ACCEPTCON)."""


@dataclass(frozen=True)
class Listening:
    """A socket at which a process can be reached."""

    pid: int
    kind: str
    """``tcp``, ``tcp6``, ``udp``, ``unix``, or another table of the kernel's."""
    address: str
    """An IP address, or the path of a unix socket; ``@…`` is an abstract one, which has no owner, ``""`` has no name."""
    port: int = 0


def listening(root: int) -> list[Listening]:
    """Every socket at which the process ``root``, or one below it, can be reached, by whatever protocol."""
    return [found for process in family(root) for found in _of_process(process.pid)]


def _of_process(pid: int) -> list[Listening]:
    try:
        targets = [str(handle.readlink()) for handle in Path(f"/proc/{pid}/fd").iterdir()]
        inodes = {target[8:-1] for target in targets if target.startswith("socket:[")}
        tables = {name: Path(f"/proc/{pid}/net/{name}") for name in (*TABLES, "unix", "packet")}
        lines = {name: file.read_text().splitlines()[1:] for name, file in tables.items() if file.exists()}
    except OSError:  # it has just ended
        return []
    found = []
    for name, family_of in TABLES.items():
        for line in lines.get(name, ()):
            fields = line.split()
            open_to = (LISTEN,) if name.startswith("tcp") else (UNCONNECTED,)
            if fields[9] in inodes and fields[3] in open_to:
                address, port = fields[1].split(":")
                found.append(Listening(pid, name, _ip(address, family_of), int(port, 16)))
    for line in lines.get("unix", ()):
        fields = line.split(maxsplit=7)
        if fields[6] in inodes and int(fields[3], 16) & ACCEPTS:
            found.append(Listening(pid, "unix", fields[7] if len(fields) > 7 else ""))
    found += [Listening(pid, "packet", "") for line in lines.get("packet", ()) if line.split()[8] in inodes]
    return found


def _ip(raw: str, kind: socket.AddressFamily) -> str:
    """An address of the kernel's tables, which are in words of this machine's byte order."""
    words = [bytes.fromhex(raw[start : start + 8])[::-1] for start in range(0, len(raw), 8)]
    return socket.inet_ntop(kind, b"".join(words))


def closed_to_others(path: str) -> bool:
    """Whether a unix socket has a name in a folder that only this user can enter."""
    if not path.startswith("/"):
        return False
    return any(
        folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o077 for folder in Path(path).parents
    )


def as_stranger(action: Callable[[], Any]) -> Any:
    """What ``action`` returns, as JSON, in a fork of this process that belongs to the user nobody."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(writing, json.dumps(action()).encode())
        except BaseException as error:
            os.write(writing, json.dumps(f"{type(error).__name__}: {error}").encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        raw = answer.read()
    os.waitpid(child, 0)
    return json.loads(raw)

"""Who is connected to the ports of gloo, which asks nobody for a proof: only this user's processes, where that can be known.

A rank listens while a group of gloo is created. Then every connection of the group exists, and its port is closed: a filter of the
kernel drops what arrives there. Connections that another user of this machine made meanwhile are ended. If one of them had taken the
place of a rank, the next collective fails; nothing has been exchanged with it.
"""

import ctypes
import os
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed import distributed_c10d as c10d

SO_ATTACH_FILTER = 26
DROP = struct.pack("HBBI", 0x06, 0, 0, 0)
"""An instruction for the kernel's packet filter (BPF_RET | BPF_K): keep 0 bytes of a packet."""

LISTEN = "0A"
"""The state of a socket that listens, in the kernel's tables."""

DRAIN_SECONDS = 2.0
"""How long gloo may take to accept the connections that had arrived."""


def guard_gloo(only_here: bool) -> None:
    """From now on, this process guards the connections of every group of gloo that it creates.

    Args:
        only_here: whether all ranks are on this machine, and connections from another are ended too.
    """
    os.environ["TORCH_GLOO_LAZY_INIT"] = "0"  # connections are made while a group is created, not later
    plain: Any = c10d.ProcessGroupGloo

    class GuardedGloo(plain):  # type: ignore[misc]
        """A group of gloo that nobody can connect to once it exists."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            before = set(_sockets())
            super().__init__(*arguments, **named)
            for line in guard([pair for pair in _sockets() if pair not in before], only_here):
                print(line, file=sys.stderr)

    c10d.ProcessGroupGloo = GuardedGloo  # type: ignore[misc]


def guard(sockets: Iterable[tuple[int, str]], only_here: bool) -> list[str]:
    """Close the ports among ``sockets``, and end the connections to them that are not this user's.

    Args:
        sockets: file descriptor and inode of each.
        only_here: whether connections from other machines are ended too.

    Returns:
        A line about each connection that has been ended.
    """
    rows = _rows()
    listening = {row.inode: row.here for row in rows if row.state == LISTEN}
    ports = set()
    for handle, inode in sockets:
        if inode in listening:
            _drop_packets(handle)
            ports.add(listening[inode])
    deadline = time.monotonic() + DRAIN_SECONDS
    while any(row.waiting for row in _rows() if row.here in ports) and time.monotonic() < deadline:
        time.sleep(0.005)
    found = []
    for handle, row in _strangers(ports, only_here):
        with suppress(OSError), socket.socket(fileno=os.dup(handle)) as connection:
            connection.shutdown(socket.SHUT_RDWR)
        whose = "another machine's" if row is None else f"of user {row.user}"
        found.append(f"a connection to this rank's port for collectives, {whose}, has been ended")
    return found


@dataclass(frozen=True)
class _Row:
    """A TCP socket in the kernel's tables; addresses as they are written there."""

    here: str
    there: str
    state: str
    waiting: bool
    """Whether it listens, and connections have arrived that the process has not accepted."""
    user: int
    inode: str
    """``0`` if no process holds it any more."""


def _rows() -> list[_Row]:
    """The TCP sockets of this machine."""
    found = []
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                waiting = fields[3] == LISTEN and int(fields[4].partition(":")[2], 16) > 0
                found.append(_Row(fields[1], fields[2], fields[3], waiting, int(fields[7]), fields[9]))
    return found


def _strangers(ports: set[str], only_here: bool) -> Iterator[tuple[int, _Row | None]]:
    """The connections to ``ports`` whose other end is no process of this user's: file descriptor, and the other end if it is here."""
    rows = _rows()
    mine = {row.inode: row for row in rows if row.here in ports and row.state != LISTEN}
    ends = {(row.here, row.there): row for row in rows}
    for handle, inode in _sockets():
        if inode in mine:
            other = ends.get((mine[inode].there, mine[inode].here))
            if only_here if other is None else other.inode == "0" or other.user != os.geteuid():
                yield handle, other


def _drop_packets(handle: int) -> None:
    """Have the kernel drop what arrives at a listening socket; connections that exist are not affected."""
    program = ctypes.create_string_buffer(DROP, len(DROP))
    with suppress(OSError), socket.socket(fileno=os.dup(handle)) as listener:  # not in every sandbox
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program)))


def _sockets() -> Iterator[tuple[int, str]]:
    """File descriptor and inode of each socket of this process."""
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            target = str(handle.readlink())
            if target.startswith("socket:["):
                yield int(handle.name), target[8:-1]

"""Nobody connects to a port of gloo once its group exists, and another user's connection from before is ended."""

import encodings.idna  # noqa: F401  (another user cannot read Python's files)
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from forks import run_forks
from hydraft.training import peers

NOBODY = 65534


def inode(connection: socket.socket) -> str:
    return str(Path(f"/proc/self/fd/{connection.fileno()}").readlink())[8:-1]


@pytest.fixture
def port() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def connected_as(user: int, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection that a process of that user made."""
    before = os.geteuid()
    os.seteuid(user)
    try:
        theirs = socket.create_connection(listener.getsockname(), timeout=10)
    finally:
        os.seteuid(before)
    ours, _ = listener.accept()
    ours.settimeout(10)
    return ours, theirs


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
@pytest.mark.parametrize("user", [NOBODY, 0], ids=["another user", "this user"])
def test_only_this_users_connections_stay(user: int, port: socket.socket) -> None:
    ours, theirs = connected_as(user, port)
    found = peers.guard([(port.fileno(), inode(port))], only_here=True)
    if user == NOBODY:
        assert found == ["a connection to this rank's port for collectives, of user 65534, has been ended"]
        assert (ours.recv(1), theirs.recv(1)) == (b"", b"")
    else:
        assert found == []
        theirs.sendall(b"x" * 100_000)
        ours.sendall(b"y")
        assert (ours.recv(1), theirs.recv(1)) == (b"x", b"y")
    for end in (ours, theirs):
        end.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_connection_whose_other_end_is_gone_is_ended(port: socket.socket) -> None:
    """What it has sent may still be unread."""
    ours, theirs = connected_as(NOBODY, port)
    theirs.sendall(b"sent")
    theirs.close()
    assert len(peers.guard([(port.fileno(), inode(port))], only_here=True)) == 1
    ours.close()


def test_a_closed_port_answers_nobody(port: socket.socket) -> None:
    peers.guard([(port.fileno(), inode(port))], only_here=True)
    with pytest.raises(TimeoutError):
        socket.create_connection(port.getsockname(), timeout=0.2)


def test_connections_to_other_ports_stay(port: socket.socket) -> None:
    """Those of a dashboard, for example."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        theirs = socket.create_connection(other.getsockname(), timeout=10)
        ours, _ = other.accept()
        assert peers.guard([(port.fileno(), inode(port))], only_here=True) == []
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"
        for end in (ours, theirs):
            end.close()


def test_groups_of_gloo_are_guarded(tmp_path: Path) -> None:
    """Also one that is created later, as DeepSpeed does; collectives work in both."""
    import torch
    import torch.distributed as dist

    def joined(rank: int) -> list[float]:
        dist.destroy_process_group()
        peers.guard_gloo(only_here=True)
        store = dist.FileStore(str(tmp_path / "guarded"), 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        groups, open_ports, sums = [None, dist.new_group([0, 1])], 0, []
        listening = {row.inode: row.here for row in peers._rows() if row.state == peers.LISTEN}
        mine = {listening[inode] for _, inode in peers._sockets() if inode in listening}
        for here in mine:
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(here.rpartition(":")[2], 16)), 0.2):
                open_ports += 1
        for group in groups:
            value = torch.ones(1000) * (rank + 1)
            dist.all_reduce(value, group=group)
            sums.append(float(value.sum()))
        return [len(mine), open_ports, *sums]

    assert run_forks(joined, tmp_path) == [[2, 0, 3000.0, 3000.0]] * 2

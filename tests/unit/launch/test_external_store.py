"""Ranks that another launcher started do not follow what someone else has written to their store."""

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from external import free_port
from hydraft.launch.external import store
from hydraft.launch.external.environment import World
from hydraft.launch.external.store import RendezvousStore, StoreLost

KEY = "hydraft/0/instructions"


@pytest.fixture
def ranks() -> Iterator[list[RendezvousStore]]:
    """Both ranks of a machine, at a store that rank 0 hosts."""
    world = World("RANK", 0, 2, 0, 2, "localhost", free_port())
    found = [RendezvousStore(world), RendezvousStore(replace(world, rank=1, local_rank=1))]
    yield found
    found[1].leave()
    found[0].close(0)


def write(ranks: list[RendezvousStore], value: object) -> None:
    """What anyone can do who reaches the store."""
    stranger = TCPStore("localhost", ranks[0].world.port, timeout=timedelta(seconds=10), wait_for_workers=False)
    stranger.set(KEY, value if isinstance(value, str) else json.dumps(value))


def test_instructions_are_in_a_private_folder_that_goes_with_the_run(ranks: list[RendezvousStore]) -> None:
    assert ranks[1].instructions() is None
    ranks[0].publish(folder="/run", config="a: 1")
    assert ranks[1].instructions() == {"folder": "/run", "config": "a: 1"}
    private = ranks[0].private
    assert private is not None
    assert private.stat().st_mode & 0o077 == 0
    assert ranks[0].rendezvous() == ranks[1].rendezvous()
    assert ranks[1].rendezvous().file == str(private / "store")
    ranks[1].leave()
    ranks[0].close(3)
    assert (ranks[1].exit_code(), private.exists()) == (3, False)
    assert ranks[1].instructions() == {"exit": 3}, "a rank that comes late still ends with that code"


def test_a_config_in_the_store_is_not_followed(ranks: list[RendezvousStore], tmp_path: Path) -> None:
    ranks[0].publish(folder="/run", config="a: 1")
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o755)
    link = tmp_path / "link"
    link.symlink_to(ranks[0].private or "")
    for wrong in ({"config": "model: {trust_remote_code: true}"}, {"folder": str(open_to_all)}, {"folder": str(link)}):
        write(ranks, wrong)
        with pytest.raises(StoreLost):
            ranks[1].instructions()


def test_the_instructions_of_another_run_are_not_followed(ranks: list[RendezvousStore]) -> None:
    with_other_port = RendezvousStore(World("RANK", 0, 2, 0, 2, "localhost", free_port()))
    with_other_port.publish(folder="/other")
    write(ranks, {"folder": str(with_other_port.private)})
    with pytest.raises(StoreLost, match="another run's"):
        ranks[1].instructions()
    with_other_port.close(0, seconds=0)


@pytest.mark.parametrize("text", ["\x80\x04.", "[1]", "{", "[" * 100_000], ids=["pickle", "list", "torn", "deep"])
def test_what_is_no_message_of_a_rank_is_not_read(text: str, ranks: list[RendezvousStore]) -> None:
    write(ranks, text)
    with pytest.raises(StoreLost):
        ranks[1].instructions()


def test_a_store_for_one_machine_listens_on_loopback(ranks: list[RendezvousStore]) -> None:
    port = ranks[0].world.port
    here = [c.laddr.ip for c in psutil.Process().net_connections() if c.status == "LISTEN" and c.laddr.port == port]
    assert here == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("name", "found", "expected"),
    [
        ("localhost", ["::1", "127.0.0.1"], "127.0.0.1"),
        ("10.1.2.3", ["10.1.2.3"], "10.1.2.3"),
        ("node-1", ["10.1.2.3"], "10.1.2.3"),
        ("node-1", ["127.0.1.1"], ""),
        ("node-1", ["10.1.2.3", "10.9.9.9"], ""),
        ("node-1", ["127.0.1.1", "10.1.2.3"], ""),
    ],
    ids=["loopback", "address", "name", "Debian's own name", "two networks", "own name and network"],
)
def test_between_machines_it_listens_at_the_address_that_is_certain(
    name: str, found: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in found]
    monkeypatch.setattr(store.socket, "getaddrinfo", lambda *_, **__: answers)
    assert store._own_address(name) == expected

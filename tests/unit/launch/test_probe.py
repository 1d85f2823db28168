"""The first host's probe server answers the hosts of its run; a stranger learns nothing from it."""

import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from threading import Thread

import pytest

from hydraft.launch.remote import probe

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def server() -> Iterator[probe.ProbeServer]:
    with closing(probe.ProbeServer("127.0.0.1", 0, TOKEN)) as started:
        yield started


def heard(port: int, sent: bytes) -> bytes:
    """All that the server sends to a caller that sends this."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        received = connection.recv(4096)
        with suppress(OSError):  # the server has ended the connection
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(4096):
                received += more
        return received


def test_a_host_of_the_run_is_answered_and_the_store_listens_where_it_arrived(server: probe.ProbeServer) -> None:
    assert probe.reaches("127.0.0.1", server.port, TOKEN)
    assert server.listen_at("127.0.0.1") == "127.0.0.1"
    assert server.listen_at("10.0.0.1") == ""


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.0\r\n\r\n", b"\0" * 300, TOKEN.encode() * 9])
def test_a_stranger_gets_a_nonce_and_nothing_else(sent: bytes, server: probe.ProbeServer) -> None:
    first, second = heard(server.port, sent), heard(server.port, sent)
    assert (len(first), len(second)) == (probe.NONCE, probe.NONCE)
    assert first != second
    assert TOKEN.encode() not in first + second
    assert not server.arrivals


def test_another_token_is_refused_on_either_side(server: probe.ProbeServer) -> None:
    assert not probe.reaches("127.0.0.1", server.port, TOKEN[::-1])
    assert not server.arrivals


def test_what_was_recorded_of_one_connection_does_not_open_another(server: probe.ProbeServer) -> None:
    """Nor does what a caller says make it take a stranger for the server."""
    seen: list[bytes] = []

    def between(listener: socket.socket) -> None:
        caller, _ = listener.accept()
        with caller, socket.create_connection(("127.0.0.1", server.port)) as real:
            caller.sendall(probe._receive(real, probe.NONCE))
            seen.append(caller.recv(4096))
            caller.sendall(seen[0][probe.NONCE : 2 * probe.NONCE])  # its own MAC in place of the server's

    with socket.create_server(("127.0.0.1", 0)) as listener:
        relay = Thread(target=between, args=(listener,))
        relay.start()
        assert not probe.reaches("127.0.0.1", listener.getsockname()[1], TOKEN)
        relay.join()
    assert TOKEN.encode() not in seen[0]
    assert len(heard(server.port, seen[0])) == probe.NONCE
    assert not server.arrivals


def test_silent_callers_hold_nobody_up(server: probe.ProbeServer) -> None:
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    assert probe.reaches("127.0.0.1", server.port, TOKEN)
    for connection in silent:
        connection.close()


def test_the_port_is_free_after_close() -> None:
    with closing(probe.ProbeServer("", 0, TOKEN)) as started:
        pass
    socket.create_server(("", started.port)).close()


@pytest.mark.parametrize(
    ("hosts", "address", "expected"),
    [
        (["localhost", "localhost"], None, "127.0.0.1"),
        (["a", "b"], None, ""),
        (["a", "b"], "127.0.0.1", "127.0.0.1"),
        (["a", "b"], "192.0.2.1", ""),
        (["a", "b"], "a.example", ""),
    ],
    ids=["one machine", "any", "own address", "an address outside", "a name"],
)
def test_the_first_host_listens_at_no_more_addresses_than_needed(
    hosts: list[str], address: str | None, expected: str
) -> None:
    assert probe.first_at(hosts, address) == expected

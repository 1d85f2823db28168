"""The address of the rendezvous: a free port of the first host, at an address that all other hosts reach.

A name may resolve to another machine on another host, and two hosts may have the same address (on a bridge of containers, for
example). So the first host runs a small server, and the others try its addresses. Both sides prove that they know the run's token,
which never crosses the network: the server sends a nonce, the caller answers with a nonce of its own, the address that it used and a
MAC of these under the token, and the server responds with another MAC.
"""

import hmac
import os
import secrets
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil

from hydraft.launch.local.interface import LOOPBACK

PROBE_SECONDS = 5.0

NONCE = 32
"""Bytes of a nonce, and of a MAC (HMAC-SHA256)."""

LONGEST = 255
"""Bytes of an address."""


class ProbeServer:
    """Answers, on a port of the first host, those who know the token, until the ranks use that port."""

    def __init__(self, address: str, port: int, token: str) -> None:
        """Listen on ``port``, or on any free one for 0, at ``address``; an empty one means all addresses.

        Raises:
            OSError: the port is in use, or not allowed for this user.
        """
        self.token = token
        self.socket = socket.create_server((address, port), backlog=1024)
        self.port: int = self.socket.getsockname()[1]
        self.arrivals: dict[str, set[str]] = {}
        """By address that a host of the run used: the addresses of this machine at which it arrived."""
        self.open = True
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self.socket.accept()
            except OSError:
                if not self.open:
                    return
                continue
            if self.open:
                threading.Thread(target=self._answer, args=(caller,), daemon=True).start()

    def _answer(self, caller: socket.socket) -> None:
        """Answer a caller that knows the token; any other learns nothing, and holds nobody up."""
        with caller, suppress(OSError):
            caller.settimeout(PROBE_SECONDS)
            ours = secrets.token_bytes(NONCE)
            caller.sendall(ours)
            theirs, proof, size = _receive(caller, NONCE), _receive(caller, NONCE), _receive(caller, 1)
            address = _receive(caller, size[0])
            if not hmac.compare_digest(proof, _mac(self.token, b"caller", ours, theirs, address)):
                return
            self.arrivals.setdefault(address.decode(errors="replace"), set()).add(caller.getsockname()[0])
            caller.sendall(_mac(self.token, b"server", ours, theirs, address))

    def listen_at(self, address: str) -> str:
        """The address of this machine at which those arrive who use ``address``; empty, for all, if it is not known."""
        found = self.arrivals.get(address, set())
        return next(iter(found)) if len(found) == 1 else ""

    def close(self) -> None:
        """Free the port."""
        self.open = False
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # close() alone would leave accept() waiting on it
        self.socket.close()


def reaches(address: str, port: int, token: str) -> bool:
    """Whether the probe server with this ``token`` is found at ``address`` from here."""
    name = address.encode()[:LONGEST]
    try:
        with socket.create_connection((address, port), timeout=PROBE_SECONDS) as connection:
            theirs, ours = _receive(connection, NONCE), secrets.token_bytes(NONCE)
            connection.sendall(ours + _mac(token, b"caller", theirs, ours, name) + bytes([len(name)]) + name)
            return hmac.compare_digest(_receive(connection, NONCE), _mac(token, b"server", theirs, ours, name))
    except OSError:
        return False


def reached(candidates: list[str], port: int, token: str) -> list[str]:
    """Those of the ``candidates`` at which ``reaches`` finds the probe server. All are tried at once: an address without a route
    takes all of ``PROBE_SECONDS``, and a host may have many."""
    with ThreadPoolExecutor(max(1, len(candidates))) as pool:
        found = list(pool.map(lambda address: reaches(address, port, token), candidates))
    return [address for address, reachable in zip(candidates, found, strict=True) if reachable]


def _mac(token: str, side: bytes, server: bytes, caller: bytes, address: bytes) -> bytes:
    """What only ``side`` of this connection, with this token, can say; the parts but the last have fixed sizes."""
    return hmac.digest(token.encode(), side + server + caller + address, "sha256")


def _receive(connection: socket.socket, size: int) -> bytes:
    """Exactly ``size`` bytes.

    Raises:
        OSError: the other side has sent fewer.
    """
    received = b""
    while len(received) < size:
        more = connection.recv(size - len(received))
        if not more:
            raise ConnectionError("the other side has closed the connection")
        received += more
    return received


def addresses() -> list[str]:
    """Addresses of this host, best first: the one that ssh connected to, then those of its interfaces (IPv4), loopback last."""
    connected_to = os.environ.get("SSH_CONNECTION", "").split()[2:3]
    own = [a.address for _, found in sorted(psutil.net_if_addrs().items()) for a in found if a.family == socket.AF_INET]
    own.sort(key=lambda address: address.startswith("127."))
    return list(dict.fromkeys([*connected_to, *own]))


def first_at(hosts: list[str], address: str | None) -> str:
    """The address at which the first of ``hosts`` has to listen for the others; empty for all.

    Args:
        hosts: of the run; one that is listed several times is this machine, without any other.
        address: ``cluster.address``.
    """
    if len(set(hosts)) == 1:
        return LOOPBACK.partition(":")[0]
    return address if address is not None and address in addresses() else ""

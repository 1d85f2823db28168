"""Address and port of the rendezvous: a free port of the first host, at an address that all other hosts reach.

A name may resolve to another machine on another host, and two hosts may have the same address (on a bridge of containers, for
example). So the first host runs a small server that sends the run's token, and the others try its addresses.
"""

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil

PROBE_SECONDS = 5.0

BACKLOG = 1024
"""Connections that wait for the probe server: every host tries every address at once."""

NCCL = "NCCL_SOCKET_IFNAME"


class ProbeServer:
    """Sends the token to whoever connects to a port of the first host, until the ranks use that port."""

    def __init__(self, port: int, token: str) -> None:
        """Listen on ``port``, or on any free one for 0.

        Raises:
            OSError: the port is in use, or not allowed for this user.
        """
        self.token = token
        self.socket = socket.create_server(("", port), backlog=BACKLOG)
        self.port: int = self.socket.getsockname()[1]
        self.open = True
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        while True:
            try:
                caller, _ = self.socket.accept()
            except OSError:
                return
            with caller:
                if self.open:
                    caller.sendall(self.token.encode())

    def close(self) -> None:
        """Free the port."""
        self.open = False
        self.socket.shutdown(socket.SHUT_RDWR)  # close() alone would leave accept() waiting on it
        self.socket.close()


def reaches(address: str, port: int, token: str) -> bool:
    """Whether the probe server with this ``token`` is found at ``address`` from here."""
    try:
        with socket.create_connection((address, port), timeout=PROBE_SECONDS) as connection:
            received = b""
            while len(received) < len(token) and (more := connection.recv(len(token))):
                received += more
            return received == token.encode()
    except OSError:
        return False


def reached(candidates: list[str], port: int, token: str) -> list[str]:
    """Those of the ``candidates`` at which ``reaches`` finds the probe server. All are tried at once: an address without a route
    takes all of ``PROBE_SECONDS``, and a host may have many."""
    with ThreadPoolExecutor(max(1, len(candidates))) as pool:
        found = list(pool.map(lambda address: reaches(address, port, token), candidates))
    return [address for address, reachable in zip(candidates, found, strict=True) if reachable]


def addresses() -> list[str]:
    """Addresses of this host, best first: the one that ssh connected to, then those of its interfaces (IPv4), loopback last."""
    connected_to = os.environ.get("SSH_CONNECTION", "").split()[2:3]
    own = [a.address for _, found in sorted(psutil.net_if_addrs().items()) for a in found if a.family == socket.AF_INET]
    own.sort(key=lambda address: address.startswith("127."))
    return list(dict.fromkeys([*connected_to, *own]))


def environment(endpoint: str) -> dict[str, str]:
    """Environment variables with the interface that leads to ``endpoint``, for gloo and NCCL, unless they are set already.

    By default gloo uses the interface of this host's name, which on many systems is loopback; NCCL uses any, which may be a bridge
    of containers or a VPN. NCCL connects over this interface; its other settings determine where data is sent.
    """
    interface = _interface_to(endpoint)
    if interface is None:
        return {}
    alias = ":" in interface  # NCCL would take it for a port; it also accepts a prefix of the name
    names = {"GLOO_SOCKET_IFNAME": interface, NCCL: interface.partition(":")[0] if alias else f"={interface}"}
    return {
        name: value for name, value in names.items() if name not in os.environ and not (name == NCCL and _set_in_file())
    }


def _interface_to(endpoint: str) -> str | None:
    """The interface; None if there is no route."""
    host, _, port = endpoint.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, int(port)))  # sends nothing: it looks up the route
            mine = probe.getsockname()[0]
        except OSError:
            return None
    for name, found in psutil.net_if_addrs().items():
        if any(address.address == mine for address in found):
            return str(name)
    return None


def _set_in_file() -> bool:
    """Whether a configuration file of NCCL sets the interface, which a variable would override."""
    own = os.environ.get("NCCL_CONF_FILE")
    files = [Path(own).expanduser() if own else Path.home() / ".nccl.conf", Path("/etc/nccl.conf")]
    for file in files:
        with suppress(OSError, UnicodeDecodeError):
            if any(line.strip().startswith(NCCL) for line in file.read_text().splitlines()):
                return True
    return False

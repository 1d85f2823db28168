"""Where the hosts of a run meet: a port that is free on the first, at an address that leads there from all others.

A name may lead elsewhere from another host, and one address may stand on two of them (a bridge of containers, say); so the
first host opens a door, and who knocks hears the run's token.
"""

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

import psutil

KNOCK_SECONDS = 5.0

NCCL = "NCCL_SOCKET_IFNAME"


class Door:
    """A port of the first host, held open until the ranks take it."""

    def __init__(self, port: int, token: str) -> None:
        """Open ``port``, or any that is free for 0.

        Raises:
            OSError: the port is taken, or not for this user.
        """
        self.token = token
        self.socket = socket.create_server(("", port), backlog=64)
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
    """Whether the door with this ``token`` is at ``address`` from here."""
    try:
        with socket.create_connection((address, port), timeout=KNOCK_SECONDS) as line:
            heard = b""
            while len(heard) < len(token) and (more := line.recv(len(token))):
                heard += more
            return heard == token.encode()
    except OSError:
        return False


def addresses() -> list[str]:
    """This host's own, best first: the one that ssh came in by, then those of its interfaces (IPv4), loopback last."""
    came_by = os.environ.get("SSH_CONNECTION", "").split()[2:3]
    own = [a.address for _, found in sorted(psutil.net_if_addrs().items()) for a in found if a.family == socket.AF_INET]
    own.sort(key=lambda address: address.startswith("127."))
    return list(dict.fromkeys([*came_by, *own]))


def environment(endpoint: str) -> dict[str, str]:
    """What gloo and NCCL need: the interface that leads to ``endpoint``, for each that has not been given one.

    Left alone, gloo takes the one of this host's own name, which on many systems is loopback; NCCL takes any, a bridge of
    containers or a VPN too. NCCL makes its connections over it, and sends its data where its other settings say.
    """
    interface = _leads_to(endpoint)
    if interface is None:
        return {}
    alias = ":" in interface  # NCCL would read a port there; without it the name is the beginning of one
    names = {"GLOO_SOCKET_IFNAME": interface, NCCL: interface.partition(":")[0] if alias else f"={interface}"}
    return {
        name: value for name, value in names.items() if name not in os.environ and not (name == NCCL and _in_a_file())
    }


def _leads_to(endpoint: str) -> str | None:
    """The interface; None where no route leads there."""
    host, _, port = endpoint.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, int(port)))  # sends nothing: it asks the routing table
            mine = probe.getsockname()[0]
        except OSError:
            return None
    for name, found in psutil.net_if_addrs().items():
        if any(address.address == mine for address in found):
            return str(name)
    return None


def _in_a_file() -> bool:
    """Whether a file of NCCL's settings has the interface, which a variable would override."""
    own = os.environ.get("NCCL_CONF_FILE")
    files = [Path(own).expanduser() if own else Path.home() / ".nccl.conf", Path("/etc/nccl.conf")]
    for file in files:
        with suppress(OSError, UnicodeDecodeError):
            if any(line.strip().startswith(NCCL) for line in file.read_text().splitlines()):
                return True
    return False

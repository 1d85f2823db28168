"""The network interface of gloo and NCCL: the one that leads to the other ranks, loopback if they are all on this machine."""

import os
import socket
from contextlib import suppress
from pathlib import Path

import psutil

NCCL = "NCCL_SOCKET_IFNAME"

LOOPBACK = "127.0.0.1:9"
"""An endpoint on this machine: the route to it is over loopback."""


def environment(endpoint: str = LOOPBACK) -> dict[str, str]:
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

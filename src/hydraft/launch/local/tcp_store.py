"""A store of torch that this process hosts, at one address of this machine.

torch itself listens on every interface. Whoever reaches a store can read and change what is in it: nothing of it is ever unpickled.
"""

import socket
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]


def host(address: str, port: int, listen: str, timeout: timedelta) -> TCPStore:
    """A store that this process hosts.

    Args:
        address: at which the others, and this process, connect to it.
        port: at which it listens.
        listen: the only address of this machine at which it does; empty for all of them.
        timeout: of each access.

    Raises:
        OSError: the port is in use, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    if listen:
        server = socket.create_server((listen, port), family=family, backlog=2048)
    elif socket.has_dualstack_ipv6():
        server = socket.create_server(("", port), family=socket.AF_INET6, backlog=2048, dualstack_ipv6=True)
    else:
        server = socket.create_server(("", port), backlog=2048)
    return TCPStore(
        listen or address,
        port,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=server.detach(),
    )

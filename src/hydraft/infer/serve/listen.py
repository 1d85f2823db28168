"""The socket and the API key of a server, checked before anything is loaded. No torch."""

import ipaddress
import os
import socket
from pathlib import Path

from hydraft.config.serve import ServeConfig
from hydraft.errors import ConfigError
from hydraft.system import limits

KEY = "HYDRAFT_API_KEY"
BACKLOG = 1024
"""Connections that may wait to be accepted."""
ACCEPTED = 8
"""Connections that are accepted in one go."""
MOST_FILES = 65536
"""Open files up to which the soft limit is raised."""
FEWEST_FILES = 128
"""Open files without which there is no server: those of the libraries, and some connections."""
RESERVED = 64
"""Files that are not for connections: those that are opened later, and connections that are being accepted or closed."""
USUAL = 1000
"""Connections at once, if files permit and the answers need no more."""


def is_local(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def api_key(serve: ServeConfig) -> str | None:
    """The API key that requests must have, or None.

    Raises:
        ConfigError: its file cannot be read or is empty.
    """
    if serve.api_key_file is None:
        return os.environ.get(KEY, "").strip() or None
    try:
        key = Path(serve.api_key_file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"serve.api_key_file={serve.api_key_file}: cannot be read ({reason})") from None
    if not key:
        raise ConfigError(f"serve.api_key_file={serve.api_key_file}: is empty")
    return key


def listen(serve: ServeConfig, key: str | None) -> socket.socket:
    """The server's socket.

    Raises:
        ConfigError: it is open to other machines without a key, or the address is not available.
    """
    if key is None and not is_local(serve.host):
        raise ConfigError(
            f"serve.host={serve.host} is open to other machines and needs an API key: "
            f"give serve.api_key_file=<file>, or set {KEY}"
        )
    try:
        family, *_, address = socket.getaddrinfo(serve.host, serve.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"serve.host={serve.host} serve.port={serve.port}: cannot listen there ({reason})") from None


def raise_file_limit() -> int:
    """Raise the soft limit of open files as far as it may be, and return it.

    Raises:
        ConfigError: it is too low for a server.
    """
    limit = limits.raise_soft_limit(MOST_FILES)
    if limit < FEWEST_FILES:
        raise ConfigError(
            f"mode=serve: may open {limit} files (ulimit -n), and needs {FEWEST_FILES}: raise it with ulimit -n {FEWEST_FILES}"
        )
    return limit


def most_connections(serve: ServeConfig, limit: int) -> int:
    """Connections that there may be at once: twice the answers, and at least ``USUAL``, as far as ``limit`` files permit."""
    try:
        used = len(os.listdir("/proc/self/fd"))
    except OSError:  # no /proc
        used = FEWEST_FILES - RESERVED
    return max(1, min(max(USUAL, 2 * (serve.max_running + serve.max_waiting)), limit - used - RESERVED))

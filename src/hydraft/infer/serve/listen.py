"""The socket and the API key of a server, checked before anything is loaded. No torch."""

import ipaddress
import os
import socket
from pathlib import Path

from hydraft.config.serve import ServeConfig
from hydraft.errors import ConfigError

KEY = "HYDRAFT_API_KEY"


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
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"serve.host={serve.host} serve.port={serve.port}: cannot listen there ({reason})") from None

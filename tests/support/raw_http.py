"""HTTP by hand, for what no HTTP client would send: half a head, a byte at a time, two lengths."""

import contextlib
import socket
from urllib.parse import urlsplit

from conftest import SCALE
from serving import KEY

AUTHORIZED = f"Host: localhost\r\nAuthorization: Bearer {KEY}\r\n".encode()


def connect(url: str, seconds: float = 20) -> socket.socket:
    """A connection to the server at ``url``; reading from it fails after ``seconds``."""
    address = urlsplit(url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=seconds * SCALE)


def request(line: bytes, headers: bytes = b"", body: bytes | None = None) -> bytes:
    """A request with the key; with a body, it is JSON of the right length."""
    if body is not None:
        headers += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    return line + b" HTTP/1.1\r\n" + AUTHORIZED + headers + b"\r\n" + (body or b"")


def read_all(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    read = b""
    with contextlib.suppress(ConnectionError):  # closed with something of ours unread
        while part := connection.recv(65536):
            read += part
    return read


def statuses(read: bytes) -> list[int]:
    """The status of each response in ``read``."""
    return [int(part[:3]) for part in read.split(b"HTTP/1.1 ")[1:]]


def exchange(url: str, sent: bytes) -> bytes:
    """Send ``sent`` on a new connection: all that comes back until the server closes it."""
    with connect(url) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        return read_all(connection)

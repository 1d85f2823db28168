"""Who may use the board, beside the server's rules of keys and hosts: this user's processes, and requests of its own page. No torch."""

import os
import socket
import struct
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from hydraft.infer.serve.errors import ApiError

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
"""The kernel's tables of connections, with the user of each."""

SAFE = ("GET", "HEAD", "OPTIONS")


class OwnPage:
    """Refuses what another user of this machine or the page of another site has sent."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        """``key``: with an API key, whoever has it may connect."""
        self.app, self.key = app, key
        self.known: dict[tuple[str, int], int | None] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or respond with an error."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as refused:
                await refused.response()(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self.key is None and scope.get("client"):
            user = self._user(tuple(scope["client"]))
            if user not in (None, 0, os.geteuid()):
                raise ApiError(
                    403, "This board answers to the user who started it: start your own, or start it with a key."
                )
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and scope["path"] != "/":
            raise ApiError(403, "This board answers to its own page only.")
        if scope["method"] in SAFE:
            return
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{headers.get('host')}", f"https://{headers.get('host')}"):
            raise ApiError(403, "This board takes requests of its own page only.")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "The body must be JSON, sent as Content-Type: application/json.")

    def _user(self, client: tuple[str, int]) -> int | None:
        """The user whose process has opened a connection from this machine; None if the kernel does not tell."""
        if client not in self.known:
            if len(self.known) > 1000:
                self.known.clear()
            self.known[client] = user_of(*client)
        return self.known[client]


def user_of(host: str, port: int) -> int | None:
    """The user who owns the socket with this address on this machine; None if there is none."""
    wanted = {f"{_hexadecimal(host)}:{port:04X}", f"{_hexadecimal(f'::ffff:{host}')}:{port:04X}"}
    for table in TABLES:
        try:
            rows = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            columns = row.split()
            if len(columns) > 7 and columns[1] in wanted:
                return int(columns[7])
    return None


def _hexadecimal(host: str) -> str:
    """An address as the kernel's tables have it: words of 32 bits in this machine's order of bytes."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            packed = socket.inet_pton(family, host)
        except OSError:
            continue
        words = struct.unpack(f"={len(packed) // 4}I", packed)
        return "".join(f"{word:08X}" for word in words)
    return ""

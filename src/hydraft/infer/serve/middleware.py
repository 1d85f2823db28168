"""ASGI middleware that checks each request's framing, Host header, API key and body size."""

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hydraft.infer.serve.errors import ApiError

LOCAL = ("localhost", "127.0.0.1", "[::1]")
"""Host names of this machine. A web page whose domain was rebound to this address (DNS rebinding) sends its own domain."""
MOST_HEADERS = 16 * 1024
"""Bytes of headers. It is also h11's limit of a head that arrives in parts."""
DISCARDED = 64_000_000
"""Bytes of an oversized body that are read and discarded, so that the client can read the response."""


@dataclass(frozen=True)
class Access:
    """Who may send what."""

    key: str | None
    """The API key; None for no key."""
    local: bool
    """Accept names of this machine only as Host."""
    max_body: int
    """In bytes."""
    patience: float
    """Seconds in which a body has to arrive."""
    full: Callable[[], bool]
    """Whether there are too many connections to answer anything but ``/health``."""


class AccessMiddleware:
    """Refuses requests before the application sees them, and counts all responses."""

    def __init__(self, app: ASGIApp, access: Access, count: Callable[[str, int], None]) -> None:
        """``count`` is called with route and status."""
        self.app, self.access, self.count = app, access, count
        self.key = None if access.key is None else _digest(access.key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or respond with an error."""
        if scope["type"] != "http":  # lifespan events
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # uvicorn, which still has the method, sends no body

        async def counted_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.count(getattr(scope.get("route"), "path", "other"), message["status"])
            await send(message)

        try:
            if scope["http_version"] not in ("1.0", "1.1"):
                raise ApiError(505, "This server speaks HTTP/1.1.", last=True)
            if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MOST_HEADERS:
                raise ApiError(431, f"The headers have more than {MOST_HEADERS:,} bytes.", last=True)
            if "transfer-encoding" in headers and "content-length" in headers:
                # h11 reads the chunks; a proxy in front might believe the length, and see another end of this request
                raise ApiError(400, "A body has a Content-Length or a Transfer-Encoding, not both.", last=True)
            if self.access.local and headers.get("host", "").rsplit(":", 1)[0] not in LOCAL:
                raise ApiError(403, "This server answers to localhost only.")
            operator = scope["path"] == "/health"
            if self.access.full() and not operator:
                raise ApiError(503, "There are too many connections: retry later.", last=True)
            if self.key is not None and not operator and not self._known(headers):
                raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
            body = await self._body(headers, receive)
        except ApiError as refused:
            await refused.response()(scope, receive, counted_send)
            return
        except _ClientDisconnected:
            return
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, counted_send)

    def _known(self, headers: Headers) -> bool:
        """Whether the key is right, as a bearer token or as the password of basic authentication."""
        assert self.key is not None
        kind, _, text = headers.get("authorization", "").partition(" ")
        given = text.strip().encode("latin-1")  # the bytes that were sent
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                given = b""
        return hmac.compare_digest(_digest(given), self.key)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        body, size, more, most = bytearray(), 0, True, self.access.max_body
        try:
            async with asyncio.timeout(self.access.patience):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientDisconnected
                    more = message.get("more_body", False)
                    size += len(message.get("body", b""))
                    if size > DISCARDED:
                        break
                    if size <= most:
                        body += message.get("body", b"")
                    else:
                        body.clear()
        except TimeoutError:
            seconds = f"{self.access.patience:g} seconds (serve.client_timeout)"
            raise ApiError(408, f"The body did not arrive within {seconds}.", last=True) from None
        if size > most:
            raise ApiError(413, f"The body has more than {most:,} bytes (serve.max_body).")
        return bytes(body)


class _ClientDisconnected(Exception):
    """The client disconnected before the end of the body."""


def _digest(key: bytes) -> bytes:
    """A hash of fixed length, so that the comparison takes the same time for any key."""
    return hashlib.sha256(key).digest()

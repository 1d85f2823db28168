"""ASGI middleware that checks each request's Host header, API key and body size."""

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hydraft.infer.serve.errors import ApiError

LOCAL = ("localhost", "127.0.0.1", "[::1]")
"""Host names of this machine. A web page whose domain was rebound to this address (DNS rebinding) sends its own domain."""
BODY_SECONDS = 30.0
"""The most seconds in which a body has to arrive."""
DISCARDED = 64_000_000
"""Bytes of an oversized body that are read and discarded, so that the client can read the response."""


class AccessMiddleware:
    """Refuses requests before the application sees them, and counts all responses."""

    def __init__(
        self, app: ASGIApp, key: str | None, local: bool, max_body: int, count: Callable[[str, int], None]
    ) -> None:
        """``local``: accept names of this machine only as Host. ``max_body`` in bytes. ``count`` is called with route and status."""
        self.app, self.local, self.max_body, self.count = app, local, max_body, count
        self.key = None if key is None else _digest(key.encode())

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
            if self.local and headers.get("host", "").rsplit(":", 1)[0] not in LOCAL:
                raise ApiError(403, "This server answers to localhost only.")
            if self.key is not None and scope["path"] != "/health" and not self._known(headers):
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
        body, size, more = b"", 0, True
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _ClientDisconnected
                    more = message.get("more_body", False)
                    size += len(message.get("body", b""))
                    if size > DISCARDED:
                        break
                    body = body + message.get("body", b"") if size <= self.max_body else b""
        except TimeoutError:
            raise ApiError(408, f"The body did not arrive within {BODY_SECONDS:.0f} seconds.") from None
        if size > self.max_body:
            raise ApiError(413, f"The body has more than {self.max_body:,} bytes (serve.max_body).")
        return body


class _ClientDisconnected(Exception):
    """The client disconnected before the end of the body."""


def _digest(key: bytes) -> bytes:
    """A hash of fixed length, so that the comparison takes the same time for any key."""
    return hashlib.sha256(key).digest()

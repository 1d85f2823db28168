"""What a request passes before anything looks at it: whose host it names, its key, and its size. Plain ASGI."""

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hydraft.infer.serve.errors import Refused

LOCAL = ("localhost", "127.0.0.1", "[::1]")
"""What a browser on this machine calls it. A page elsewhere whose name was made to point here sends its own name."""
BODY_SECONDS = 30.0
"""A body has to arrive within."""
SWALLOWED = 64_000_000
"""Bytes of a body that is too large which are read and thrown away, so that its sender gets to read why."""


class Gate:
    """The middleware."""

    def __init__(
        self, app: ASGIApp, key: str | None, local: bool, max_body: int, count: Callable[[str, int], None]
    ) -> None:
        """``local``: only names of this machine are taken as Host. ``max_body`` in bytes. ``count`` is told route and status."""
        self.app, self.local, self.max_body, self.count = app, local, max_body, count
        self.key = None if key is None else _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":  # start and end of the server
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.count(getattr(scope.get("route"), "path", "other"), message["status"])
            await send(message)

        try:
            if self.local and headers.get("host", "").rsplit(":", 1)[0] not in LOCAL:
                raise Refused(403, "This server answers to localhost only.")
            if self.key is not None and scope["path"] != "/health" and not self._known(headers):
                raise Refused(401, "Incorrect API key provided.", code="invalid_api_key")
            body = await self._body(headers, receive)
        except Refused as refused:
            await refused.response()(scope, receive, tell)
            return
        except _Gone:
            return
        told = False

        async def replay() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, tell)

    def _known(self, headers: Headers) -> bool:
        """Whether the key is right: as a bearer's, or as the password a browser asked for."""
        assert self.key is not None
        kind, _, text = headers.get("authorization", "").partition(" ")
        given = text.strip().encode("latin-1")  # the bytes that came
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
                        raise _Gone
                    more = message.get("more_body", False)
                    size += len(message.get("body", b""))
                    if size > SWALLOWED:
                        break
                    body = body + message.get("body", b"") if size <= self.max_body else b""
        except TimeoutError:
            raise Refused(408, f"The body did not arrive within {BODY_SECONDS:.0f} seconds.") from None
        if size > self.max_body:
            raise Refused(413, f"The body has more than {self.max_body:,} bytes (serve.max_body).")
        return body


class _Gone(Exception):
    """The client left while it was still sending."""


def _digest(key: bytes) -> bytes:
    """Of one length whatever the key's, so that comparing takes the same time."""
    return hashlib.sha256(key).digest()

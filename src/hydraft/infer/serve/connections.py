"""The connections of the server: how many there may be, and how long one may wait for its client.

uvicorn limits how long a connection is idle between two requests, and nothing else. Here a client has ``serve.client_timeout`` seconds for
the whole head of a request (a byte now and then does not help), as long again for its body, and to take each part of an answer. If
more clients connect than there is room for, the connections whose client is to blame make room, the oldest first; so whoever comes
last, an operator who asks for ``/health``, is heard.
"""

import asyncio
import math
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

SPARE = 16
"""Connections beyond the most, on which only ``/health`` is answered; others get status 503."""
READ = 16 * 1024
"""Bytes that are read in one go (asyncio's own number is 16 times that): a body in chunks of a byte each costs 10 µs for six bytes, and
others have their turn in between."""
PROGRESS = 16 * 1024
"""Bytes of an answer that a client has to take in ``client_timeout``, unless it takes all there is."""
WAITING = ("idle", "rest", "head", "body")
"""Phases in which a connection waits for its client, in the order in which they make room."""
PATIENCE = {"rest": 1.0, "head": 1.0, "body": 2.0}
"""Multiples of ``client_timeout`` after which a phase ends the connection. That of a body is the longer one, since the application
itself answers 408 after ``client_timeout``. uvicorn ends idle ones."""


class Connection(H11Protocol):
    """uvicorn's protocol of one connection, with its phase and the time since when it is in it."""

    transport: Any
    """asyncio's; uvicorn's own type has no ``abort``."""

    def connection_made(self, transport: Any) -> None:
        """Take the connection in, or end it."""
        transport.max_size = READ
        super().connection_made(transport)
        self.made = self.since = self.stalled = time.monotonic()
        self.seen: tuple[Any, str] = (None, "head")
        self.unsent = 0
        assert isinstance(self.server_state, Connections)
        self.server_state.admit(self)

    def resume_writing(self) -> None:
        """The client has taken most of what was waiting, and the answer goes on."""
        super().resume_writing()
        self.stalled, self.unsent = time.monotonic(), 0

    @property
    def phase(self) -> str:
        """``idle`` between requests, ``head`` and ``body`` while one arrives, ``answer`` until all of the answer is sent, and ``rest``
        if a part of a refused body is still to come."""
        answered = self.cycle is None or self.cycle.response_complete
        if self.transport.is_closing():
            return "answer"
        if self.conn.their_state is h11.SEND_BODY:
            return "rest" if answered else "body"
        if self.transport.get_write_buffer_size() or not answered:
            return "answer"
        return "idle" if self.timeout_keep_alive_task is not None else "head"

    def look(self, now: float) -> str:
        """The phase; ``since`` and ``stalled`` are brought up to date."""
        seen = (self.cycle, self.phase)  # each request has its own cycle
        if seen != self.seen:
            self.seen, self.since = seen, now
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent <= self.unsent - PROGRESS:
            self.stalled, self.unsent = now, unsent
        self.unsent = max(self.unsent, unsent)
        return seen[1]

    def end(self) -> None:
        """Close the connection now, whatever it is in."""
        self.connections.discard(self)  # its place is free, although the transport closes it a little later
        self.transport.abort()


class Connections(ServerState):
    """All connections of one server."""

    def __init__(self, most: int, patience: float) -> None:
        """``most``: connections at once. ``patience``: ``serve.client_timeout``."""
        super().__init__()
        self.most, self.patience = most, patience

    @property
    def full(self) -> bool:
        """Whether there are more than ``most``: none could make room."""
        return len(self.connections) > self.most

    def admit(self, new: Connection) -> None:
        """Make room for a new connection; without any, and without spare places, end it."""
        if not self.full:
            return
        now = time.monotonic()
        waiting = [each for each in self._all() if each is not new and each.look(now) in WAITING]
        # Those whose phases were noticed in the same look are as old as their connections.
        waiting.sort(key=lambda each: (WAITING.index(each.seen[1]), each.since, each.made))
        for each in waiting[: max(1, self.most // 32)]:  # several at once, since to find them takes a look at all
            each.end()
        if len(self.connections) > self.most + SPARE:
            new.end()

    def sweep(self) -> None:
        """End the connections whose client had its time."""
        now = time.monotonic()
        for each in self._all():
            most = PATIENCE.get(each.look(now), math.inf) * self.patience
            if now - each.since > most or now - each.stalled > self.patience:
                each.end()

    async def watch(self) -> None:
        """``sweep`` now and then, for ever."""
        while True:
            await asyncio.sleep(min(1.0, self.patience / 4))
            self.sweep()

    def _all(self) -> list[Connection]:
        return [each for each in self.connections if isinstance(each, Connection)]

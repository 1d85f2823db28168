"""The queue of prompts that are rendered and tokenised: in one other thread, short ones first, and no more than ``MOST``.

A tokenizer is not thread-safe, so there is one thread. A megabyte takes it a second, in which the event loop goes on.
"""

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

MOST = 64
"""Prompts that may wait."""
OVERTAKEN = 100_000
"""Bytes of a prompt for which shorter ones of the next second go first. None waits for ever: others overtake it for so long only."""


class ClientGone(Exception):
    """The client disconnected while it waited."""


class EncoderFull(Exception):
    """Too many prompts wait."""


class Encoder:
    """Runs work in its thread, one piece at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "encode")
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._busy = False

    async def run(self, size: int, work: Callable[[], T], gone: Callable[[], Awaitable[bool]]) -> T:
        """The result of ``work``, which costs as much as ``size`` bytes of text, unless its client is ``gone`` when its turn comes.

        Raises:
            EncoderFull: too many wait.
            ClientGone: nobody waits for the result.
        """
        loop = asyncio.get_running_loop()
        if len(self._waiting) >= MOST:
            raise EncoderFull
        turn: asyncio.Future[None] = loop.create_future()
        entry = (loop.time() + size / OVERTAKEN, next(self._numbers), turn)
        heapq.heappush(self._waiting, entry)
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            else:
                self._release()
            raise
        try:
            if await gone():
                raise ClientGone
            return await loop.run_in_executor(self._thread, work)
        finally:
            self._release()

    def _release(self) -> None:
        self._busy = False
        self._next()

    def _next(self) -> None:
        if not self._busy and self._waiting:
            self._busy = True
            heapq.heappop(self._waiting)[2].set_result(None)

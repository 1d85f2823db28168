"""What the server logs: one line a minute of each kind, whatever clients send, and no control characters."""

import asyncio
import logging
import re
import time
from typing import Any

from hydraft.system.escaping import escaped

PERIOD = 60.0
"""Seconds in which a kind of message is logged once."""
KINDS = 100
"""Kinds of messages that are remembered."""
LONGEST = 8000
"""Characters of a message with its traceback."""
CONTROL = re.compile(r"[^\x20-\x7e\t\n\xa1-\U0010ffff]|[\u2028\u2029\ud800-\udfff]")
"""Control characters, with which a client could write to the operator's terminal, and characters that UTF-8 does not have."""
NAMES = ("uvicorn", "asyncio")
"""The loggers whose messages clients cause."""


class Sparing(logging.Filter):
    """Lets each kind of message through once in ``PERIOD``, with the number of those that it kept back."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[Any, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a message is logged. Its kind is its text before values are filled in, and the type of its exception."""
        kind = (record.name, str(record.msg)[:200], record.exc_info and record.exc_info[0])
        now = time.monotonic()
        if len(self._seen) >= KINDS and kind not in self._seen:
            self._seen.clear()
        last, missed = self._seen.get(kind, (-PERIOD, 0))
        if now - last < PERIOD:
            self._seen[kind] = (last, missed + 1)
            return False
        self._seen[kind] = (now, 0)
        if missed:
            record.msg = f"{str(record.msg).rstrip()} ({missed:,} more of these since the last one)"
        return True


class Plain(logging.Formatter):
    """Without control characters, and no longer than ``LONGEST``."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a message."""
        text = CONTROL.sub(lambda found: escaped(found[0]), super().format(record))
        return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def install() -> None:
    """Log warnings and errors of ``NAMES`` on stderr."""
    handler = logging.StreamHandler()
    handler.addFilter(Sparing())
    handler.setFormatter(Plain("%(asctime)s serve: %(levelname)s: %(message)s", "%Y-%m-%d %H:%M:%S"))
    for name in NAMES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING)


def on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error of the event loop; one line if files or memory ran out (asyncio tries again after a second)."""
    if "accept()" in str(context.get("message")):
        logging.getLogger("asyncio").warning("a connection could not be accepted: %s", context.get("exception"))
    else:
        loop.default_exception_handler(context)

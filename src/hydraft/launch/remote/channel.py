"""A channel to agents (the process that runs ssh or srun), and the state of each node. No torch."""

import base64
import json
import os
import random
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hydraft.errors import Failure, FailureReason
from hydraft.launch.local import hang
from hydraft.launch.remote.protocol import line

TAIL = 20
"""Lines of stderr for each host that are kept to explain why the process ended."""

TRIES = 5
"""How often ssh logs in to a host that drops the connection."""
RETRY_SECONDS = 1.0
"""From the first drop to the second try, at most; it doubles with each further one, and varies, so that hosts do not return together."""

END_SECONDS = 3.0, 2.0
"""From closing its stdin to SIGTERM, and from there to SIGKILL."""

DROPPED = ("exchange_identification", "banner exchange", "connection closed by", "connection reset by", "maxstartups")
"""In what ssh prints, they mean that the server, or a jump host, dropped the connection before the login: it does so if too many log in
at once (``MaxStartups`` of sshd)."""

EFFECTS = (
    "connection closed", "connection reset", "connection refused", "broken pipe", "socket", "gloo", "nccl", "timed out",
    "timeout", "store",
)  # fmt: skip
"""In the message of an exception of torch, they mean that the connection to another rank was lost: an effect, not a cause."""


@dataclass
class Channel:
    """A process that passes commands to agents and their events back: ssh for one agent, or srun for all of them."""

    process: "subprocess.Popen[bytes]"
    """Started with three pipes and ``bufsize=0``."""
    nodes: list[int]
    """Indices of the hosts that it leads to."""
    explain: Callable[[int, str], str]
    """Turns its exit code and the end of its stderr into one line: what the user has to change."""
    reopen: "Callable[[], subprocess.Popen[bytes]] | None" = None
    """Starts the process anew, if the login was dropped; None for srun."""
    blamed: Callable[[Sequence[str]], str | None] = lambda _: None
    """Finds the name of the host whose agent ended first in the lines of stderr, if several hosts share it."""
    incomplete: dict[int, bytes] = field(default_factory=dict)
    """By file descriptor, the beginning of a line."""
    pieces: dict[int, bytearray] = field(default_factory=dict)
    """By node, the pieces received of an event that is too long for srun."""
    stderr: deque[str] = field(init=False)
    """Its last lines."""
    unread: set[int] = field(default_factory=set)
    """File descriptors that have not reached their end."""
    connected: bool = False
    """Whether an event has arrived, so the agents have been started."""
    tries: int = 1
    """How often the process has been started, or is about to be."""
    retry_at: float | None = None
    """When the process is started anew, after a drop."""

    def __post_init__(self) -> None:
        self.stderr = deque(maxlen=TAIL * len(self.nodes))

    def register(self, selector: selectors.BaseSelector) -> None:
        """Register its output with ``selector``."""
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ, self)
            self.unread.add(stream.fileno())

    def read(self, stream: Any, selector: selectors.BaseSelector) -> Iterator[dict[str, Any] | str]:
        """Read what is available: events, and other lines as text."""
        try:
            raw = os.read(stream.fileno(), 1 << 20)
        except BlockingIOError:
            return
        if not raw:
            selector.unregister(stream)
            self.unread.discard(stream.fileno())
        lines = (self.incomplete.get(stream.fileno(), b"") + raw).split(b"\n")
        self.incomplete[stream.fileno()] = lines.pop() if raw else b""
        for text in filter(None, lines):
            message = _event(text) if stream is self.process.stdout else self._keep(text)
            self.connected |= isinstance(message, dict)
            if isinstance(message, dict) and message["event"] == "piece":
                if (completed := self._add_piece(message)) is not None:
                    yield completed
            else:
                yield message

    def _add_piece(self, piece: dict[str, Any]) -> dict[str, Any] | str | None:
        """The event that this piece completes, if it is the last."""
        node = int(piece["node"])
        self.pieces.setdefault(node, bytearray()).extend(base64.b64decode(piece["data"]))
        return _event(bytes(self.pieces.pop(node))) if piece["last"] else None

    def _keep(self, text: bytes) -> str:
        line = text.decode(errors="replace").rstrip()
        self.stderr.append(line)
        return line

    def send(self, **command: Any) -> None:
        """Send a command to its agents; it is ignored if they have ended."""
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):
            self.process.stdin.write(line(**command))

    def retry(self, selector: selectors.BaseSelector) -> bool:
        """Whether its login was dropped and another one is due or under way; starts that one at its time."""
        if self.retry_at is None:
            text = "\n".join(self.stderr).lower()
            dropped = self.process.returncode == 255 and any(part in text for part in DROPPED)
            if self.reopen is None or self.connected or not dropped or self.tries >= TRIES:
                return False
            self.retry_at = time.monotonic() + RETRY_SECONDS * 2 ** (self.tries - 1) * random.uniform(0.5, 1)
            self.tries += 1
        elif time.monotonic() > self.retry_at and self.reopen is not None:
            self.retry_at = None
            self.release()
            self.process = self.reopen()
            self.stderr.clear()
            self.incomplete.clear()
            self.register(selector)
        return True

    def hang_up(self) -> None:
        """Close its stdin, upon which all processes below its agents end."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def release(self) -> None:
        """Close the pipes of a process that has ended."""
        self.hang_up()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    @property
    def closed(self) -> bool:
        """Whether it has ended and all of its output has been read."""
        return self.process.poll() is not None and not self.unread


@dataclass
class Node:
    """State of a host, as far as the launcher knows it."""

    name: str
    last_seen: float
    """Time of its last event."""
    about: dict[str, str] | None = None
    """Its versions; None before its first event."""
    folder: str | None = None
    """Where its ranks' logs are, if not in the run's folder."""
    ready: dict[str, Any] | None = None
    """Its event ``ready``."""
    reached: list[str] | None = None
    """Addresses of the first node that it reaches."""
    ranks: hang.Ranks = field(default_factory=dict)
    stacks: hang.Ranks | None = None
    failure: Failure | None = None
    """If it failed."""
    done: dict[str, Any] | None = None
    """Its event ``done``."""
    ended_at: float = 0.0
    """When its final event arrived."""

    @property
    def ended(self) -> bool:
        """Whether its final event has arrived."""
        return self.failure is not None or self.done is not None

    @property
    def lost(self) -> bool:
        """Whether the connection to it is lost."""
        return self.failure is not None and self.failure.reason is FailureReason.host_lost


SEVERITY = {
    FailureReason.config: 0,
    FailureReason.interrupted: 1,
    FailureReason.hung: 2,
    FailureReason.killed: 3,
    FailureReason.diverged: 4,
    FailureReason.out_of_memory: 4,
    FailureReason.raised: 4,
    FailureReason.host_lost: 5,
    FailureReason.stopped: 7,
}
"""Sorts failures: the lowest is the cause of the others."""
LOST_CONNECTION = 6
"""Of an exception about the connection to another rank."""


def severity(node: Node) -> tuple[int, float]:
    """Sort key of failed nodes: the one whose failure is the cause of the others comes first, of equal ones the earliest."""
    assert node.failure is not None
    reason, cause = node.failure.reason, node.failure.cause.lower()
    lost_connection = reason is FailureReason.raised and any(word in cause for word in EFFECTS)
    return LOST_CONNECTION if lost_connection else SEVERITY[reason], node.ended_at


def close(channels: Sequence[Channel]) -> None:
    """End all of them at the same time, and by closing their stdin all processes below their agents."""
    for channel in channels:
        channel.hang_up()
    for seconds, number in zip(END_SECONDS, (signal.SIGTERM, signal.SIGKILL), strict=True):
        deadline = time.monotonic() + seconds
        while (left := [c.process for c in channels if c.process.poll() is None]) and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in left:
            process.send_signal(number)
    for channel in channels:
        channel.process.wait()


def describe_exit(code: int) -> str:
    """An exit code in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _event(text: bytes) -> dict[str, Any] | str:
    try:
        event = json.loads(text)
    except ValueError:
        event = None
    if isinstance(event, dict) and {"event", "node"} <= event.keys():
        return event
    return text.decode(errors="replace")  # printed by a login script

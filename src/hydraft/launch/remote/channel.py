"""A channel to agents (the process that runs ssh or srun), and the state of each node. No torch."""

import base64
import json
import os
import selectors
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from hydraft.errors import Failure, FailureReason
from hydraft.launch.local import hang
from hydraft.launch.remote.protocol import line

TAIL = 20
"""Lines of stderr that are kept to explain why the process ended."""

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
    incomplete: dict[int, bytes] = field(default_factory=dict)
    """By file descriptor, the beginning of a line."""
    pieces: dict[int, bytes] = field(default_factory=dict)
    """By node, the pieces received of an event that is too long for srun."""
    stderr: list[str] = field(default_factory=list)
    """Its last lines."""
    unread: set[int] = field(default_factory=set)
    """File descriptors that have not reached their end."""
    connected: bool = False
    """Whether an event has arrived, so the agents have been started."""

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
        self.pieces[node] = self.pieces.get(node, b"") + base64.b64decode(piece["data"])
        return _event(self.pieces.pop(node)) if piece["last"] else None

    def _keep(self, text: bytes) -> str:
        line = text.decode(errors="replace").rstrip()
        self.stderr = [*self.stderr, line][-TAIL:]
        return line

    def send(self, **command: Any) -> None:
        """Send a command to its agents; it is ignored if they have ended."""
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):
            self.process.stdin.write(line(**command))

    def close(self) -> None:
        """End it, and by closing its stdin all processes below its agents."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        for limit, end in ((3.0, self.process.terminate), (2.0, self.process.kill)):
            try:
                self.process.wait(limit)
                return
            except subprocess.TimeoutExpired:
                end()
        self.process.wait()

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

"""A process that agents are reached through, and what is known of each host behind it. No torch here."""

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

from hydraft.launch.local import hang
from hydraft.launch.remote.protocol import line

TAIL = 20
"""Lines of stderr that are kept, to explain an end."""

EFFECTS = (
    "connection closed", "connection reset", "connection refused", "broken pipe", "socket", "gloo", "nccl", "timed out",
    "timeout", "store",
)  # fmt: skip
"""Words of an error that another rank's end brings about."""


@dataclass
class Channel:
    """A process whose stdin feeds agents and whose stdout brings their events: one agent's ssh, or all agents' srun."""

    process: "subprocess.Popen[bytes]"
    """Started with three pipes and ``bufsize=0``."""
    nodes: list[int]
    """Which of the job's hosts are behind it."""
    explain: Callable[[int, str], str]
    """Its exit code and the end of its stderr to one line: what a person has to change."""
    rest: dict[int, bytes] = field(default_factory=dict)
    pieces: dict[int, bytes] = field(default_factory=dict)
    """By node, what has come of an event that srun would not pass on whole."""
    said: list[str] = field(default_factory=list)
    """The last lines that were no events."""
    unread: set[int] = field(default_factory=set)
    greeted: bool = False
    """Whether an event has come: whatever started the agents did."""

    def register(self, selector: selectors.BaseSelector) -> None:
        """Have ``selector`` watch for what it says."""
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ, self)
            self.unread.add(stream.fileno())

    def read(self, stream: Any, selector: selectors.BaseSelector) -> Iterator[dict[str, Any] | str]:
        """What it says now: events, and other lines as text."""
        try:
            raw = os.read(stream.fileno(), 1 << 20)
        except BlockingIOError:
            return
        if not raw:
            selector.unregister(stream)
            self.unread.discard(stream.fileno())
        lines = (self.rest.get(stream.fileno(), b"") + raw).split(b"\n")
        self.rest[stream.fileno()] = lines.pop() if raw else b""
        for text in filter(None, lines):
            said = _event(text) if stream is self.process.stdout else self._keep(text)
            self.greeted |= isinstance(said, dict)
            whole = self._whole(said) if isinstance(said, dict) and said["event"] == "piece" else said
            if whole is not None:
                yield whole

    def _whole(self, piece: dict[str, Any]) -> dict[str, Any] | str | None:
        """The event that this piece is the last of."""
        node = int(piece["node"])
        self.pieces[node] = self.pieces.get(node, b"") + base64.b64decode(piece["data"])
        return _event(self.pieces.pop(node)) if piece["last"] else None

    def _keep(self, text: bytes) -> str:
        told = text.decode(errors="replace").rstrip()
        self.said = [*self.said, told][-TAIL:]
        return told

    def send(self, **command: Any) -> None:
        """Tell its agents; one that has ended does not mind."""
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):
            self.process.stdin.write(line(**command))

    def close(self) -> None:
        """End it, and through the end of its stdin all that is below its agents."""
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
    def over(self) -> bool:
        """Whether it has ended and said all it had to say."""
        return self.process.poll() is not None and not self.unread


@dataclass
class Node:
    """What is known of a host."""

    name: str
    heard: float
    """When it last said something."""
    about: dict[str, str] | None = None
    """Its versions; None before its first word."""
    folder: str | None = None
    """Where its ranks' logs are, if not in the run's folder."""
    ready: dict[str, Any] | None = None
    reached: list[str] | None = None
    ranks: hang.Ranks = field(default_factory=dict)
    stacks: hang.Ranks | None = None
    outcome: dict[str, Any] | None = None
    """Its last word."""
    told: float = 0.0
    """When that came."""

    @property
    def failed(self) -> bool:
        """Whether it ended badly."""
        return self.outcome is not None and self.outcome["event"] == "failed"


def weight(node: Node) -> tuple[int, float]:
    """Sorts failures: causes before effects, then by the time they were told.

    In turn: a person's mistake, a signal that asked for the end, a rank that stood still, was killed, an error, a host that is gone, an error over the network,
    what was stopped for another's sake.
    """
    assert node.outcome is not None
    kind, cause = node.outcome["kind"], str(node.outcome["cause"]).lower()
    kinds = ("config", "asked", "hung", "killed", "raised", "lost", "effect", "stopped")
    if kind == "raised" and any(word in cause for word in EFFECTS):
        kind = "effect"
    return kinds.index(kind), node.told


def killed_by(code: int) -> str:
    """An exit code in words."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _event(text: bytes) -> dict[str, Any] | str:
    try:
        event = json.loads(text)
    except ValueError:
        event = None
    if isinstance(event, dict) and {"event", "node"} <= event.keys():
        return event
    return text.decode(errors="replace")  # a login script that prints

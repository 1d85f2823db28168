"""Commands that the board has started. They go on when it ends: each has a session of its own, and what it prints is only kept here. No torch."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydraft.board import composing
from hydraft.board.logs import clean
from hydraft.config import printed
from hydraft.errors import EXIT_REFUSED
from hydraft.infer.serve.listen import KEY
from hydraft.system import program
from hydraft.system.redaction import redact_line, redact_text
from hydraft.system.source_tree import ROOT

MOST = 50
"""Commands that are kept after their end."""
TAIL = 1 << 15
"""Bytes of a command's output that are kept."""


@dataclass
class Started:
    """A command and what it printed."""

    id: str
    """Of the run or sweep."""
    kind: str
    """``run`` or ``sweep``."""
    folder: Path
    command: str
    process: "subprocess.Popen[bytes]"
    began: float = field(default_factory=time.time)
    output: bytearray = field(default_factory=bytearray)

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def to_dict(self) -> dict[str, Any]:
        """For the page."""
        refused = self.refusal
        return {
            "refusal": refused, "fields": [] if refused is None else composing.fields_of(refused),
            "id": self.id, "kind": self.kind, "folder": str(self.folder), "command": redact_line(self.command),
            "pid": self.process.pid, "began": self.began, "code": self.process.poll(), "output": self.text,
        }  # fmt: skip

    @property
    def text(self) -> str:
        """The end of what it printed, without secrets and escape sequences."""
        return clean(bytes(self.output).decode("utf-8", "replace"))

    @property
    def refusal(self) -> str | None:
        """The line with which it was refused, or failed before it had a folder; None otherwise."""
        code = self.process.poll()
        begun = self.folder / ("config.yaml" if self.kind == "run" else "sweep.json")
        if code in (None, 0) or (code != EXIT_REFUSED and begun.exists()):
            return None
        lines = [line for line in self.text.splitlines() if line.strip()]
        last = next(
            (line for line in reversed(lines) if line != program.without_name(line, "train")),
            lines[-1] if lines else "",
        )
        return redact_text(program.without_name(last, "train")) or f"exit code {code}"


class Processes:
    """The commands of this board; may be used by any thread."""

    def __init__(self) -> None:
        self._all: list[Started] = []
        self._lock = threading.Lock()

    def start(self, arguments: Sequence[str], name: str, folder: Path, kind: str) -> Started:
        """Start ``python train.py`` with these arguments, without a shell; it becomes the leader of its own session."""
        environment = {key: value for key, value in os.environ.items() if key != KEY}
        process = subprocess.Popen(
            [sys.executable, "train.py" if Path.cwd() == ROOT else str(ROOT / "train.py"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        line = printed.command("train", *map(printed.shell_word, arguments))
        started = Started(name, kind, folder, line, process)
        with self._lock:
            others = [one for one in self._all if one.runs or one.id != name]
            self._all = [*others[-MOST:], started]
        threading.Thread(target=_read, args=(started,), daemon=True).start()
        return started

    def all(self) -> list[dict[str, Any]]:
        """The newest first."""
        with self._lock:
            return [one.to_dict() for one in reversed(self._all)]

    def of(self, name: str) -> Started | None:
        """The command that runs a run or sweep; None if the board started none, or it has ended."""
        with self._lock:
            return next((one for one in reversed(self._all) if one.id == name and one.runs), None)


def _read(started: Started) -> None:
    """Keep the end of what a command prints, until it ends."""
    assert started.process.stdout is not None
    with started.process.stdout as stream:
        while part := os.read(stream.fileno(), 1 << 16):
            started.output += part
            del started.output[: -TAIL * 2 if len(started.output) > TAIL * 2 else 0]
    started.process.wait()

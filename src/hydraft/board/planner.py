"""The process that plans for the form: started when it is needed, asked for one plan at a time, ended if it takes too long. No torch."""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from hydraft.infer.serve.errors import ApiError
from hydraft.system.source_tree import own_code_first

SECONDS = 60.0
"""Time for a plan, which reads all records."""


class Superseded(Exception):
    """A newer request of the same page has come."""


class Planner:
    """May be used by any thread."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._busy, self._counts = threading.Lock(), threading.Lock()
        self._newest: dict[str, int] = {}
        """By page, the number of its last request."""

    def start(self) -> None:
        """Start the process, unless it runs."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hydraft.board.planning"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": own_code_first()},
                start_new_session=True,  # Ctrl-C is the board's; it ends with the board, which holds its stdin
            )

    def warm(self) -> None:
        """Have it ready soon."""
        if self._busy.acquire(blocking=False):
            try:
                self.start()
            finally:
                self._busy.release()

    def plan(self, arguments: Sequence[str], page: str = "") -> dict[str, Any]:
        """What ``python train.py mode=plan`` says of a command line (``planning.Planner.answer``).

        Raises:
            Superseded: the same page has asked for another plan meanwhile.
            ApiError: it took too long, or its process ended.
        """
        with self._counts:
            if page not in self._newest and len(self._newest) > 100:
                self._newest.clear()
            number = self._newest[page] = self._newest.get(page, 0) + 1
        with self._busy:
            if self._newest.get(page) != number:
                raise Superseded
            return self._ask(json.dumps(list(arguments)).encode() + b"\n")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                stream.close()
            self._process = None

    def _ask(self, request: bytes) -> dict[str, Any]:
        self.start()
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        deadline, found = time.monotonic() + self.seconds, bytearray()
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
            handle = self._process.stdout.fileno()
            while not found.endswith(b"\n"):
                if not select.select([handle], [], [], max(0, deadline - time.monotonic()))[0]:
                    self.close()
                    raise ApiError(
                        504, f"The plan was not ready after {self.seconds:g} seconds; the run itself may be started."
                    )
                part = os.read(handle, 1 << 16)
                if not part:
                    raise BrokenPipeError
                found += part
        except BrokenPipeError:
            self.close()
            raise ApiError(500, "The process that plans ended; the next plan starts another.") from None
        answer: dict[str, Any] = json.loads(found)
        return answer

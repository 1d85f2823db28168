"""Functions that run in forks of the test's process, side by side or as another user, and what they return or raise."""

import os
import pickle
import signal
import time
from collections.abc import Callable
from typing import Any, Self

SECONDS = 60 * float(os.environ.get("HYDRAFT_TEST_TIMEOUT_SCALE", "1"))
"""After so long a fork is killed."""

NOBODY = 65534


class Forked:
    """Forks, of which none outlives the block."""

    def __init__(self) -> None:
        self.running: dict[int, int] = {}  # process id → the pipe that has its result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process, pipe in self.running.items():
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os.close(pipe)

    def start(self, function: Callable[[], Any]) -> None:
        """Call ``function`` in a fork."""
        reading, writing = os.pipe()
        process = os.fork()
        if process:
            os.close(writing)
            self.running[process] = reading
            return
        try:
            result: tuple[bool, Any] = (True, function())
        except BaseException as error:
            result = (False, error)
        with os.fdopen(writing, "wb") as stream:
            pickle.dump(result, stream)
        os._exit(0)

    def results(self) -> list[Any]:
        """What the forks return, in the order of their start; raises what the first of them raises.

        Raises:
            TimeoutError: one does not end.
        """
        found, end = [], time.monotonic() + SECONDS
        for process, pipe in list(self.running.items()):
            os.set_blocking(pipe, False)
            data = b""
            while True:
                try:
                    part = os.read(pipe, 1 << 16)
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise TimeoutError(f"fork {process} does not end") from None
                    time.sleep(0.01)
                    continue
                if not part:
                    break
                data += part
            os.waitpid(process, 0)
            os.close(pipe)
            del self.running[process]
            returned, value = pickle.loads(data)
            if not returned:
                raise value
            found.append(value)
        return found


def as_nobody(function: Callable[[], Any]) -> Callable[[], Any]:
    """``function``, called as a user without any rights; for a fork of root."""

    def called() -> Any:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return function()

    return called

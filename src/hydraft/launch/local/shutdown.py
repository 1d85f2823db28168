"""Shutdown of a run by a signal to its launcher: the ranks get the signal and a grace period in which they save. No torch."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from hydraft.system.signals import SHUTDOWN_SIGNALS

REPEAT_SECONDS = 1.0
"""One Ctrl-C may arrive twice, from the terminal and from a launcher: a signal within this time does not count as a second one."""


class Stopped(BaseException):
    """A signal arrived, and the ranks have been ended at once."""

    def __init__(self, number: int = signal.SIGTERM, why: str = "") -> None:
        super().__init__(why or f"stopped by {signal.Signals(number).name}")
        self.number = number


class Preempted(BaseException):
    """A signal arrived, and the ranks have saved ``step`` and exited."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"preempted by {signal.Signals(number).name} after step {step}")
        self.step = step
        self.number = number


class ShutdownHandler:
    """Handles the shutdown signals of this process inside its ``with`` block.

    The first signal is passed on to the ranks, which have the grace period to save and exit. ``Stopped`` is raised in the main
    thread if there are no ranks yet, when the grace period is over, upon a second signal (except SIGUSR1, a warning that may be
    repeated), and upon SIGHUP.
    """

    def __init__(self, grace: float) -> None:
        """``grace``: seconds that the ranks get; 0 for none."""
        self.grace = grace
        self.number: int | None = None
        """The first signal."""
        self._request: Callable[[int], bool] | None = None
        self._kill: Callable[[], None] = lambda: None
        self._extra = self._repeats_until = 0.0
        self._timer: threading.Timer | None = None
        self._expired = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # nohup
        handled = [*SHUTDOWN_SIGNALS] if ignored else [*SHUTDOWN_SIGNALS, signal.SIGHUP]
        self._previous = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def forwarding(
        self, request: Callable[[int], bool], kill: Callable[[], None] = lambda: None, extra: float = 0
    ) -> Iterator[None]:
        """For a block that waits for ranks.

        Args:
            request: requests that the ranks exit because of that signal; returns False if they cannot do so yet.
            kill: ends the ranks; called before ``Stopped`` is raised.
            extra: seconds beyond the grace period until then.
        """
        self._request, self._kill, self._extra = request, kill, extra
        try:
            yield
        finally:
            self._request, self._kill = None, lambda: None

    def _handle(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGHUP:
            self.number = number
        elif self.number is None:
            self.number, self._repeats_until = number, now + REPEAT_SECONDS
            if self.grace and self._request is not None and self._request(number):
                self._timer = threading.Timer(self.grace + self._extra, self._expire)
                self._timer.daemon = True
                self._timer.start()
                return
        elif not self._expired and (number == signal.SIGUSR1 or now < self._repeats_until):
            return
        self._expired, self._repeats_until = False, now + REPEAT_SECONDS
        self._kill()
        raise Stopped(self.number)

    def _expire(self) -> None:
        self._expired = True
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGTERM)

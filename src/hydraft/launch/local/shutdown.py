"""A launcher that is asked to end its run: the ranks are asked in turn, and get a grace to save. No torch here."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from hydraft.system.signals import ASKING

ECHO_SECONDS = 1.0
"""One Ctrl-C may arrive twice, from the terminal and from a launcher: what comes so soon after is no second one."""


class Stopped(BaseException):
    """A signal arrived, and the ranks have been ended at once."""

    def __init__(self, number: int = signal.SIGTERM, why: str = "") -> None:
        super().__init__(why or f"stopped by {signal.Signals(number).name}")
        self.number = number


class Preempted(BaseException):
    """A signal arrived, and the ranks have left in good order: ``step`` is saved."""

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"preempted by {signal.Signals(number).name} after step {step}")
        self.step = step
        self.number = number


class Wish:
    """The signals that ask this process to end, from ``with`` on.

    As long as no ranks can be asked, for a second signal (but of a warning there may be many) and for SIGHUP, ``Stopped`` is
    raised wherever the main thread is.
    """

    def __init__(self, grace: float) -> None:
        """``grace``: seconds that ranks get; 0 for none."""
        self.grace = grace
        self.number: int | None = None
        """The first signal."""
        self._ask: Callable[[int], bool] | None = None
        self._end: Callable[[], None] = lambda: None
        self._spare = self._echoes = 0.0
        self._late: threading.Timer | None = None
        self._over = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        heard = [*ASKING] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [*ASKING, signal.SIGHUP]  # nohup
        self._before = {number: signal.signal(number, self._arrived) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        if self._late is not None:
            self._late.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def passed_to(
        self, ask: Callable[[int], bool], end: Callable[[], None] = lambda: None, spare: float = 0
    ) -> Iterator[None]:
        """For a block that waits for ranks.

        Args:
            ask: asks them to leave, for that signal; False if they cannot be asked yet.
            end: ends them, before ``Stopped`` is raised.
            spare: seconds beyond the grace until that.
        """
        self._ask, self._end, self._spare = ask, end, spare
        try:
            yield
        finally:
            self._ask, self._end = None, lambda: None

    def _arrived(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGHUP:
            self.number = number
        elif self.number is None:
            self.number, self._echoes = number, now + ECHO_SECONDS
            if self.grace and self._ask is not None and self._ask(number):
                self._late = threading.Timer(self.grace + self._spare, self._expire)
                self._late.daemon = True
                self._late.start()
                return
        elif not self._over and (number == signal.SIGUSR1 or now < self._echoes):
            return
        self._over, self._echoes = False, now + ECHO_SECONDS
        self._end()
        raise Stopped(self.number)

    def _expire(self) -> None:
        self._over = True
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGTERM)

"""Runs the members of a pack in turn: each has its own thread, and only one of them runs at a time. No torch.

A member trains as a run alone does, with the same code, until it needs the base: it submits its micro-batch and waits. When every
member has submitted one or is busy with something else, all that were submitted are computed in one pass, and each member
continues with its own result. Since one member runs at a time, and what libraries keep once a process (random states, the
output streams) is exchanged whenever another one continues, no member sees anything of another.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

_here = threading.local()


class ProcessState(Protocol):
    """Something of which a process has one, and every member its own."""

    def take(self) -> Any:
        """Its current value."""

    def put(self, value: Any) -> None:
        """Replace it."""


class Member:
    """A run of a pack."""

    def __init__(self, name: int, main: Callable[[], Any], states: Sequence[ProcessState], pack: Any) -> None:
        """``pack``: what the members share; a member finds it with ``current``."""
        self.name = name
        self.pack = pack
        self.signal = 0
        """The shutdown signal that this member received; 0 before it arrives."""
        self.stoppable = False
        """Whether it notices a signal itself, by saving a checkpoint; otherwise a signal ends it where it waits."""
        self.result: Any = None
        self.error: BaseException | None = None
        self.over = False
        self.request: Any = None
        """What it has submitted, until that is answered."""
        self._main = main
        self._states = states
        self._values = [state.take() for state in states]
        self._answer: Any = None
        self._continue, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._raised: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"member-{name}", daemon=True)
        self._started = False

    def submit(self, request: Any) -> Any:
        """Called by this member: have ``request`` computed together with those of the others, and return the answer.

        Raises:
            Exception: what computing it has raised.
        """
        self.request = request
        self._yield()
        answer, self._answer = self._answer, None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def pause(self) -> None:
        """Called by this member: let the others continue before it does."""
        self._yield()

    def answer(self, value: Any) -> None:
        """Answer what it has submitted. An exception is raised where it waits."""
        self.request, self._answer = None, value

    def stop(self, number: int, error: BaseException) -> None:
        """Send it a shutdown signal. One that cannot notice it itself gets ``error`` where it waits."""
        self.signal = self.signal or number
        if not self.stoppable:
            self._raised = error

    def proceed(self) -> None:
        """Called by the scheduler: run this member until it waits or ends."""
        before = [state.take() for state in self._states]
        for state, value in zip(self._states, self._values, strict=True):
            state.put(value)
        if self._started:
            self._continue.release()
        else:
            self._started = True
            self._thread.start()
        self._stopped.acquire()
        self._values = [state.take() for state in self._states]
        for state, value in zip(self._states, before, strict=True):
            state.put(value)

    def _yield(self) -> None:
        self._stopped.release()
        self._continue.acquire()
        if self._raised is not None:
            self.request = None
            raised, self._raised = self._raised, None
            raise raised

    def _run(self) -> None:
        _here.member = self
        try:
            self.result = self._main()
        except BaseException as error:
            self.error = error
        self.over = True
        self._stopped.release()


class Scheduler:
    """Runs members until they have ended; new ones can be added at any time by ``poll``."""

    def __init__(
        self, compute: Callable[[list[Member]], None], states: Sequence[ProcessState] = (), pack: Any = None
    ) -> None:
        """Create it.

        Args:
            compute: answers what these members have submitted.
            states: what every member has its own of.
            pack: what the members share.
        """
        self.members: dict[int, Member] = {}
        self._compute = compute
        self._states = states
        self._pack = pack

    def add(self, name: int, main: Callable[[], Any]) -> Member:
        """Add a member, which runs ``main`` from the next turn on."""
        member = self.members[name] = Member(name, main, self._states, self._pack)
        return member

    def turn(self) -> list[Member]:
        """Run every member until it waits, and compute what they have submitted; returns the members that have ended."""
        for member in list(self.members.values()):
            member.proceed()
        ended = [member for member in self.members.values() if member.over]
        for member in ended:
            del self.members[member.name]
        waiting = [member for member in self.members.values() if member.request is not None]
        if waiting:
            self._compute(waiting)
        return ended


def current() -> Member | None:
    """The member that this thread runs; None outside a pack."""
    return getattr(_here, "member", None)

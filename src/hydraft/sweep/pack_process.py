"""The process of a pack: runs the jobs that the launcher sends it, each in its own thread, and sends back their results. No torch."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import cloudpickle
from omegaconf import OmegaConf

from hydraft.launch.local.shutdown import Stopped
from hydraft.sweep import pack_states, pool_job
from hydraft.sweep.job_status import JobDied
from hydraft.sweep.pool_job import JobEnvironment, Task
from hydraft.system.imports import import_large
from hydraft.training.pack import scheduler
from hydraft.training.pack.scheduler import Member, ProcessState, Scheduler

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

ADD, STOP, CLOSE = "add", "stop", "close"
"""Messages to the pack: a pickled ``Task``; the number of a job and a signal for it; no more jobs will come."""

ENDED, PLACES = "ended", "places"
"""Messages from the pack: the number of a job and its pickled result; how many jobs it wants to run at the same time."""


LATE_SECONDS = 30.0
"""After the grace period: for a member that evaluates, and notices nothing until it waits for the others again."""


class Shared(Protocol):
    """What the members of a pack share."""

    def compute(self, members: list[Member]) -> None:
        """Answer what these members have submitted."""

    def places(self, default: int) -> int:
        """How many members it wants; ``default`` as long as it does not know better."""


def shared() -> tuple[Shared, Sequence[ProcessState]]:
    """The frozen base of a pack of runs, not loaded yet, and what libraries keep once a process; imports torch."""
    base = import_large("hydraft.training.pack.base")
    states = import_large("hydraft.training.pack.process_state")
    return base.Pack(), states.STATES


Make = Callable[[], tuple[Shared, Sequence[ProcessState]]]


def enter(channel: Connection, environment: JobEnvironment, sweep: bytes, log: str, places: int, make: Make) -> None:
    """Run the jobs that arrive through ``channel`` until it is closed, or a signal has ended them.

    Args:
        channel: the launcher's messages, and those to it.
        environment: of the process.
        sweep: a pickled ``Sweep``.
        log: file for what compiled code prints; what a job prints is in its own.
        places: the most jobs at the same time.
        make: makes what they share.
    """
    pool_job.prepare(environment)
    signals = _Signals()
    pool_job.to_file(Path(log))
    _Pack(channel, sweep, places, make, signals).run()
    sys.stdout.flush()
    sys.stderr.flush()


class _Signals:
    """The first signal to this process, and its end at the latest ``LATE_SECONDS`` after the grace period."""

    def __init__(self) -> None:
        self.number = 0
        """0 before it arrives."""
        self.grace = 0.0
        """The longest grace period of a member, in seconds."""
        signal.signal(signal.SIGALRM, lambda *_: os._exit(128 + self.number))
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self.number:
            self.number = number
            signal.setitimer(signal.ITIMER_REAL, self.grace + LATE_SECONDS)


class _Pack:
    """The members and their messages."""

    def __init__(self, channel: Connection, sweep: bytes, places: int, make: Make, signals: _Signals) -> None:
        self.channel, self.sweep, self.most, self.signals = channel, sweep, places, signals
        self.pack, states = make()
        self.scheduler = Scheduler(self.pack.compute, (*states, *pack_states.STATES), self.pack)
        self.closed = False
        self.told = 0
        self.grace: dict[int, float] = {}
        """By job: seconds after a signal in which it has to end."""
        self.stopped: dict[int, float] = {}
        """By job: when it got a signal."""

    def run(self) -> None:
        """Run members until there are none and no more will come."""
        members = self.scheduler.members
        while True:
            self._receive()
            if not members and (self.closed or self.signals.number):
                return
            self._signal()
            for member in self.scheduler.turn():
                self._send(ENDED, member.name, pool_job.packed(_result(member)))
            self._tell()

    def _receive(self) -> None:
        """Act on the messages that have come; without a member, wait for one."""
        while not self.closed and not self.signals.number:
            if self.scheduler.members and not self.channel.poll():
                return
            if not self.channel.poll(0.1):
                continue  # looks for a signal again
            try:
                kind, *values = self.channel.recv()
            except (EOFError, OSError):
                kind, values = CLOSE, []
            if kind == ADD:
                self._add(cloudpickle.loads(values[0]))
            elif kind == STOP:
                self._stop(*values)
            else:
                self.closed = True

    def _add(self, task: Task) -> None:
        grace = None if task.config is None else OmegaConf.select(task.config, "train.grace")
        self.grace[task.number] = 0.0 if grace is None else float(grace)
        self.signals.grace = max(self.grace.values())
        self.scheduler.add(task.number, lambda: self._main(task))

    def _main(self, task: Task) -> Any:
        """In the thread of a member: run the job."""
        member = scheduler.current()
        assert member is not None
        if member.signal:
            raise Stopped(member.signal)
        try:  # the sweep is read anew for each job, which changes Hydra's objects
            return pool_job.run(cloudpickle.loads(self.sweep), task, pack_states.print_to)
        finally:
            sys.stdout.flush()

    def _signal(self) -> None:
        """Pass a signal to this process on to every member, and end those whose time is over."""
        if self.signals.number:
            for name in list(self.scheduler.members):
                self._stop(name, self.signals.number)
        now = time.monotonic()
        for name, at in self.stopped.items():
            member = self.scheduler.members.get(name)
            if member is not None and now - at > self.grace[name]:
                member.stoppable = False
                member.stop(member.signal, Stopped(member.signal, "the grace period is over"))

    def _stop(self, name: int, number: int) -> None:
        """Send a signal to a member, once."""
        member = self.scheduler.members.get(name)
        if member is None or name in self.stopped:
            return
        self.stopped[name] = time.monotonic()
        member.stop(number, Stopped(number))

    def _send(self, kind: str, *values: Any) -> None:
        try:
            self.channel.send((kind, *values))
        except OSError:  # the launcher has ended, and the kernel is about to end this process
            self.closed = True

    def _tell(self) -> None:
        wanted = max(1, min(self.most, self.pack.places(self.most)))
        if wanted != self.told:
            self.told = wanted
            self._send(PLACES, wanted)


def _result(member: Member) -> Any:
    """The result of a member that has ended."""
    if member.error is None:
        return member.result
    if isinstance(member.error, Exception):
        return pool_job.failed(member.error)
    how = str(member.error) or type(member.error).__name__
    return pool_job.failed(JobDied(f"its run ended: {how}"))

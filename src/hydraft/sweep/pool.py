"""Runs jobs at the same time on this machine, each in a process forked from a server that has imported the libraries. No torch.

A job's ranks are forks of the job, so the libraries are imported once per sweep. Nothing of a job outlives it: no module state, no
CUDA context, no process. If the fork server cannot be used (``launch/local/fork_server.py``), jobs are spawned.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess, SpawnProcess
from typing import Any, Protocol

import cloudpickle
from hydra.core.utils import JobReturn

from hydraft.errors import RunStopped
from hydraft.launch.local import fork_server
from hydraft.launch.local.elastic import own_code_first
from hydraft.launch.local.rank import exit_failure
from hydraft.sweep import pool_job
from hydraft.sweep.job_status import JobDied
from hydraft.sweep.slots import Slot
from hydraft.system.hardware import Hardware

log = logging.getLogger(__name__)

OWN = "hydraft.sweep.preload"
"""Imported by the server before the modules of the launcher's ``preload``."""

ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Signals besides Ctrl-C that end a sweep; its jobs get the same one, and have ``train.grace`` to save a checkpoint."""


def method(preload: Sequence[str], machine: Hardware) -> str:
    """The start method of multiprocessing for jobs; waits until the server that ``warm`` started has imported its modules."""
    why = fork_server.unusable([OWN, *preload], machine)
    if why is None:
        return "forkserver"
    log.warning(f"Jobs are spawned and import the libraries themselves, since the fork server cannot be used: {why}")
    return "spawn"


def warm(preload: Sequence[str], machine: Hardware) -> None:
    """Start the fork server of the jobs; it imports in the background."""
    own_code_first()
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # read as libraries load: threads that spin starve the jobs beside them
    in_main = threading.current_thread() is threading.main_thread()
    before = (
        signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    )  # the server inherits it: Ctrl-C is not its business
    sys.stdout.flush()
    sys.stderr.flush()
    kept, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):  # nor is the screen, where libraries greet as they are imported
            os.dup2(nowhere, number)
        fork_server.start([OWN, *preload], machine)
    finally:
        for number, terminal in zip((1, 2), kept, strict=True):
            os.dup2(terminal, number)
        for handle in (*kept, nowhere):
            os.close(handle)
        if in_main:
            signal.signal(signal.SIGINT, before)


class Running:
    """A running job."""

    def __init__(self, slot: Slot, sweep: bytes, payload: bytes, method: str) -> None:
        self.slot = slot
        self.stopped = False
        self.response: bytes | None = None
        environment = pool_job.JobEnvironment(str(os.getcwd()), dict(os.environ), slot.cores, slot.gpus)  # noqa: PTH109
        self.channel, theirs = connection.Pipe(duplex=False)
        context: Any = multiprocessing.get_context(method)
        self.process: ForkServerProcess | SpawnProcess = context.Process(
            target=pool_job.enter, args=(theirs, environment, sweep, payload)
        )
        sys.stdout.flush()
        self.process.start()
        self.server = fork_server.process() if method == "forkserver" else None
        theirs.close()

    def ready(self) -> bool:
        """Whether it has ended; receives what it has sent so far."""
        over = not self.process.is_alive()
        with suppress(EOFError, OSError):
            if self.response is None and self.channel.poll():
                self.response = self.channel.recv_bytes()
        return over

    def waitables(self) -> list[int | Connection]:
        """Handles that become readable when it has sent something or ended."""
        return [self.process.sentinel, *([self.channel] if self.response is None else [])]

    def result(self) -> JobReturn:
        """Its result."""
        self.process.join()
        self.channel.close()
        if self.response is not None:
            returned: JobReturn = cloudpickle.loads(self.response)
            return returned
        code = self.process.exitcode or 0
        if code == fork_server.LOST and self.server is not None:
            lost = fork_server.ended("jobs", self.server)
            if lost is not None:
                return pool_job.failed(JobDied(lost.message))
        ended = "was " if code < 0 else ""
        return pool_job.failed(JobDied(f"its process {ended}{exit_failure(code).message}"))

    def signal(self, number: int) -> None:
        """Send its process a signal."""
        with suppress(ProcessLookupError):
            if self.process.pid is not None and self.process.is_alive():
                os.kill(self.process.pid, number)


class Source(Protocol):
    """A source of jobs."""

    def next(self) -> tuple[int, list[str], Any] | None:
        """A job's number, its overrides, and its config if that has been composed; None if there are no more for now."""

    def waits(self) -> bool:
        """After ``next`` has returned None while jobs run: whether it may return a job later."""

    def should_stop(self, number: int) -> bool:
        """Called regularly while a job runs: whether it should stop."""

    def ended(self, number: int, returned: JobReturn, stopped: bool) -> None:
        """Receives the result of a job; ``stopped``: whether ``should_stop`` ended it."""


class Batch:
    """A fixed list of jobs."""

    def __init__(self, jobs: Sequence[tuple[int, list[str], Any]]) -> None:
        self.waiting = deque(jobs)
        self.results: dict[int, JobReturn] = {}

    def next(self) -> tuple[int, list[str], Any] | None:
        """The next one in the list."""
        return self.waiting.popleft() if self.waiting else None

    def waits(self) -> bool:
        """Never."""
        return False

    def should_stop(self, number: int) -> bool:
        """Never."""
        return False

    def ended(self, number: int, returned: JobReturn, stopped: bool) -> None:
        """Keep the result."""
        self.results[number] = returned


def run(
    sweep: pool_job.Sweep, source: Source, slots: Sequence[Slot], method: str, poll_seconds: float | None = None
) -> None:
    """Run every job of ``source``, as many at the same time as there are slots.

    Args:
        sweep: what the jobs share.
        source: gives the jobs and receives their results.
        slots: the parts of the machine.
        method: the start method, from ``method``.
        poll_seconds: how often ``source.should_stop`` is called for running jobs; None for never.

    Raises:
        KeyboardInterrupt: a signal (``RunStopped``, if not Ctrl-C); it was passed on to the jobs, which have ended.
    """
    shared = cloudpickle.dumps(sweep)
    free, running, more = list(reversed(slots)), dict[int, Running](), True
    with _signals():
        try:
            while more or running:
                while more and free:
                    task = source.next()
                    if task is None:
                        more = bool(running) and source.waits()
                        break
                    running[task[0]] = Running(free.pop(), shared, cloudpickle.dumps(task), method)
                if running:
                    connection.wait([end for one in running.values() for end in one.waitables()], poll_seconds)
                for number, one in list(running.items()):
                    if one.ready():
                        free.append(running.pop(number).slot)
                        source.ended(number, one.result(), one.stopped)
                    elif poll_seconds is not None and not one.stopped and source.should_stop(number):
                        one.stopped = True
                        one.signal(signal.SIGTERM)
        except KeyboardInterrupt as error:
            _end(list(running.values()), error.signal if isinstance(error, RunStopped) else signal.SIGINT)
            raise
        except BaseException:
            _end(list(running.values()), signal.SIGKILL)
            raise


@contextmanager
def _signals() -> Iterator[None]:
    """Raise RunStopped, a KeyboardInterrupt, for the signals that end a sweep."""

    def stop(number: int, _: object) -> None:
        raise RunStopped(f"stopped by {signal.Signals(number).name}", number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    for number in ENDING:
        if number != signal.SIGHUP or before[number] is not signal.SIG_IGN:  # nohup
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(jobs: list[Running], number: int) -> None:
    """Pass the signal on and wait until the jobs have ended; a second signal kills them."""
    try:
        for one in jobs:
            one.signal(number)
        while alive := [one for one in jobs if not one.ready()]:
            connection.wait([channel for one in alive for channel in one.waitables()])
    except KeyboardInterrupt:
        pass
    for one in jobs:
        one.signal(signal.SIGKILL)
        one.process.join()

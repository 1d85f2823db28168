"""The processes of the pool, as the launcher sees them: one that runs a single job, and one that runs a pack of them. No torch."""

import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess, SpawnProcess
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.utils import JobReturn

from hydraft.launch.local import fork_server
from hydraft.launch.local.rank import exit_failure
from hydraft.sweep import pack_process, pool_job
from hydraft.sweep.job_status import JobDied
from hydraft.sweep.pack_process import Make
from hydraft.sweep.pool_job import Task
from hydraft.sweep.slots import Slot

UNTOLD = 4
"""Jobs that a pack is given before it has told how many it wants."""


@dataclass(frozen=True)
class Start:
    """What all processes of a launch are started with."""

    sweep: bytes
    """The pickled ``Sweep``."""
    method: str
    """The start method of multiprocessing."""
    folder: Path
    """The sweep's folder, for the logs of packs."""
    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    """Of the packs."""


class Running:
    """A process and its jobs."""

    pack: str | None = None
    """What its jobs have in common; None if it runs a single one."""

    def __init__(self, start: Start, slot: Slot, duplex: bool, enter: Callable[..., None], *arguments: Any) -> None:
        self.slot = slot
        self.jobs: dict[int, bool] = {}
        """Its jobs that have not ended, by number: whether they were stopped."""
        self.ended: list[tuple[int, JobReturn]] = []
        environment = pool_job.JobEnvironment(str(os.getcwd()), dict(os.environ), slot.cores, slot.gpus)  # noqa: PTH109
        self.channel, theirs = connection.Pipe(duplex)
        context: Any = multiprocessing.get_context(start.method)
        self.process: ForkServerProcess | SpawnProcess = context.Process(
            target=enter, args=(theirs, environment, start.sweep, *arguments)
        )
        sys.stdout.flush()
        self.process.start()
        self.server = fork_server.process() if start.method == "forkserver" else None
        theirs.close()
        self.heard: Connection | None = self.channel
        """The channel, until it is at its end."""

    @property
    def count(self) -> int:
        """Jobs that it runs."""
        return len(self.jobs)

    @property
    def room(self) -> int:
        """Jobs that it can be given now."""
        return 0

    def ready(self) -> bool:
        """Whether it has ended; receives what it has sent so far."""
        over = not self.process.is_alive()
        try:
            while self.heard is not None and self.heard.poll():
                self.receive(self.heard)
        except (EOFError, OSError):
            self.heard = None
        return over

    def receive(self, channel: Connection) -> None:
        """Receive a message."""
        raise NotImplementedError

    def add(self, task: Task) -> None:
        """Give it another job."""
        raise NotImplementedError

    def stop(self, number: int) -> None:
        """Have a job save a checkpoint and end."""
        raise NotImplementedError

    def waitables(self) -> list[int | Connection]:
        """Handles that become readable when it has sent something or ended."""
        return [self.process.sentinel, *([] if self.heard is None else [self.heard])]

    def take_ended(self, over: bool) -> list[tuple[int, JobReturn, bool]]:
        """Number and result of jobs that have ended since the last call, and whether they were stopped.

        Args:
            over: whether the process has ended, and with it all its jobs.
        """
        if over:
            self.process.join()
            self.channel.close()
            done = {number for number, _ in self.ended}
            left = [number for number in self.jobs if number not in done]
            self.ended += [(number, self._died()) for number in left]
        found = [(number, returned, self.jobs.pop(number)) for number, returned in self.ended]
        self.ended = []
        return found

    def signal(self, number: int) -> None:
        """Send the process a signal."""
        with suppress(ProcessLookupError):
            if self.process.pid is not None and self.process.is_alive():
                os.kill(self.process.pid, number)

    def _died(self) -> JobReturn:
        """The result of a job whose process has ended without one."""
        code = self.process.exitcode or 0
        if code == fork_server.LOST and self.server is not None:
            lost = fork_server.ended("jobs", self.server)
            if lost is not None:
                return pool_job.failed(JobDied(lost.message))
        ended = "was " if code < 0 else ""
        return pool_job.failed(JobDied(f"its process {ended}{exit_failure(code).message}"))


class Single(Running):
    """A process for one job."""

    def __init__(self, start: Start, slot: Slot, task: Task) -> None:
        super().__init__(start, slot, False, pool_job.enter, cloudpickle.dumps(task))
        self.jobs[task.number] = False
        self._number = task.number
        self._response: bytes | None = None

    def receive(self, channel: Connection) -> None:
        """Its result."""
        self._response, self.heard = channel.recv_bytes(), None

    def take_ended(self, over: bool) -> list[tuple[int, JobReturn, bool]]:
        """The job ends with its process."""
        if over and self._response is not None:
            self.ended = [(self._number, cloudpickle.loads(self._response))]
        return super().take_ended(over) if over else []

    def stop(self, number: int) -> None:
        """The process passes the signal on to the ranks."""
        self.jobs[number] = True
        self.signal(signal.SIGTERM)


class Pack(Running):
    """A process for several jobs, which come and go."""

    def __init__(self, start: Start, slot: Slot, key: str, places: int, asks: bool, make: Make) -> None:
        log = start.folder / f"pack-{next(start.numbers)}.log"
        super().__init__(start, slot, True, pack_process.enter, str(log), places, make)
        self.pack = key
        self.closed = False
        self._asks = asks
        self._places = min(places, UNTOLD) if asks else places

    @property
    def room(self) -> int:
        """Jobs that it can be given now."""
        return 0 if self.closed else self._places - self.count

    def add(self, task: Task) -> None:
        """Send it a job."""
        self.jobs[task.number] = False
        self._send(pack_process.ADD, cloudpickle.dumps(task))

    def stop(self, number: int) -> None:
        """Send it the signal for a job."""
        self.jobs[number] = True
        self._send(pack_process.STOP, number, int(signal.SIGTERM))

    def close(self) -> None:
        """Give it no more jobs; it ends after those that it has."""
        if not self.closed:
            self.closed = True
            self._send(pack_process.CLOSE)

    def receive(self, channel: Connection) -> None:
        """A result, or how many jobs it wants."""
        kind, *values = channel.recv()
        if kind == pack_process.ENDED:
            self.ended.append((values[0], cloudpickle.loads(values[1])))
        elif self._asks:
            self._places = values[0]

    def _send(self, *message: Any) -> None:
        with suppress(OSError):  # it has ended, which is found out by its exit code
            self.channel.send(message)

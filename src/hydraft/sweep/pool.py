"""Runs jobs at the same time on this machine, in processes forked from a server that has imported the libraries. No torch.

A job's ranks are forks of the job, so the libraries are imported once per sweep. Nothing of a job outlives it: no module state, no
CUDA context, no process. Jobs that can share a frozen base share a process (``pack_process.py``). If the fork server cannot be used (``launch/local/fork_server.py``), jobs are spawned.
"""

import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Protocol

import cloudpickle
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from hydraft.errors import RunStopped
from hydraft.sweep import placement, pool_job
from hydraft.sweep.pack_process import Make, shared
from hydraft.sweep.pool_job import Task
from hydraft.sweep.pool_process import Pack, Running, Single, Start
from hydraft.sweep.slots import Slot

ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Signals besides Ctrl-C that end a sweep; its jobs get the same one, and have ``train.grace`` to save a checkpoint."""


class Source(Protocol):
    """A source of jobs."""

    fixed: bool
    """Whether its jobs are known from the beginning, so that they can be taken before they start."""

    def next(self) -> Task | None:
        """A job; None if there are no more for now."""

    def waits(self) -> bool:
        """After ``next`` has returned None while jobs run: whether it may return a job later."""

    def may_start(self, number: int) -> bool:
        """Called when a job that ``next`` has returned is about to start; False to drop it."""

    def should_stop(self, number: int) -> bool:
        """Called regularly while a job runs: whether it should stop."""

    def ended(self, number: int, returned: JobReturn, stopped: bool) -> None:
        """Receives the result of a job; ``stopped``: whether ``should_stop`` ended it."""


class Batch:
    """A fixed list of jobs."""

    fixed = True

    def __init__(self, jobs: Sequence[Task]) -> None:
        self.waiting = deque(jobs)
        self.results: dict[int, JobReturn] = {}

    def next(self) -> Task | None:
        """The next one in the list."""
        return self.waiting.popleft() if self.waiting else None

    def waits(self) -> bool:
        """Never."""
        return False

    def may_start(self, number: int) -> bool:
        """Always."""
        return True

    def should_stop(self, number: int) -> bool:
        """Never."""
        return False

    def ended(self, number: int, returned: JobReturn, stopped: bool) -> None:
        """Keep the result."""
        self.results[number] = returned


@dataclass(frozen=True)
class Packing:
    """How jobs share processes."""

    places: Callable[[str], int] = lambda _: 1
    """By what jobs have in common (``Task.pack``): the most of them in one process; 1 if each has its own."""
    asks: bool = True
    """Whether a pack may want fewer once it has measured itself."""
    make: Make = shared
    """Makes what the members of a pack share, in its process."""


class _Pool:
    """The jobs that wait and the processes that run."""

    def __init__(self, source: Source, slots: Sequence[Slot], start: Start, packing: Packing) -> None:
        self.source, self.slots, self.start, self.packing = source, slots, start, packing
        self.free = list(reversed(slots))
        self.running: list[Running] = []
        self.waiting, self.more = placement.Waiting(), True

    def fill(self) -> None:
        """Start every job that can start now."""
        self._take()
        while (found := placement.choose(self.waiting, self.running, len(self.free), len(self.slots))) is not None:
            key, one = found
            task = self.waiting.pop(key)
            if self.source.may_start(task.number):
                if one is None:
                    self.running.append(self._process(task))
                else:
                    one.add(task)
            self._take()
        self._make_way()
        for one in self.running:
            if isinstance(one, Pack) and not one.jobs:
                one.close()

    def collect(self, polls: bool) -> None:
        """Report the jobs that have ended; if ``polls``, stop those that the source wants to stop."""
        for one in list(self.running):
            over = one.ready()
            for number, returned, stopped in one.take_ended(over):
                self.source.ended(number, returned, stopped)
            if over:
                self.running.remove(one)
                self.free.append(one.slot)
            elif polls:
                for number in [number for number, stopped in one.jobs.items() if not stopped]:
                    if self.source.should_stop(number):
                        one.stop(number)

    def _take(self) -> None:
        """Take jobs from the source: all of a list; of a search as many as can start now, and those that wait for their kind."""
        while self.more and (self.source.fixed or self._has_room()):
            task = self.source.next()
            if task is None:
                busy = bool(self.waiting) or any(one.jobs for one in self.running)
                self.more = busy and self.source.waits()
                return
            else:
                packed = task.pack is not None and self.packing.places(task.pack) > 1
                self.waiting.add(task if packed else task._replace(pack=None))

    def _has_room(self) -> bool:
        room = bool(self.free) or any(one.room > 0 for one in self.running)
        return room and len(self.waiting) < len(self.slots)

    def _process(self, task: Task) -> Running:
        slot = self.free.pop()
        if task.pack is None:
            return Single(self.start, slot, task)
        found = Pack(self.start, slot, task.pack, self.packing.places(task.pack), self.packing.asks, self.packing.make)
        found.add(task)
        return found

    def _make_way(self) -> None:
        """If jobs overtook one too often, the smallest pack takes no more, so that its slot gets free."""
        packs = [one for one in self.running if isinstance(one, Pack)]
        starved = self.waiting.starved()
        if starved and not self.free and len(packs) == len(self.running) and not any(one.closed for one in packs):
            others = [one for one in packs if one.pack not in starved]
            if others:
                min(others, key=lambda one: one.count).close()


def run(
    sweep: pool_job.Sweep,
    source: Source,
    slots: Sequence[Slot],
    start_method: str,
    poll_seconds: float | None = None,
    packing: Packing | None = None,
) -> None:
    """Run every job of ``source``, as many at the same time as there are slots, and packs in the same slot.

    Args:
        sweep: what the jobs share.
        source: gives the jobs and receives their results.
        slots: the parts of the machine.
        start_method: from ``method``.
        poll_seconds: how often ``source.should_stop`` is called for running jobs; None for never.
        packing: which jobs share a process; None for none.

    Raises:
        KeyboardInterrupt: a signal (``RunStopped``, if not Ctrl-C); it was passed on to the jobs, which have ended.
    """
    folder = Path(str(OmegaConf.select(sweep.config, "hydra.sweep.dir")))
    pool = _Pool(source, slots, Start(cloudpickle.dumps(sweep), start_method, folder), packing or Packing())
    with _signals():
        try:
            while True:
                pool.fill()
                if not pool.running:
                    return
                connection.wait([end for one in pool.running for end in one.waitables()], poll_seconds)
                pool.collect(poll_seconds is not None)
        except KeyboardInterrupt as error:
            _end(pool.running, error.signal if isinstance(error, RunStopped) else signal.SIGINT)
            raise
        except BaseException:
            _end(pool.running, signal.SIGKILL)
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

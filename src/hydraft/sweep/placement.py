"""Which process of the pool a job is given to: a new one, or a pack that has a free place. No torch."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from hydraft.sweep.pool_job import Task

PATIENCE = 16
"""How many jobs may overtake one that no running pack can take, before a pack takes no more of them."""


class Process(Protocol):
    """What decides whether a process can be given a job."""

    @property
    def pack(self) -> str | None:
        """What its jobs have in common; None if it runs a single job."""

    @property
    def count(self) -> int:
        """Jobs that it runs."""

    @property
    def room(self) -> int:
        """Jobs that it can be given now."""


Running = TypeVar("Running", bound=Process)


@dataclass
class Waiting:
    """Jobs that were taken from a source and have not started: a queue for each kind of process that they need."""

    queues: dict[str | None, deque[Task]] = field(default_factory=dict)
    overtaken: dict[str | None, int] = field(default_factory=dict)
    """How many jobs of other queues have started since the first of this one came to the front."""

    def __len__(self) -> int:
        return sum(map(len, self.queues.values()))

    def add(self, task: Task) -> None:
        """Add a job behind those of its kind."""
        self.queues.setdefault(task.pack, deque()).append(task)

    def kinds(self) -> list[str | None]:
        """The kinds that have waiting jobs, the one that waits longest first."""
        return sorted((key for key, queue in self.queues.items() if queue), key=lambda key: self.queues[key][0].number)

    def pop(self, key: str | None) -> Task:
        """The first job of a kind, which starts now."""
        task = self.queues[key].popleft()
        self.overtaken.pop(key, None)
        for other in self.kinds():
            if other != key and self.queues[other][0].number < task.number:
                self.overtaken[other] = self.overtaken.get(other, 0) + 1
        return task

    def starved(self) -> list[str | None]:
        """The kinds that were overtaken too often."""
        return [kind for kind in self.kinds() if self.overtaken.get(kind, 0) >= PATIENCE]


def shares(jobs: Mapping[str | None, int], slots: int) -> dict[str | None, int]:
    """How many of the ``slots`` each kind of job gets: in proportion to its ``jobs`` (the method of largest remainders).

    Each kind gets at least one, in the order of ``jobs``, as long as there are slots, and none gets more than it has jobs.
    """
    given = dict.fromkeys(jobs, 0)
    total = sum(jobs.values())
    quotas = {key: slots * count / total for key, count in jobs.items() if count}
    for key in list(quotas)[:slots]:
        given[key] = 1
    while sum(given.values()) < min(slots, total):
        open_ones = [key for key in quotas if given[key] < jobs[key]]
        if not open_ones:
            break
        given[max(open_ones, key=lambda key: quotas[key] - given[key])] += 1
    return given


def choose(
    waiting: Waiting, running: Sequence[Running], free: int, slots: int
) -> tuple[str | None, Running | None] | None:
    """The kind of the job that starts next, and the process that it is given to: None for a new one.

    Returns:
        None if no waiting job can start now.
    """
    counts = {key: len(waiting.queues[key]) for key in waiting.kinds()}
    for one in running:
        counts[one.pack] = counts.get(one.pack, 0) + one.count
    share = shares(counts, slots)
    for key in waiting.kinds():
        own = [one for one in running if one.pack == key]
        roomy = [one for one in own if one.room > 0 and key is not None]
        if free and (len(own) < share[key] or not roomy):
            return key, None
        if roomy:
            return key, min(roomy, key=lambda one: one.count)
    return None


def even(jobs: int, slots: int, most: int) -> int:
    """Places of each pack if ``jobs`` are spread over ``slots``: at most ``most``, and at least one."""
    return max(1, min(most, math.ceil(jobs / max(1, slots))))

"""A pack whose members submit numbers: what the pool does with jobs that share a process, without a model."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from hydraft.launch.local.shutdown import Stopped
from hydraft.training.pack import scheduler
from hydraft.training.pack.scheduler import Member, ProcessState


class Sums:
    """Answers what members have submitted with the sum of all, so that an answer tells who was there."""

    def __init__(self, wanted: int | None = None) -> None:
        self.wanted = wanted

    def compute(self, members: list[Member]) -> None:
        """Answer them."""
        total = sum(member.request for member in members)
        time.sleep(0.01)
        for member in members:
            member.answer((total, len(members)))

    def places(self, default: int) -> int:
        """``wanted``, if it is set."""
        return self.wanted or default


def make() -> tuple[Sums, Sequence[ProcessState]]:
    """A pack that wants as many members as it can get."""
    return Sums(), ()


def make_small() -> tuple[Sums, Sequence[ProcessState]]:
    """A pack that wants two members."""
    return Sums(2), ()


def task(config: DictConfig) -> dict[str, Any]:
    """A job: submits ``steps`` times, and tells who shared the passes, and where it ran."""
    print(f"job {config.job} prints")
    member = scheduler.current()
    if member is None:
        return {"pid": os.getpid(), "most": 1, "steps": config.steps}
    most, taken = 0, 0
    member.stoppable = bool(config.get("stoppable", True))
    for step in range(config.steps):
        if config.get("dies_at") == step:
            os.kill(os.getpid(), 9)
        if config.get("raises_at") == step:
            raise ValueError(f"job {config.job} fails")
        _, count = member.submit(config.job)
        most, taken = max(most, count), step + 1
        if member.signal:
            raise Stopped(member.signal)
    print(f"job {config.job} ends", file=sys.stderr)
    return {"pid": os.getpid(), "most": most, "steps": taken}

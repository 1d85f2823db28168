"""A run as a member of a pack: it trains in its thread of this process, instead of in ranks. No torch at module level."""

import traceback
from dataclasses import replace
from pathlib import Path
from typing import Self

from hydraft.config.schema import Config
from hydraft.errors import Failure, RankFailed
from hydraft.launch.local.shutdown import Preempted
from hydraft.system.imports import import_large
from hydraft.training.pack import scheduler

LOG = "job.log"
"""File in the run's folder for what it prints."""


class MemberShutdown:
    """Takes the place of ``ShutdownHandler``: the pack's process receives the signals and hands them to its members."""

    def __init__(self, member: scheduler.Member) -> None:
        self._member = member

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def number(self) -> int | None:
        """The first signal; None before it arrives."""
        return self._member.signal or None


def shutdown() -> MemberShutdown | None:
    """How this run is told of signals; None outside a pack."""
    member = scheduler.current()
    return None if member is None else MemberShutdown(member)


def start(config: Config, folder: Path) -> None:
    """Train the run in ``folder``.

    Raises:
        RankFailed: it failed.
        Preempted: it has saved a checkpoint and ended, because of a signal.
    """
    training = import_large("hydraft.training.pack.member")
    try:
        ended = training.train(config, folder)
    except Exception as error:
        traceback.print_exc()  # to the log; the launcher prints the cause on the terminal
        raise RankFailed(replace(Failure.from_exception(error), rank=0, log=folder / LOG)) from error
    if ended is not None:
        raise Preempted(ended.step, ended.signal)

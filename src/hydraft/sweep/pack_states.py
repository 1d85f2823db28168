"""What Python and Hydra keep once a process and each member of a pack must have its own of. No torch."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from omegaconf.basecontainer import BaseContainer

from hydraft.system import streams

LOGGERS = (None, "hydraft")
"""Loggers that a job changes: the root, which Hydra configures, and that of this package, which writes the run's log."""


class HydraObjects:
    """Hydra's singletons, such as the config of the job, and OmegaConf's resolvers."""

    def take(self) -> Any:
        return Singleton._instances, BaseContainer._resolvers

    def put(self, value: Any) -> None:
        Singleton._instances, BaseContainer._resolvers = value


class Streams:
    """What ``print`` writes to."""

    def take(self) -> Any:
        return sys.stdout, sys.stderr

    def put(self, value: Any) -> None:
        sys.stdout, sys.stderr = value


class Handlers:
    """The handlers and levels of ``LOGGERS``."""

    def take(self) -> Any:
        return [(list(logger.handlers), logger.level) for logger in map(logging.getLogger, LOGGERS)]

    def put(self, value: Any) -> None:
        for logger, (handlers, level) in zip(map(logging.getLogger, LOGGERS), value, strict=True):
            logger.handlers = handlers
            if logger.level != level:
                logger.setLevel(level)


STATES = (HydraObjects(), Streams(), Handlers())
"""For ``training/pack/scheduler.py``."""


def print_to(log: Path) -> None:
    """From now on this member prints to ``log``. What compiled code prints is in the log of the pack."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    text = streams.writer(handle, log.name, closefd=True)
    text.reconfigure(errors="replace", line_buffering=True)
    sys.stdout = sys.stderr = text

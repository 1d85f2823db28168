"""The imports of a sweep's jobs: done once, by the server that their processes are forked from. No torch.

They take longer than composing and checking the jobs, so they begin as soon as the command line shows that it is a sweep.
"""

import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from hydraft.errors import ConfigError
from hydraft.launch.local import fork_server
from hydraft.launch.local.elastic import own_code_first
from hydraft.system import hardware
from hydraft.system.hardware import Hardware

log = logging.getLogger(__name__)

OWN = "hydraft.sweep.preload"
"""Imported by the server before the modules of the launcher's ``preload``."""

PRELOAD = ("hydraft.launch.local.preload",)
"""The launcher's default ``preload``."""

SWEEP = ("-m", "--multirun", "hydra.mode=MULTIRUN")

OTHER = re.compile(r"-(?!m$|-multirun$)|\+*(mode=(?!train$)|hydra/launcher=|hydra\.launcher\.(?!pack=|jobs=))")
"""Arguments with which no job may be started, or not by the pool, or from another server."""


_early: list[str] = []
"""What the server that was started early imports; empty once a launcher has it."""


def start_early(arguments: Sequence[str]) -> None:
    """Start the server if a command with these arguments is a sweep that will most likely need it."""
    if any(one in SWEEP for one in arguments) and not any(OTHER.match(one) for one in arguments):
        with suppress(OSError, ConfigError):  # raised again where it is reported
            start(PRELOAD, hardware.detect())
            _early[:] = PRELOAD


def start_for(launcher: Any) -> None:
    """Start the server of a sweep's launcher. One that was started early is ended if the launcher needs none, or another.

    Raises:
        ConfigError: a setting of the launcher has no valid value.
    """
    warms = hasattr(launcher, "warm")
    if _early and (not warms or launcher.preload != _early):
        fork_server.stop()
    _early.clear()
    if warms:
        launcher.warm()


def method(preload: Sequence[str], machine: Hardware) -> str:
    """The start method of multiprocessing for jobs; waits until the server that ``start`` has started has imported its modules."""
    why = fork_server.unusable([OWN, *preload], machine)
    if why is None:
        return "forkserver"
    log.warning(f"Jobs are spawned and import the libraries themselves, since the fork server cannot be used: {why}")
    return "spawn"


def start(preload: Sequence[str], machine: Hardware) -> None:
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

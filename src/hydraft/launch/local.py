"""Ranks on this machine, under torch's elastic agent.

On a CPU they are forked from a server that has imported the stack once. With CUDA they are spawned: a library that
touched the driver while it was imported would break every fork.
"""

import json
import logging
import shutil
import signal
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING

from hydraft.hardware import Hardware
from hydraft.launch.rank import enter, error_file

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

SHUTDOWN_SECONDS = 10
"""From SIGTERM to SIGKILL, for a rank."""


class RankFailed(Exception):
    """A rank ended badly; ``cause`` is one line."""

    def __init__(self, rank: int, cause: str, log: Path) -> None:
        super().__init__(f"rank {rank}: {cause}")
        self.rank = rank
        self.cause = cause
        self.log = log


def start(folder: Path, ranks: int, hardware: Hardware) -> None:
    """Run ``ranks`` ranks of the run in ``folder`` and wait for all of them.

    Raises:
        RankFailed: the first rank that failed; the others have been ended.
        KeyboardInterrupt: Ctrl-C; the ranks have been ended.
    """
    method = "spawn" if hardware.gpus else "forkserver"
    if method == "forkserver":
        forkserver.set_forkserver_preload(["hydraft.launch.warm"])
        forkserver.ensure_running()  # it imports the stack while this process imports torch

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in logging.root.manager.loggerDict:  # failures are told by us, once; the traceback is in the rank's log
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    errors = tempfile.mkdtemp(prefix="hydraft-")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="localhost",
        max_restarts=0,
        start_method=method,
        logs_specs=DefaultLogsSpecs(log_dir=errors),
        shutdown_timeout=SHUTDOWN_SECONDS,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP",
    )
    try:
        elastic_launch(config, enter)(str(folder.resolve()))
    except ChildFailedError as error:
        raise _first(error.failures, folder) from None
    except SignalException as error:
        if error.sigval is signal.SIGINT:
            raise KeyboardInterrupt from None
        signal.raise_signal(error.sigval)
        raise
    finally:
        shutil.rmtree(errors, ignore_errors=True)


def _first(failures: "dict[int, ProcessFailure]", folder: Path) -> RankFailed:
    """The cause among the failures: a rank that was killed outright, else the one that raised first."""
    told = {}
    for rank in failures:
        file = error_file(folder, rank)
        if file.exists():
            told[rank] = json.loads(file.read_text())
            file.unlink()
    killed = [rank for rank, f in failures.items() if f.exitcode < 0 and f.exitcode != -signal.SIGTERM]
    if told and not killed:
        rank = min(told, key=lambda rank: told[rank]["time"])
        return RankFailed(rank, told[rank]["cause"], folder / f"rank-{rank}.log")
    rank = min(killed or failures)
    code = failures[rank].exitcode
    cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    if code == -signal.SIGKILL:
        cause += " (out of memory, if no one sent it)"
    return RankFailed(rank, cause, folder / f"rank-{rank}.log")

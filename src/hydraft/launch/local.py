"""Ranks on this machine, under torch's elastic agent.

On a CPU they are forked from a server that has imported the stack once. With CUDA they are spawned: a library that
touched the driver while it was imported would break every fork.
"""

import logging
import shutil
import signal
import tempfile
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING

from hydraft.hardware import Hardware
from hydraft.launch.rank import ended_by, enter, read_failures

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

SHUTDOWN_SECONDS = 10
"""From SIGTERM to SIGKILL, for a rank."""


class Stopped(BaseException):
    """SIGTERM or SIGHUP arrived; the ranks have been ended."""


class RankFailed(Exception):
    """A rank ended badly; ``cause`` is one line."""

    def __init__(self, rank: int, cause: str, log: Path) -> None:
        super().__init__(f"rank {rank}: {cause}")
        self.rank = rank
        self.cause = cause
        self.log = log


def start(folder: Path, ranks: int, hardware: Hardware, quiet: bool) -> None:
    """Run ``ranks`` ranks of the run in ``folder`` and wait for all of them.

    Raises:
        RankFailed: the first rank that failed; the others have been ended.
        KeyboardInterrupt: Ctrl-C; the ranks have been ended.
        Stopped: another signal.
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
    notes = tempfile.mkdtemp(prefix="hydraft-")
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
        logs_specs=DefaultLogsSpecs(log_dir=notes),
        shutdown_timeout=SHUTDOWN_SECONDS,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP",
    )
    try:
        elastic_launch(config, enter)(str(folder.resolve()), notes, quiet)
    except ChildFailedError as error:
        raise _first(error.failures, Path(notes), folder) from None
    except SignalException as error:
        if error.sigval is signal.SIGINT:
            raise KeyboardInterrupt from None
        raise Stopped from None
    finally:
        shutil.rmtree(notes, ignore_errors=True)


def _first(failures: "dict[int, ProcessFailure]", notes: Path, folder: Path) -> RankFailed:
    """The cause among the failures: a rank that was killed outright, else the one that raised first.

    The agent names one rank, and where one is killed its peers' broken connections may come first; so the ranks' own
    notes are asked too.
    """
    raised = read_failures(notes)
    killed = {rank for note in raised.values() for rank in note["gone"]} - raised.keys()
    killed |= {rank for rank, failure in failures.items() if failure.exitcode < 0}
    if raised and not killed:
        rank = min(raised, key=lambda rank: raised[rank]["time"])
        return RankFailed(rank, raised[rank]["cause"], folder / f"rank-{rank}.log")
    rank = min(killed or failures)
    code = failures[rank].exitcode if rank in failures else -signal.SIGKILL
    return RankFailed(rank, ended_by(code), folder / f"rank-{rank}.log")

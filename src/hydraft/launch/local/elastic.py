"""Starts ranks on this machine with torch's elastic agent: all ranks of a run, or those of one node.

Ranks are forked, each in hundredths of a second, from this process if it has imported the libraries, otherwise from a fork server.
If a fork could not use a GPU (``fork_server.py`` finds out), they are spawned.
"""

import inspect
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydraft.errors import Failure, RankFailed
from hydraft.launch.local import fork_server, hang, interface
from hydraft.launch.local.rank import enter, exit_failure, read_failures
from hydraft.launch.local.shutdown import Preempted, ShutdownHandler, Stopped
from hydraft.launch.local.watch import RankWatch
from hydraft.system import signals, source_tree
from hydraft.system.hardware import Hardware
from hydraft.training.rendezvous import Rendezvous

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig

logger = logging.getLogger(__name__)

LIBRARIES = "hydraft.launch.local.preload"
"""The module that imports what ranks need."""

SHUTDOWN_SECONDS = 10
"""From SIGTERM to SIGKILL, for a rank."""

JOIN_SECONDS = 300
"""Timeout of the rendezvous, after all nodes have reported that they are ready."""


@dataclass(frozen=True)
class NodeConfig:
    """A node among the nodes of a run; by default the only one."""

    nodes: int = 1
    node_rank: int = 0
    endpoint: str = "localhost:0"
    """Address and port of the rendezvous store, on the first node; a single node has none."""
    listen: str = ""
    """The only address of the first node at which the store listens; empty for all of them."""
    run_id: str = "hydraft"
    """The same on every node; before every key of the run in the store."""

    def agents(self) -> dict[str, Any]:
        """Arguments of torch's LaunchConfig: how the agents of the nodes find each other."""
        from hydraft.launch.local import rendezvous

        return {
            "min_nodes": self.nodes,
            "max_nodes": self.nodes,
            "run_id": self.run_id,
            "rdzv_endpoint": self.endpoint,
            "rdzv_backend": rendezvous.register(),
            "rdzv_configs": {"rank": self.node_rank, "timeout": JOIN_SECONDS, "listen": self.listen},
            **({"local_addr": "localhost"} if self.nodes == 1 else {}),
        }

    def ranks(self, notes: Path) -> Rendezvous:
        """How the ranks find each other; ``notes`` is a folder that only this user can enter."""
        if self.nodes == 1:
            return Rendezvous(file=str(notes / "store"))
        address, _, port = self.endpoint.rpartition(":")
        return Rendezvous(address=address, port=int(port), prefix=f"{self.run_id}/ranks")

    def environment(self) -> dict[str, str]:
        """Variables that are set in every rank: the network interface to the others."""
        return interface.environment() if self.nodes == 1 else interface.environment(self.endpoint)


@dataclass(frozen=True)
class LocalRanks:
    """The ranks of a run that this machine starts."""

    folder: Path
    """The run's folder."""
    notes: Path
    """An empty folder, where ranks leave process ids, heartbeats and failures."""
    count: int
    terminal: str | None = None
    """The device or pipe that rank 0 prints to; None for this process's stdout."""
    node: NodeConfig = NodeConfig()
    hang_timeout: float | None = None
    """Seconds without progress after which the ranks are ended; None if another process monitors them."""

    def log(self, rank: int) -> Path:
        """The log file of a rank."""
        return self.folder / f"rank-{rank}.log"


def own_code_first() -> None:
    """Have every process below this one import this working copy, whatever else is installed."""
    os.environ["PYTHONPATH"] = source_tree.own_code_first()


def start_fork_server(hardware: Hardware) -> None:
    """Start the server that ranks are forked from; it imports the libraries in the background."""
    own_code_first()
    os.environ.setdefault(fork_server.BY_NVML, "1")
    if LIBRARIES not in sys.modules:  # a process that was forked from such a server has imported them itself
        fork_server.start([LIBRARIES], hardware)


def start_method(hardware: Hardware) -> str:
    """The start method of multiprocessing for ranks; waits until the server has imported everything.

    Call it last before the ranks are started: a fork cannot use CUDA if this process initialises it after the check.
    """
    start_fork_server(hardware)
    if LIBRARIES in sys.modules:
        if not hardware.gpus or fork_server.forks_without_gpu() is None:
            return "fork"
        fork_server.start([LIBRARIES], hardware)
    why = fork_server.unusable([LIBRARIES], hardware)
    if why is None:
        return "forkserver"
    line = f"ranks are spawned, which takes some ten seconds more for each, since they cannot be forked: {why}"
    logger.warning(line)
    print(line, file=sys.stderr, flush=True)
    return "spawn"


def launch_config(hardware: Hardware, **settings: Any) -> "LaunchConfig":
    """The configuration of torch's elastic agent, with the start method.

    torch 2.11 has no ``shutdown_timeout``: its agent gives ranks 30 seconds.
    """
    from torch.distributed.launcher.api import LaunchConfig

    if "shutdown_timeout" in inspect.signature(LaunchConfig).parameters:
        settings["shutdown_timeout"] = SHUTDOWN_SECONDS
    config = LaunchConfig(**settings)  # counts GPUs
    config.start_method = start_method(hardware)
    return config


def start(ranks: LocalRanks, hardware: Hardware, shutdown: ShutdownHandler) -> None:
    """Start ``ranks`` on this machine and wait for all of them.

    Raises:
        RankFailed: the first rank that failed; the others have been ended.
        Preempted: a signal arrived, and the ranks have saved and exited.
        Stopped: a signal arrived, and the ranks have been ended at once.
    """
    start_fork_server(hardware)

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    from hydraft.launch.local import agent

    _silence_torch()
    config = launch_config(
        hardware,
        nproc_per_node=ranks.count,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(ranks.notes)),
        signals_to_handle="SIGQUIT",  # ``shutdown`` handles the others
        **ranks.node.agents(),
    )
    ranks.node.ranks(ranks.notes).write(ranks.notes)
    agent.register()
    arguments = str(ranks.folder.resolve()), str(ranks.notes), ranks.terminal, ranks.node.environment()
    failure: BaseException | None = None
    server = fork_server.process() if config.start_method == "forkserver" else None
    watch = RankWatch(ranks.notes, ranks.folder, ranks.count, ranks.node.nodes == 1, ranks.hang_timeout, server)
    agent.RankAgent.noticed = watch.noticed
    try:
        with watch, shutdown.forwarding(_forward_to(ranks), hang.RankMonitor(ranks.notes).kill):
            elastic_launch(config, enter)(*arguments)
    except ChildFailedError as error:
        interrupted = signals.interrupted_by(ranks.notes, error.failures)  # the agent has ended the others
        failure = RankFailed(_first(error.failures, ranks)) if interrupted is None else Stopped(interrupted)
    except SignalException as error:
        lost = None if watch.complete else RankFailed(_first({}, ranks))
        failure = lost if watch.interrupted else Stopped(error.sigval)
    except Stopped as error:
        failure = error
    if (saved := signals.early_exit(ranks.notes)) is not None:  # how the ranks end after that does not matter
        raise Preempted(*saved)
    if failure is not None:
        raise failure


def _silence_torch() -> None:
    """The launcher reports a failure itself, once, and the traceback is in the rank's log."""
    for name in logging.root.manager.loggerDict:
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _forward_to(ranks: LocalRanks) -> Callable[[int], bool]:
    return lambda number: signals.forward(ranks.notes, ranks.count, number)


def _first(failures: "dict[int, ProcessFailure]", ranks: LocalRanks) -> Failure:
    """The cause among the failures: a rank that hung or that ended without a note, otherwise the first that raised.

    The agent may see the effects first: errors of connections to a rank that has ended. So the notes of the ranks are read too.
    """
    for note in ("hung", "gone"):
        if (ranks.notes / note).exists():
            found = Failure.from_dict(json.loads((ranks.notes / note).read_text()))
            return replace(found, log=ranks.log(found.rank or 0))
    if any(failure.exitcode == fork_server.LOST for failure in failures.values()):
        killed = fork_server.ended("ranks")
        if killed is not None:
            return replace(killed, log=ranks.folder / "train.log")
    raised = read_failures(ranks.notes)
    before = {rank for note in raised.values() for rank in note.ended_before} - raised.keys()
    silent = before | {rank for rank, failure in failures.items() if rank not in raised or failure.exitcode < 0}
    if raised and not silent:
        rank = min(raised, key=lambda rank: raised[rank].time)
        return replace(raised[rank].failure, rank=rank, log=ranks.log(rank))
    codes = {rank: failures[rank].exitcode if rank in failures else None for rank in silent or {0}}
    # the agent has ended those that it does not name; an abort may be the effect of a lost connection
    rank = min(codes, key=lambda rank: (rank not in failures, rank not in before, codes[rank] == -signal.SIGABRT, rank))
    return replace(exit_failure(codes[rank]), rank=rank, log=ranks.log(rank))

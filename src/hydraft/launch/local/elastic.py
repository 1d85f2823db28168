"""Ranks on this machine, under torch's elastic agent: all of a run's, or one node's share.

They are forked, each in hundredths of a second, from this process where it has the stack in memory, else from a server that
has imported it once. Where a fork could not use a GPU (``launch.server`` finds out) they are spawned.
"""

import inspect
import json
import logging
import os
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydraft.errors import RankFailed
from hydraft.launch.local import fork_server, hang
from hydraft.launch.local.rank import ended_by, enter, read_failures
from hydraft.launch.local.shutdown import Preempted, Stopped, Wish
from hydraft.system import files, signals, source_tree
from hydraft.system.hardware import Hardware

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig

logger = logging.getLogger(__name__)

STACK = "hydraft.launch.local.preload"
"""The module that imports what ranks need."""

SHUTDOWN_SECONDS = 10
"""From SIGTERM to SIGKILL, for a rank."""

JOIN_SECONDS = 300
"""What the nodes of a run get to meet, once all have said that they are ready."""


@dataclass(frozen=True)
class Place:
    """A node among the nodes of a run."""

    nodes: int = 1
    node: int = 0
    endpoint: str = "localhost:0"
    """Where they meet, on the first node; port 0 is any free one, for a node that is alone."""
    name: str = "hydraft"
    """Of the run; the same on every node."""
    environment: dict[str, str] = field(default_factory=dict)
    """Set in every rank."""

    def rendezvous(self) -> dict[str, Any]:
        """For torch's LaunchConfig: the first node's ranks come first, so nodes that meet have their places already."""
        known: dict[str, Any] = {"min_nodes": self.nodes, "max_nodes": self.nodes, "run_id": self.name}
        known["rdzv_endpoint"] = self.endpoint
        if self.nodes == 1:
            return {**known, "rdzv_backend": "c10d", "local_addr": "localhost"}
        configs = {"rank": self.node, "timeout": JOIN_SECONDS}
        return {**known, "rdzv_backend": "static", "rdzv_configs": configs}


def own_code_first() -> None:
    """Have every process below this one import this working copy, whatever else is installed."""
    os.environ["PYTHONPATH"] = source_tree.own_code_first()


def warm(hardware: Hardware) -> None:
    """Start the server that ranks are forked from; it imports the stack while its caller does other things."""
    own_code_first()
    os.environ.setdefault(fork_server.BY_NVML, "1")
    if STACK not in sys.modules:  # a process that came from such a server has the stack itself
        fork_server.begin([STACK], hardware)


def method(hardware: Hardware) -> str:
    """multiprocessing's name of how ranks start, known when the server has imported all.

    Ask when this process has nothing more to do before it starts them: what it does to CUDA later is their loss.
    """
    warm(hardware)
    if STACK in sys.modules:
        if not hardware.gpus or fork_server.forks_without_gpu() is None:
            return "fork"
        fork_server.begin([STACK], hardware)
    why = fork_server.unusable([STACK], hardware)
    if why is None:
        return "forkserver"
    line = f"ranks are spawned, which takes each some ten seconds more, since a fork cannot be used: {why}"
    logger.warning(line)
    print(line, file=sys.stderr, flush=True)
    return "spawn"


def launch_config(hardware: Hardware, **settings: Any) -> "LaunchConfig":
    """torch's settings for its agent, with how ranks start.

    torch 2.11 does not know ``shutdown_timeout``: its agent gives ranks 30 seconds.
    """
    from torch.distributed.launcher.api import LaunchConfig

    if "shutdown_timeout" in inspect.signature(LaunchConfig).parameters:
        settings["shutdown_timeout"] = SHUTDOWN_SECONDS
    config = LaunchConfig(**settings)  # counts GPUs
    config.start_method = method(hardware)
    return config


def start(
    folder: Path,
    notes: Path,
    ranks: int,
    hardware: Hardware,
    wish: Wish,
    terminal: str | None = None,
    place: Place | None = None,
    hang_timeout: float | None = None,
) -> None:
    """Run this node's ``ranks`` ranks of the run in ``folder`` and wait for all of them.

    Args:
        folder: the run's folder.
        notes: an empty folder, where ranks leave their process ids, beats, and why they failed.
        ranks: how many, on this node.
        hardware: of this machine.
        wish: hears the signals that ask for an early end.
        terminal: a device or pipe that rank 0 shows itself on; None for this process's stdout.
        place: this node among others; alone where there is none.
        hang_timeout: seconds after which ranks that do not get on are ended; None where another watches.

    Raises:
        RankFailed: the first rank that failed; the others have been ended.
        Preempted: a signal asked for an early end, and all is saved.
        Stopped: a signal, and the ranks have been ended at once.
    """
    place = place or Place()
    warm(hardware)

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    for name in logging.root.manager.loggerDict:  # failures are told by us, once; the traceback is in the rank's log
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    config = launch_config(
        hardware,
        nproc_per_node=ranks,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(notes)),
        signals_to_handle="SIGQUIT",  # the others are for ``wish``
        **place.rendezvous(),
    )
    over = threading.Event()
    if hang_timeout is not None:
        threading.Thread(target=_end_a_hang, args=(folder, notes, hang_timeout, over), daemon=True).start()
    failure: BaseException | None = None
    try:
        with wish.passed_to(lambda number: signals.pass_on(notes, ranks, number), hang.Watch(notes).kill):
            elastic_launch(config, enter)(str(folder.resolve()), str(notes), terminal, place.environment)
    except ChildFailedError as error:
        asked = signals.ended_by(notes)
        failure = _first(error.failures, notes, folder) if asked is None else Stopped(asked)
    except SignalException as error:
        failure = Stopped(error.sigval)
    except Stopped as error:
        failure = error
    finally:
        over.set()
    if (left := signals.left(notes)) is not None:  # how a rank ends after that is no matter
        raise Preempted(*left)
    if failure is not None:
        raise failure


def _end_a_hang(folder: Path, notes: Path, timeout: float, over: threading.Event) -> None:
    """Kill the ranks when none of them gets on, and note which one stood still."""
    ranks = hang.Watch(notes)
    while not over.wait(1):
        if hang.hangs(ranks.status(), timeout):
            rank, cause = hang.verdict(ranks.stacks(folder))
            files.write_json(notes / "hung", {"rank": rank, "cause": cause})
            ranks.kill()
            return


def _first(failures: "dict[int, ProcessFailure]", notes: Path, folder: Path) -> RankFailed:
    """The cause among the failures: a rank that stood still or was killed, else the one that raised first.

    The agent names one rank, and where one is killed its peers' broken connections may come first; so the ranks' own
    notes are asked too.
    """
    if (notes / "hung").exists():
        hung = json.loads((notes / "hung").read_text())
        return RankFailed(hung["rank"], hung["cause"], folder / f"rank-{hung['rank'] or 0}.log", "hung")
    raised = read_failures(notes)
    killed = {rank for note in raised.values() for rank in note["gone"]} - raised.keys()
    killed |= {rank for rank, failure in failures.items() if failure.exitcode < 0}
    if raised and not killed:
        rank = min(raised, key=lambda rank: raised[rank]["time"])
        return RankFailed(rank, raised[rank]["cause"], folder / f"rank-{rank}.log")
    rank = min(killed or failures)
    code = failures[rank].exitcode if rank in failures else -signal.SIGKILL
    return RankFailed(rank, ended_by(code), folder / f"rank-{rank}.log", "killed")

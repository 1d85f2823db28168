"""Runs and monitors one rank under another launcher, as a child of the process that the launcher started. No torch."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from hydraft.config.schema import load_config
from hydraft.errors import EXIT_REFUSED, ConfigError, Failure
from hydraft.launch.external.environment import World
from hydraft.launch.external.store import DONE, FAILED, STOPPED, RendezvousStore
from hydraft.launch.local import hang, interface
from hydraft.launch.local.rank import exit_failure, read_failures
from hydraft.launch.local.shutdown import REPEAT_SECONDS
from hydraft.plan import swap_space
from hydraft.runs import consistency
from hydraft.system import hardware, signals, temporary
from hydraft.system.source_tree import own_code_first
from hydraft.training import deepspeed_ops

POLL_SECONDS = 0.2

RANK = "import sys; from hydraft.launch.local.rank import enter; enter(sys.argv[1], sys.argv[2], None, {})"

ELSEWHERE = "192.0.2.1:9"
"""An address that no machine has (RFC 5737): the route to it is the route to other machines."""


class ReceivedSignals:
    """Records the shutdown signals that this process receives, for the loop that monitors its rank."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.first_at = 0.0
        self.immediate = False
        """Whether there is no time to save: a second signal arrived, or SIGHUP."""
        for number in (*signals.SHUTDOWN_SIGNALS, signal.SIGHUP):
            signal.signal(number, self._record)

    def _record(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first, self.first_at = number, now
        elif number != signal.SIGUSR1 and now - self.first_at > REPEAT_SECONDS:
            self.immediate = True
        self.immediate = self.immediate or number == signal.SIGHUP

    def must_end(self, grace: float) -> bool:
        """Whether this process has to end now."""
        return self.first is not None and (self.immediate or time.monotonic() - self.first_at >= grace)


def run_rank(
    store: RendezvousStore, folder: Path, received: ReceivedSignals, hang_timeout: float, grace: float
) -> Failure | None:
    """Run this process's rank until it ends or another rank fails; then report how it ended.

    A signal is forwarded to the rank, which has ``grace`` seconds to save and exit.

    Returns:
        On rank 0, the failure of the rank that hangs, if none has made progress for ``hang_timeout`` seconds.

    Raises:
        StoreLost: the store is lost; the rank has been ended.
    """
    notes = temporary.make("notes")
    store.rendezvous().write(notes)
    log = folder / f"rank-{store.world.rank}.log"
    try:
        end = _run(store, folder, notes, received, HangDetector(store, notes, folder, hang_timeout), grace)
        _report(store, end, notes, log, received.first)
        return end.hung
    except ConfigError as error:
        _report_failure(store, EXIT_REFUSED, Failure.from_exception(error), log)
        return None
    finally:
        temporary.remove(notes)


@dataclass(frozen=True)
class RankEnd:
    """How the process of a rank ended."""

    code: int
    """Its exit code; negative: the signal that ended it."""
    by_itself: bool
    """Whether it was not ended from here."""
    hung: Failure | None
    """On rank 0, the failure of the rank that hangs."""


class HangDetector:
    """Reports to the store whether the rank makes progress; rank 0 finds the rank that the others wait for."""

    def __init__(self, store: RendezvousStore, notes: Path, folder: Path, timeout: float) -> None:
        self.store, self.monitor, self.folder, self.timeout = store, hang.RankMonitor(notes), folder, timeout
        self.reported = False

    def check(self) -> Failure | None:
        """On rank 0, the failure of the rank that hangs, if no rank makes progress."""
        rank, hung = self.store.world.rank, hang.is_hung(self.monitor.status(), self.timeout)
        if hung != self.reported:
            self.reported = hung
            self.store.report_hang(self.monitor.stacks(self.folder)[rank] if hung else {})
        ranks = self.store.hung_ranks() if hung and rank == 0 else {}
        if len(ranks) < self.store.world.size:
            return None
        failure = hang.diagnose(ranks)
        return replace(failure, log=self.folder / f"rank-{failure.rank or 0}.log")


def _run(
    store: RendezvousStore, folder: Path, notes: Path, received: ReceivedSignals, detector: HangDetector, grace: float
) -> RankEnd:
    """Start the rank and wait until it ends, or has to be ended.

    Raises:
        ConfigError: DeepSpeed's ops cannot be compiled on this machine.
    """
    command = [sys.executable, "-c", RANK, str(folder.resolve()), str(notes)]
    hung, forwarded = None, False
    with subprocess.Popen(command, env=_environment(store.world, folder)) as rank:
        try:
            while rank.poll() is None and not received.must_end(grace) and not store.has_failed() and hung is None:
                if received.first and not forwarded:
                    forwarded = signals.forward(notes, 1, received.first)
                    if not forwarded:
                        break
                with suppress(subprocess.TimeoutExpired):
                    rank.wait(POLL_SECONDS)
                hung = detector.check()
            by_itself = rank.poll() is not None and hung is None
            if by_itself and rank.returncode != 0 and received.must_end(grace):
                by_itself = False  # it failed since another rank was ended first, upon the same signal
        finally:
            rank.kill()
            rank.wait()
    return RankEnd(rank.returncode, by_itself, hung)


def _environment(world: World, folder: Path) -> dict[str, str]:
    """The environment variables of a rank. Those of accelerate are left out: the run's config determines what they would.

    Raises:
        ConfigError: DeepSpeed's ops cannot be compiled on this machine.
    """
    machine = hardware.detect()
    config = load_config(folder / "config.yaml")
    swap_space.check(config)
    deepspeed_ops.prepare(
        deepspeed_ops.needed(config, machine), machine
    )  # on each machine the first rank builds, and the others wait
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "FSDP_"))}
    own = {
        **_interface(world),
        **deepspeed_ops.environment(machine),
        **world.environment(),
        "PYTHONPATH": own_code_first(),
    }
    return {"OMP_WAIT_POLICY": "PASSIVE", **kept, **own}


def _interface(world: World) -> dict[str, str]:
    """The network interface to the other ranks; gloo, which sends CPU tensors with GPUs too, needs it."""
    if world.nodes == 1:
        return interface.environment()
    found = interface.environment(f"{world.address}:{world.port}")
    if found.get("GLOO_SOCKET_IFNAME") == "lo":  # on the machine of rank 0, whose name may resolve to loopback
        found = interface.environment(ELSEWHERE)
    return found


def _report(store: RendezvousStore, end: RankEnd, notes: Path, log: Path, received: int | None) -> None:
    """Report how the rank ended; ``received`` is the first signal that this process has received."""
    interrupted = signals.interrupted_by(notes)
    if (saved := signals.early_exit(notes)) is not None:  # how it ends after that does not matter
        store.report_end(DONE, **saved._asdict())
    elif end.by_itself and end.code == 0 and (notes / f"{store.world.rank}.done").exists():
        store.report_end(DONE)
    elif not end.by_itself or interrupted is not None or -end.code in (*signals.SHUTDOWN_SIGNALS, signal.SIGHUP):
        store.report_end(STOPPED, signal=interrupted or received or signal.SIGTERM)
    else:
        note = read_failures(notes).get(store.world.rank)
        _report_failure(store, end.code, note.failure if note else exit_failure(end.code), log)


def _report_failure(store: RendezvousStore, code: int, failure: Failure, log: Path) -> None:
    located = replace(failure, rank=store.world.rank, host=consistency.host(), log=log)
    store.report_end(FAILED, code=code, failure=located.to_dict())

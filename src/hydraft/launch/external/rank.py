"""One rank of a run that another launcher started, as the child of the process that was started. No torch here."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydraft.config.schema import load_config
from hydraft.errors import EXIT_REFUSED, ConfigError, RankFailed
from hydraft.launch.external.environment import World
from hydraft.launch.external.store import DONE, FAILED, STOPPED, Meeting
from hydraft.launch.local import hang
from hydraft.launch.local.rank import ended_by, read_failures
from hydraft.launch.local.shutdown import ECHO_SECONDS
from hydraft.launch.remote import rendezvous
from hydraft.runs import consistency
from hydraft.system import hardware, signals
from hydraft.system.source_tree import ROOT
from hydraft.training import deepspeed_ops

POLL_SECONDS = 0.2

RANK = "import sys; from hydraft.launch.local.rank import enter; enter(sys.argv[1], sys.argv[2], None, {})"


ELSEWHERE = "192.0.2.1:9"
"""An address of no one's (RFC 5737): the way there is the way out of this machine."""


class Signals:
    """Signals that ask this process to end are noted from now on, for the loop that watches."""

    def __init__(self) -> None:
        self.arrived: int | None = None
        """The first one."""
        self.at = 0.0
        self.again = False
        """Whether there is no more time: another came, or one that leaves none."""
        for number in (*signals.ASKING, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.arrived is None:
            self.arrived, self.at = number, now
        elif number != signal.SIGUSR1 and now - self.at > ECHO_SECONDS:
            self.again = True
        self.again = self.again or number == signal.SIGHUP

    def over(self, grace: float) -> bool:
        """Whether this process is to end now."""
        return self.arrived is not None and (self.again or time.monotonic() - self.at >= grace)


def watch_over(
    meeting: Meeting, folder: Path, received: Signals, hang_timeout: float, grace: float
) -> RankFailed | None:
    """Run this process's rank until it ends or another rank ends badly; then tell how it ended.

    A signal is passed on to the rank, which has ``grace`` seconds to save and leave.

    Returns:
        On rank 0, the rank that stood still, where none got on for ``hang_timeout`` seconds.

    Raises:
        Lost: the store is gone; the rank has been ended.
    """
    world, notes, hung = meeting.world, tempfile.mkdtemp(prefix="hydraft-"), None
    log = folder / f"rank-{world.rank}.log"
    stillness = Stillness(meeting, Path(notes), folder, hang_timeout)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", RANK, str(folder.resolve()), notes], env=_environment(world, folder)
        ) as rank:
            try:
                asked = False
                while rank.poll() is None and not received.over(grace) and not meeting.bad() and hung is None:
                    if received.arrived and not asked:
                        asked = signals.pass_on(Path(notes), 1, received.arrived)
                        if not asked:
                            break
                    with suppress(subprocess.TimeoutExpired):
                        rank.wait(POLL_SECONDS)
                    hung = stillness.look()
                by_itself = rank.poll() is not None and hung is None
            finally:
                rank.kill()
                rank.wait()
        number = signals.ended_by(Path(notes)) or received.arrived or signal.SIGTERM
        meeting.tell(**_ending(rank.returncode, by_itself, Path(notes), log, world.rank, number))
    except ConfigError as error:
        meeting.tell(FAILED, code=EXIT_REFUSED, cause=f"ConfigError: {error}", log=str(log), host=consistency.host())
    finally:
        shutil.rmtree(notes, ignore_errors=True)
    return hung


class Stillness:
    """Whether a rank gets on: told to the others, among whom rank 0 finds the one that all wait for."""

    def __init__(self, meeting: Meeting, notes: Path, folder: Path, timeout: float) -> None:
        self.meeting, self.watch, self.folder, self.timeout = meeting, hang.Watch(notes), folder, timeout
        self.told = False

    def look(self) -> RankFailed | None:
        """The rank that stands still, on rank 0 and where none of them gets on."""
        rank, still = self.meeting.world.rank, hang.hangs(self.watch.status(), self.timeout)
        if still != self.told:
            self.told = still
            self.meeting.stand(self.watch.stacks(self.folder)[rank] if still else {})
        standing = self.meeting.standing() if still and rank == 0 else {}
        if len(standing) < self.meeting.world.size:
            return None
        stuck, cause = hang.verdict(standing)
        return RankFailed(stuck, cause, self.folder / f"rank-{stuck or 0}.log", "hung")


def _environment(world: World, folder: Path) -> dict[str, str]:
    """A rank's variables. Those of accelerate are left out: the run's config says what they would.

    Raises:
        ConfigError: DeepSpeed's ops cannot be compiled on this machine.
    """
    machine = hardware.detect()
    needed = deepspeed_ops.needed(load_config(folder / "config.yaml"), machine)
    deepspeed_ops.prepare(needed, machine)  # on each machine the first builds, the others wait
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "FSDP_"))}
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    own = {**_interface(world), **deepspeed_ops.environment(machine), **world.environment(), "PYTHONPATH": path}
    return {"OMP_WAIT_POLICY": "PASSIVE", **kept, **own}


def _interface(world: World) -> dict[str, str]:
    """What gloo needs, which with GPUs too carries objects and what lies in main memory: the interface to other machines."""
    if world.nodes == 1:
        return {}
    found = rendezvous.environment(f"{world.address}:{world.port}")
    if found.get("GLOO_SOCKET_IFNAME") == "lo":  # on the machine of rank 0, whose name may be loopback's
        found = rendezvous.environment(ELSEWHERE)
    return found


def _ending(code: int, by_itself: bool, notes: Path, log: Path, rank: int, number: int) -> dict[str, Any]:
    """What to tell of a rank's end; ``number`` is the signal that would have been the reason."""
    if (left := signals.left(notes)) is not None:  # how it ends after that is no matter
        return {"status": DONE, **left._asdict()}
    if by_itself and code == 0:
        return {"status": DONE}
    if not by_itself or signals.ended_by(notes) is not None or -code in (*signals.ASKING, signal.SIGHUP):
        return {"status": STOPPED, "number": number}
    note = read_failures(notes).get(rank)
    cause = note["cause"] if note else ended_by(code)
    return {"status": FAILED, "code": code, "cause": cause, "log": str(log), "host": consistency.host()}

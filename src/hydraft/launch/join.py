"""Ranks that another launcher started: rank 0 composes, checks and makes the run's folder; every rank runs what it decided.

The process that the launcher started keeps watch, and its rank is its child. So however a rank ends, someone is left to
tell why, and rank 0 has it in ``result.json`` before any launcher begins to kill. No torch at module level.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydraft import hardware, ops, rundir
from hydraft.cli import EXIT_REFUSED
from hydraft.config import ROOT, ConfigError, load_config
from hydraft.launch import world as worlds
from hydraft.launch.lifeline import die_with_parent
from hydraft.launch.local import SHUTDOWN_SECONDS, RankFailed, Stopped
from hydraft.launch.meeting import DONE, FAILED, STOPPED, Lost, Meeting
from hydraft.launch.rank import ended_by, read_failures
from hydraft.launch.world import World

POLL_SECONDS = 0.2
LAST_WORDS_SECONDS = 10
"""How long rank 0 waits for the others to say how they ended, once one has not ended well."""
SILENT = "ended without a word (killed, or its machine is gone)"
RANK = "import sys; from hydraft.launch.rank import enter; enter(sys.argv[1], sys.argv[2], False)"

_meetings: list[Meeting] = []
"""Rank 0's, from ``enter`` to ``start``; empty where no other launcher is."""


class Signals:
    """SIGTERM, SIGINT and SIGHUP are noted from now on, for the loop that watches; the process ends soon after one."""

    def __init__(self) -> None:
        self.arrived: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.arrived = self.arrived or number


def enter(compose: Callable[[], int]) -> int:
    """The command itself: ``compose`` where a person started it or this is rank 0; the other ranks wait for rank 0's word.

    Returns:
        The exit code, the same on every rank.
    """
    try:
        world = worlds.find()
        if world is None:
            return compose()
        sys.argv[1:] = re.sub(r"(^|\0)--local[-_]rank(=|\0)\d+(?=\0|$)", "", "\0".join(sys.argv[1:])).split("\0")
        sys.argv[1:] = [word for word in sys.argv[1:] if word]
        if world.starter != "RANK":  # a person's shell may end before the run does
            die_with_parent(signal.SIGTERM)
        meeting = Meeting(world)
    except ConfigError as error:
        return _refuse(str(error))
    except Lost as error:
        print(error, file=sys.stderr)
        return 1
    return _lead(meeting, compose) if world.rank == 0 else _follow(meeting)


def _refuse(why: str) -> int:
    print(f"{Path(sys.argv[0]).name}: {why}", file=sys.stderr)
    return EXIT_REFUSED


def _lead(meeting: Meeting, compose: Callable[[], int]) -> int:
    """Rank 0: compose and run; the others hear the exit code last."""
    _meetings.append(meeting)
    code = 1
    try:
        if {"-m", "--multirun"} & set(sys.argv[1:]):
            better = worlds.sweep_command(sys.argv[1:], meeting.world)
            code = _refuse(f"-m under another launcher would run the whole sweep on every rank: type {better}")
        else:
            code = compose()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        with suppress(Lost):
            if meeting.word() is None:
                meeting.announce(exit=code)
            meeting.close(code)
    return code


def start(folder: Path) -> bool:
    """Run rank 0 of the run in ``folder`` and wait for all ranks, where another launcher started them; else False.

    Raises:
        RankFailed: the rank that failed first; the others have been ended.
        KeyboardInterrupt: Ctrl-C; the ranks have been ended.
        Stopped: another signal.
    """
    if not _meetings:
        return False
    meeting, signals = _meetings[0], Signals()
    print(worlds.say(meeting.world), flush=True)
    try:
        meeting.announce(folder=str(folder.resolve()), config=(folder / "config.yaml").read_text())
        _watch(meeting, folder, signals)
        while len(meeting.ends()) < meeting.world.size and not meeting.bad():
            if signals.arrived:
                meeting.tell(STOPPED)
            time.sleep(POLL_SECONDS)
        failure = _blame(meeting, folder) if meeting.bad() else None
    except Lost:
        failure = RankFailed(0, "the launcher is gone", folder / "rank-0.log")
    if signals.arrived == signal.SIGINT and failure is None:
        raise KeyboardInterrupt
    if failure is not None and not (signals.arrived and failure.cause == "the launcher is gone"):
        raise failure
    if failure is not None or signals.arrived or meeting.bad():
        raise Stopped
    return True


def _blame(meeting: Meeting, folder: Path) -> RankFailed | None:
    """The rank whose end was the cause: one that was killed, one that is silent, else the first that raised; or none was."""
    begun = time.monotonic()
    ranks = set(range(meeting.world.size))
    while silent := ranks - meeting.ends().keys():
        if time.monotonic() - begun > LAST_WORDS_SECONDS or all(map(meeting.is_dead, silent)):
            break
        time.sleep(POLL_SECONDS)
    failed = {rank: end for rank, end in meeting.ends().items() if end["status"] == FAILED}
    killed = {rank: end for rank, end in failed.items() if end["code"] < 0 and end["code"] != -signal.SIGABRT}
    if silent and not killed:
        return RankFailed(min(silent), SILENT, folder / f"rank-{min(silent)}.log")
    first = min(killed or failed, key=lambda rank: failed[rank]["time"], default=None)
    return None if first is None else RankFailed(first, failed[first]["cause"], Path(failed[first]["log"]))


def _follow(meeting: Meeting) -> int:
    """Any other rank: wait for rank 0's word, do it, and end with rank 0's code."""
    signals, folder = Signals(), None
    try:
        while (word := meeting.word()) is None:
            if signals.arrived:
                return 128 + signals.arrived
            time.sleep(POLL_SECONDS / 4)
        if "folder" in word:
            folder = _reachable(Path(word["folder"]), word["config"], meeting.world)
            _watch(meeting, folder, signals)
        return _hear(meeting, signals)
    except Lost:
        pass
    if signals.arrived:
        return 128 + signals.arrived
    if folder is not None:
        _speak_for_rank_0(folder, meeting.world)
    return 1


def _hear(meeting: Meeting, signals: Signals) -> int:
    """Wait for rank 0 to say that it is over, as long as it may still be at work."""
    late: float | None = None
    while (code := meeting.over()) is None:
        if late is None and (signals.arrived or meeting.bad()):
            late = time.monotonic() + 2 * LAST_WORDS_SECONDS
            if not meeting.bad():
                meeting.tell(STOPPED)
        if late is not None and (time.monotonic() > late or meeting.is_dead(0)):
            raise Lost("rank 0")
        time.sleep(POLL_SECONDS / 4)
    meeting.leave()
    return code


def _speak_for_rank_0(folder: Path, world: World) -> None:
    """Rank 0 is gone: whoever sees its folder writes how the run ended; all of them would write the same."""
    result = folder / "result.json"
    if result.exists() or not (folder / "plan.json").exists():
        return
    error = {"rank": 0, "cause": SILENT, "log": "rank-0.log"}
    with suppress(OSError):
        rundir.write_json(result, {"status": "failed", "ended": time.time(), "error": error})
    if world.rank == 1:
        print(f"rank 0 failed: {SILENT}\n  its log: {folder / 'rank-0.log'}", file=sys.stderr)


def _reachable(folder: Path, config: str, world: World) -> Path:
    """The run's folder where this machine sees it, else one of this rank's own with the same config in it."""
    with suppress(OSError):
        if (folder / "config.yaml").read_text() == config:
            return folder
    own = Path(tempfile.mkdtemp(prefix=f"hydraft-{folder.name}-rank-{world.rank}-"))
    rundir.write_text(own / "config.yaml", config)
    return own


def _watch(meeting: Meeting, folder: Path, signals: Signals) -> None:
    """Run this process's rank until it ends, a signal comes or another rank ends badly; then tell how it ended.

    Raises:
        Lost: the store is gone; the rank has been ended.
    """
    world, notes = meeting.world, tempfile.mkdtemp(prefix="hydraft-")
    log = folder / f"rank-{world.rank}.log"
    try:
        with subprocess.Popen(
            [sys.executable, "-c", RANK, str(folder.resolve()), notes], env=_environment(world, folder)
        ) as rank:
            try:
                while rank.poll() is None and not signals.arrived and not meeting.bad():
                    with suppress(subprocess.TimeoutExpired):
                        rank.wait(POLL_SECONDS)
                by_itself = rank.poll() is not None and not signals.arrived
            finally:
                _end(rank)
        meeting.tell(**_ending(rank.returncode, by_itself, Path(notes), log, world.rank))
    except ConfigError as error:
        meeting.tell(FAILED, code=EXIT_REFUSED, cause=f"ConfigError: {error}", log=str(log))
    finally:
        shutil.rmtree(notes, ignore_errors=True)


def _environment(world: World, folder: Path) -> dict[str, str]:
    """A rank's variables. Those of accelerate are left out: the run's config says what they would.

    Raises:
        ConfigError: DeepSpeed's ops cannot be compiled on this machine.
    """
    machine = hardware.detect()
    ops.prepare(
        ops.needed(load_config(folder / "config.yaml"), machine), machine
    )  # rank 0's machine has them; another may not
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "FSDP_"))}
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    return {"OMP_WAIT_POLICY": "PASSIVE", **kept, **ops.environment(machine), **world.environment(), "PYTHONPATH": path}


def _end(rank: "subprocess.Popen[bytes]") -> None:
    rank.terminate()
    try:
        rank.wait(SHUTDOWN_SECONDS)
    except subprocess.TimeoutExpired:
        rank.kill()
        rank.wait()


def _ending(code: int, by_itself: bool, notes: Path, log: Path, rank: int) -> dict[str, Any]:
    if by_itself and code == 0:
        return {"status": DONE}
    if not by_itself or -code in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return {"status": STOPPED}
    note = read_failures(notes).get(rank)
    return {"status": FAILED, "code": code, "cause": note["cause"] if note else ended_by(code), "log": str(log)}

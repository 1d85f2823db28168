"""Ranks that another launcher started: rank 0 composes, checks and makes the run's folder; every rank runs what it decided.

The process that the launcher started keeps watch, and its rank is its child. So however a rank ends, someone is left to
tell why, and rank 0 has it in ``result.json`` before any launcher begins to kill. No torch at module level.
"""

import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hydraft.config.schema import Config, saved
from hydraft.errors import EXIT_REFUSED, ConfigError, RankFailed
from hydraft.launch.external import environment as worlds
from hydraft.launch.external.environment import World
from hydraft.launch.external.rank import POLL_SECONDS, Signals, watch_over
from hydraft.launch.external.store import FAILED, STOPPED, Lost, Meeting
from hydraft.launch.local.shutdown import Preempted, Stopped, Wish
from hydraft.system import files
from hydraft.system.parent_death import die_with_parent
from hydraft.system.signals import ASKING

LAST_WORDS_SECONDS = 10
"""How long rank 0 waits for the others to say how they ended, once one has not ended well."""
SILENT = "ended without a word (killed, or its machine is gone)"

_meetings: list[Meeting] = []
"""Rank 0's, from ``enter`` to ``start``."""


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
        for number in ASKING:
            signal.signal(number, signal.SIG_IGN)
        with suppress(Lost):
            if meeting.word() is None:
                meeting.announce(exit=code)
            meeting.close(code)
    return code


def start(config: Config, folder: Path, wish: Wish) -> None:
    """Run rank 0 of ``config``, saved in ``folder``, and wait for all ranks.

    Raises:
        RankFailed: the rank that failed first; the others have been ended.
        Preempted: a signal asked for an early end, and all is saved.
        Stopped: a signal, and the ranks have been ended at once.
    """
    meeting, signals, grace = _meetings[0], Signals(), wish.grace
    print(worlds.say(meeting.world), flush=True)
    try:
        timeout = config.cluster.hang_timeout
        meeting.announce(folder=str(folder.resolve()), config=saved(config), hang_timeout=timeout, grace=grace)
        failure = watch_over(meeting, folder, signals, timeout, grace)
        while failure is None and len(meeting.ends()) < meeting.world.size and not meeting.bad():
            if signals.over(grace):
                meeting.tell(STOPPED, number=signals.arrived)
            time.sleep(POLL_SECONDS)
        if failure is None and meeting.bad():
            failure = _blame(meeting, folder)
    except Lost:
        if signals.arrived:
            raise Stopped(signals.arrived) from None
        failure = RankFailed(0, "the launcher is gone", folder / "rank-0.log")
    if failure is not None:
        raise failure
    ends = meeting.ends()
    if "step" in ends[0]:
        raise Preempted(ends[0]["step"], ends[0]["number"])
    if meeting.bad():
        raise Stopped(next(end["number"] for end in ends.values() if end["status"] == STOPPED))


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
        return RankFailed(min(silent), SILENT, folder / f"rank-{min(silent)}.log", "killed")
    first = min(killed or failed, key=lambda rank: failed[rank]["time"], default=None)
    if first is None:
        return None
    host = failed[first]["host"] if meeting.world.nodes > 1 else None
    return RankFailed(first, failed[first]["cause"], Path(failed[first]["log"]), host=host)


def _follow(meeting: Meeting) -> int:
    """Any other rank: wait for rank 0's word, do it, and end with rank 0's code."""
    signals, folder, grace = Signals(), None, 0.0
    try:
        while (word := meeting.word()) is None:
            if signals.arrived:
                return 128 + signals.arrived
            time.sleep(POLL_SECONDS / 4)
        if "folder" in word:
            folder = _reachable(Path(word["folder"]), word["config"], meeting.world)
            grace = word["grace"]
            watch_over(meeting, folder, signals, word["hang_timeout"], grace)
        return _hear(meeting, signals, grace)
    except Lost:
        pass
    if signals.arrived:
        return 128 + signals.arrived
    if folder is not None:
        _speak_for_rank_0(folder, meeting.world)
    return 1


def _hear(meeting: Meeting, signals: Signals, grace: float) -> int:
    """Wait for rank 0 to say that it is over, as long as it may still be at work."""
    late: float | None = None
    while (code := meeting.over()) is None:
        if late is None and (signals.over(grace) or meeting.bad()):
            late = time.monotonic() + 2 * LAST_WORDS_SECONDS
            if not meeting.bad():
                meeting.tell(STOPPED, number=signals.arrived)
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
        files.write_json(result, {"status": "failed", "ended": time.time(), "error": error})
    if world.rank == 1:
        print(f"rank 0 failed: {SILENT}\n  its log: {folder / 'rank-0.log'}", file=sys.stderr)


def _reachable(folder: Path, config: str, world: World) -> Path:
    """The run's folder where this machine sees it, else one of this rank's own with the same config in it."""
    with suppress(OSError):
        if (folder / "config.yaml").read_text() == config:
            return folder
    own = Path(tempfile.mkdtemp(prefix=f"hydraft-{folder.name}-rank-{world.rank}-"))
    files.write_text(own / "config.yaml", config)
    return own

"""Coordinates the ranks of a run that another launcher started.

Rank 0 composes the config, checks it and creates the run's folder; every rank then runs the same config. Each process that the
launcher started monitors its rank, which is its child: however the rank ends, the process reports why, and rank 0 writes the result
before the launcher kills anything. No torch at module level.
"""

import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hydraft.config.schema import Config, saved
from hydraft.errors import EXIT_REFUSED, ConfigError, Failure, FailureReason, RankFailed
from hydraft.launch.external import environment
from hydraft.launch.external.environment import World
from hydraft.launch.external.rank import POLL_SECONDS, ReceivedSignals, run_rank
from hydraft.launch.external.store import FAILED, STOPPED, RendezvousStore, StoreLost
from hydraft.launch.local.shutdown import Preempted, ShutdownHandler, Stopped
from hydraft.system import files, program, temporary
from hydraft.system.parent_death import die_with_parent
from hydraft.system.signals import SHUTDOWN_SIGNALS

REPORT_SECONDS = 10
"""How long rank 0 waits for the others to report how they ended, once one has failed."""
NO_REPORT = "ended without a report (killed, or its machine was lost)"


def enter(compose: Callable[[RendezvousStore | None], int]) -> int:
    """Run the command: ``compose`` if no other launcher started it, or on rank 0; the other ranks wait for rank 0's instructions.

    Args:
        compose: gets the store under another launcher, otherwise None; returns the exit code.

    Returns:
        The exit code, the same on every rank.
    """
    try:
        environment.forget_empty()
        world = environment.detect()
        if world is None:
            return compose(None)
        sys.argv[1:] = re.sub(r"(^|\0)--local[-_]rank(=|\0)\d+(?=\0|$)", "", "\0".join(sys.argv[1:])).split("\0")
        sys.argv[1:] = [word for word in sys.argv[1:] if word]
        if world.starter != "RANK":  # variables set by hand: the user's shell may end before the run does
            die_with_parent(signal.SIGTERM)
        store = RendezvousStore(world)
    except ConfigError as error:
        return _refuse(str(error))
    except StoreLost as error:
        print(error, file=sys.stderr)
        return 1
    return _lead(store, compose) if world.rank == 0 else _follow(store)


def _refuse(why: str) -> int:
    print(f"{program.name()}: {why}", file=sys.stderr)
    return EXIT_REFUSED


def _lead(store: RendezvousStore, compose: Callable[[RendezvousStore | None], int]) -> int:
    """Rank 0: compose and run, then publish the exit code."""
    code = 1
    try:
        if {"-m", "--multirun"} & set(sys.argv[1:]):
            better = environment.sweep_command(sys.argv[1:], store.world)
            code = _refuse(f"-m under another launcher would run the whole sweep on every rank: type {better}")
        else:
            code = compose(store)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        for number in SHUTDOWN_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        with suppress(StoreLost):
            if store.instructions() is None:
                store.publish(exit=code)
            store.close(code)
    return code


def start(config: Config, folder: Path, shutdown: ShutdownHandler, store: RendezvousStore) -> None:
    """Run rank 0 of ``config``, saved in ``folder``, and wait for all ranks.

    Raises:
        RankFailed: the rank that failed first; the others have been ended.
        Preempted: a signal arrived, and the ranks have saved and exited.
        Stopped: a signal arrived, and the ranks have been ended at once.
    """
    received, grace = ReceivedSignals(), shutdown.grace
    print(environment.describe(store.world), flush=True)
    try:
        timeout = config.cluster.hang_timeout
        store.publish(folder=str(folder.resolve()), config=saved(config), hang_timeout=timeout, grace=grace)
        failure = run_rank(store, folder, received, timeout, grace)
        while failure is None and len(store.ends()) < store.world.size and not store.has_failed():
            if received.must_end(grace):
                store.report_end(STOPPED, signal=received.first)
            time.sleep(POLL_SECONDS)
        if failure is None and store.has_failed():
            failure = _find_cause(store, folder)
    except StoreLost:
        if received.first:
            raise Stopped(received.first) from None
        failure = Failure(FailureReason.host_lost, "the external launcher has ended", 0, log=folder / "rank-0.log")
    if failure is not None:
        raise RankFailed(failure)
    ends = store.ends()
    if "step" in ends[0]:
        raise Preempted(ends[0]["step"], ends[0]["signal"])
    if store.has_failed():
        raise Stopped(next(end["signal"] for end in ends.values() if end["status"] == STOPPED))


def _find_cause(store: RendezvousStore, folder: Path) -> Failure | None:
    """The failure that caused the others, or None if no rank failed.

    That is a rank that was killed or exited on its own, otherwise one without a report, otherwise the first that raised.
    """
    begun = time.monotonic()
    ranks = set(range(store.world.size))
    while missing := ranks - store.ends().keys():
        if time.monotonic() - begun > REPORT_SECONDS or all(map(store.is_dead, missing)):
            break
        time.sleep(POLL_SECONDS)
    failed = {rank: end for rank, end in store.ends().items() if end["status"] == FAILED}
    silent = {rank: end for rank, end in failed.items() if end["failure"]["reason"] == FailureReason.killed.value}
    killed = {rank: end for rank, end in silent.items() if end["code"] != -signal.SIGABRT}
    if missing and not killed:
        rank = min(missing)
        return Failure(FailureReason.killed, NO_REPORT, rank, log=folder / f"rank-{rank}.log")
    first = min(killed or failed, key=lambda rank: failed[rank]["time"], default=None)
    if first is None:
        return None
    failure = Failure.from_dict(failed[first]["failure"])
    return failure if store.world.nodes > 1 else replace(failure, host=None)


def _follow(store: RendezvousStore) -> int:
    """Any other rank: wait for rank 0's instructions, follow them, and exit with rank 0's code."""
    received, folder, grace = ReceivedSignals(), None, 0.0
    try:
        while (instructions := store.instructions()) is None:
            if received.first:
                return 128 + received.first
            time.sleep(POLL_SECONDS / 4)
        if "folder" in instructions:
            folder = _reachable(Path(instructions["folder"]), instructions["config"], store.world)
            grace = instructions["grace"]
            run_rank(store, folder, received, instructions["hang_timeout"], grace)
        return _wait_for_exit_code(store, received, grace)
    except StoreLost:
        pass
    if received.first:
        return 128 + received.first
    if folder is not None:
        _report_for_rank_0(folder, store.world)
    return 1


def _wait_for_exit_code(store: RendezvousStore, received: ReceivedSignals, grace: float) -> int:
    """Wait for rank 0's exit code, as long as rank 0 may still be running."""
    deadline: float | None = None
    while (code := store.exit_code()) is None:
        if deadline is None and (received.must_end(grace) or store.has_failed()):
            deadline = time.monotonic() + 2 * REPORT_SECONDS
            if not store.has_failed():
                store.report_end(STOPPED, signal=received.first)
        if deadline is not None and (time.monotonic() > deadline or store.is_dead(0)):
            raise StoreLost("rank 0")
        time.sleep(POLL_SECONDS / 4)
    store.leave()
    return code


def _report_for_rank_0(folder: Path, world: World) -> None:
    """Rank 0 is lost: a rank that sees its folder writes the result in its place; all of them would write the same."""
    result = folder / "result.json"
    if result.exists() or not (folder / "plan.json").exists():
        return
    error = {"rank": 0, "cause": NO_REPORT, "log": "rank-0.log"}
    with suppress(OSError):
        files.write_json(result, {"status": "failed", "ended": time.time(), "error": error})
    if world.rank == 1:
        print(f"rank 0 failed: {NO_REPORT}\n  its log: {folder / 'rank-0.log'}", file=sys.stderr)


def _reachable(folder: Path, config: str, world: World) -> Path:
    """The run's folder if this machine sees it, otherwise a temporary one with the same config in it."""
    with suppress(OSError):
        if (folder / "config.yaml").read_text() == config:
            return folder
    own = temporary.make(f"{folder.name}-rank-{world.rank}", kept=True)
    files.write_text(own / "config.yaml", config)
    return own

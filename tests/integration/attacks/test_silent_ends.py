"""A rank that ends without an error fails the run within seconds, and is told as what it was.

The ranks, their agent and their notes are the real ones; only the training in a rank is another function.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

from conftest import SCALE, wait_for
from external import free_port
from hydraft.errors import Failure, FailureReason, RankFailed
from hydraft.launch.external import coordinator
from hydraft.launch.external import rank as external_rank
from hydraft.launch.external.environment import World
from hydraft.launch.external.store import RendezvousStore
from hydraft.launch.local import agent, elastic, fork_server, hang, rank, watch
from hydraft.launch.local.shutdown import ShutdownHandler
from hydraft.system import files, signals
from hydraft.system.hardware import detect
from hydraft.system.processes import ProcessId

EXITS: dict[str, Callable[[], Any]] = {
    "os._exit": lambda: os._exit(0),
    "sys.exit": lambda: sys.exit(0),
    "exit of a C library": lambda: ctypes.CDLL(None).exit(0),
}
BEFORE = "exited with code 0 before the run was complete"


@pytest.fixture
def end_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Failure]:
    """Starts ranks whose training is ``train(rank)``, and returns the failure that their launcher reports."""

    def run(train: Callable[[int], Any], ranks: int = 2) -> Failure:
        def main(*_: object) -> None:
            train(int(os.environ["RANK"]))

        monkeypatch.setitem(sys.modules, elastic.LIBRARIES, SimpleNamespace())  # ranks are forks of this process
        monkeypatch.setitem(sys.modules, "hydraft.training.worker", SimpleNamespace(main=main))
        folder, notes = tmp_path / "run", tmp_path / "notes"
        for made in (folder, notes):
            made.mkdir()
        began = time.monotonic()
        with ShutdownHandler(5) as shutdown, pytest.raises(RankFailed) as failed:
            elastic.start(elastic.LocalRanks(folder, notes, ranks, hang_timeout=3), detect(), shutdown)
        assert time.monotonic() - began < 5 * SCALE
        return failed.value.failure

    return run


@pytest.mark.parametrize("how", EXITS)
def test_a_rank_that_exits_with_code_0_is_named_and_its_peer_is_not(how: str, end_of: Callable[..., Failure]) -> None:
    failure = end_of(lambda number: EXITS[how]() if number == 1 else time.sleep(60))
    assert (failure.rank, failure.reason) == (1, FailureReason.killed)
    assert failure.message.startswith(BEFORE)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_whose_ranks_all_exit_with_code_0_fails(ranks: int, end_of: Callable[..., Failure]) -> None:
    failure = end_of(lambda _: os._exit(0), ranks)
    assert (failure.rank, failure.message) == (0, BEFORE)


@pytest.mark.parametrize("while_it_looks", [False, True])
def test_a_peer_that_raises_because_of_it_is_not_named(
    while_it_looks: bool, end_of: Callable[..., Failure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if torch's agent would see the peer's end first, and then end the others."""
    notes, looking, look = tmp_path / "notes", tmp_path / "looking", LocalElasticAgent._monitor_workers

    def train(number: int) -> None:
        if number == 1:
            while while_it_looks and not looking.exists():
                time.sleep(0.001)
            os._exit(0)
        while not hang.gone(notes):
            time.sleep(0.001)
        raise RuntimeError("Connection closed by peer")

    def look_late(self: LocalElasticAgent, group: Any) -> Any:
        looking.touch()
        wait_for(lambda: [rank.runs for rank in hang.processes(notes).values()] == [False] * 2, 5, "the end of both")
        return look(self, group)

    if while_it_looks:
        monkeypatch.setattr(LocalElasticAgent, "_monitor_workers", look_late)
    failure = end_of(train)
    assert (failure.rank, failure.message) == (1, BEFORE)


def test_a_rank_that_ends_before_its_first_note_is_named(
    end_of: Callable[..., Failure], monkeypatch: pytest.MonkeyPatch
) -> None:
    def listener() -> signals.SignalListener:
        return os._exit(0) if os.environ["RANK"] == "1" else signals.SignalListener()

    monkeypatch.setattr(rank, "SignalListener", listener)
    failure = end_of(lambda _: time.sleep(60))
    assert (failure.rank, failure.message) == (1, BEFORE)


def test_a_rank_that_exits_while_it_waits_for_the_others_does_not_hang_them(end_of: Callable[..., Failure]) -> None:
    def train(number: int) -> None:
        if number == 1:
            threading.Timer(0.5, os._exit, [0]).start()  # its own training is done by then
        else:
            time.sleep(1.5)

    assert end_of(train).rank == 1


def test_an_agent_that_does_not_notice_is_interrupted(
    end_of: Callable[..., Failure], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the server that ranks are forked from were stopped, and reported the end of none."""
    monkeypatch.setattr(agent.RankAgent, "_monitor_workers", lambda *_: time.sleep(60))
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(watch, "GONE_SECONDS", 0.3)
    monkeypatch.setattr(watch, "STUCK_SECONDS", 0.3)
    failure = end_of(lambda number: os._exit(0) if number == 1 else time.sleep(60))
    assert (failure.rank, failure.reason) == (1, FailureReason.killed)
    assert failure.message.startswith("ended without a report")


@pytest.mark.parametrize("code", [0, 3])
def test_under_another_launcher_it_is_named_too(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_rank, "RANK", f"import os; os._exit({code})")
    monkeypatch.setattr(external_rank, "_environment", lambda world, folder: dict(os.environ))
    store = RendezvousStore(World("RANK", 0, 1, 0, 1, "localhost", free_port()))
    received: Any = SimpleNamespace(first=None, must_end=lambda grace: False)
    assert external_rank.run_rank(store, tmp_path, received, hang_timeout=60, grace=5) is None
    assert store.has_failed()
    failure = coordinator._find_cause(store, tmp_path)
    assert failure is not None
    assert (failure.rank, failure.message) == (0, BEFORE if code == 0 else "exited with code 3")


def test_a_process_that_has_the_id_of_a_rank_that_is_gone_gets_no_signal(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        its = ProcessId.of(other.pid)
        assert its.runs and its.started
        (tmp_path / "0.pid").write_text(f"{other.pid} {its.started - 1}")  # of the rank that had this id before
        (tmp_path / "0.beat").touch()
        monitor = hang.RankMonitor(tmp_path)
        assert monitor.status()[0]["state"] == "X" and hang.gone(tmp_path) == {0}
        monitor.stacks(tmp_path)
        monitor.kill()
        assert signals.forward(tmp_path, 1, signal.SIGTERM)
        time.sleep(0.2)
        assert other.poll() is None
        (tmp_path / "0.pid").write_text(str(its))
        monitor.kill()
        assert other.wait(5 * SCALE) == -signal.SIGKILL
        assert ProcessId.parse(str(its)).state == "X"


def test_a_killed_server_is_named_instead_of_its_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as server:
        process = ProcessId.of(server.pid)
        monkeypatch.setattr(fork_server, "process", lambda: process)
        ranks = elastic.LocalRanks(tmp_path / "run", tmp_path, 2)
        lost: Any = {number: SimpleNamespace(exitcode=fork_server.LOST) for number in range(2)}
        assert elastic._first(lost, ranks).message == "exited with code 255"  # of the rank itself
        server.kill()
        failure = elastic._first(lost, ranks)
    assert (failure.rank, failure.subject) == (None, "the run")
    why = "was killed by SIGKILL (out of memory, unless someone sent the signal), and they ended with it"
    assert failure.message == f"the server that ranks are forked from {why}"


def test_a_rank_that_the_agent_has_ended_is_not_named(tmp_path: Path) -> None:
    """Rank 2 raises after rank 1 was killed, and after rank 0 was ended because of that."""
    its_own = Failure(FailureReason.raised, "Connection closed by peer").to_dict()
    files.write_json(tmp_path / "2.json", {"failure": its_own, "time": 1.0, "ended_before": [0, 1]})
    ended: Any = {1: SimpleNamespace(exitcode=-signal.SIGKILL)}
    failure = elastic._first(ended, elastic.LocalRanks(tmp_path / "run", tmp_path, 3))
    assert (failure.rank, failure.signal) == (1, signal.SIGKILL)

"""Ranks that are started by hand, with the variables that launchers set: refusals, failures and signals reach all of them."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from conftest import completed, family, start_script, wait_for
from external import environment, free_port, the_run
from hydraft.errors import FailureReason
from hydraft.launch.external import rank as external_rank
from hydraft.launch.external.environment import World
from hydraft.launch.external.rank import HangDetector
from hydraft.launch.external.store import RendezvousStore


@pytest.fixture
def settings(records: Path) -> list[str]:
    """Three steps on 24 short records."""
    return [f"data.train={records}", "data.eval=null", "train.max_steps=3", "train.log_every=1"]


class Ranks:
    """Two ranks that are started by hand, with the variables that launchers set, in processes that have the libraries in memory."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.streams = folder, [folder / "rank-0", folder / "rank-1"]
        shared = environment(
            WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(free_port())
        )
        self.started = []
        for rank, streams in enumerate(self.streams):
            streams.mkdir()
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            self.started.append(
                start_script("train.py", f"--local_rank={rank}", *arguments, streams=streams, folder=folder, **own)
            )

    def wait(self) -> list[subprocess.CompletedProcess[str]]:
        """How both ended, and what they printed."""
        both = zip(self.started, self.streams, strict=True)
        return [completed(process, ["train.py"], streams, timeout=120) for process, streams in both]

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to the process that a launcher would have started."""
        os.kill(self.started[rank].pid or 0, number)

    def result(self) -> dict[str, object]:
        """result.json."""
        return json.loads((the_run(self.folder) / "result.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture
def ranks(tmp_path: Path, settings: list[str], survivors: list[psutil.Process]) -> Ranks:
    """Two ranks that would run for hours, after their first step."""
    started = Ranks(tmp_path, *settings[:2], "train.epochs=100000", "train.log_every=1")
    wait_for(lambda: bool(list(tmp_path.glob("outputs/*/*/metrics.jsonl"))), 120, "the first step")
    for rank in started.started:
        survivors += family(rank.pid or 0)
    assert len(survivors) == 4  # each rank and the process that monitors it
    return started


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lora.r=0"], "lora.r=0: the rank"),
        (["-m", "lora.r=4,8"], "type python train.py -m lora.r=4,8 cluster=1x2"),
        (
            ["cluster=1x4"],
            "cluster=1x4: a launcher started 1x2: use cluster=1x2, or start it with torchrun --nnodes 1 ",
        ),
    ],
)
def test_a_refusal_ends_both_ranks_and_rank_0_prints_it(arguments: list[str], message: str, tmp_path: Path) -> None:
    first, second = Ranks(tmp_path, *arguments).wait()
    assert (first.returncode, second.returncode) == (2, 2)
    assert first.stderr.count("\n") == 1
    assert message in first.stderr
    assert second.stderr == ""
    assert not list(tmp_path.glob("outputs/*"))


def test_help_is_printed_once(tmp_path: Path) -> None:
    first, second = Ranks(tmp_path, "--help").wait()
    assert (first.returncode, second.returncode) == (0, 0)
    assert ("zero: stage0" in first.stdout, second.stdout) == (True, "")


def test_a_config_error_in_a_rank_ends_both_with_code_2(
    tmp_path: Path, settings: list[str], untemplated: list[str]
) -> None:
    ranks = Ranks(tmp_path, *settings, *untemplated)
    first, second = ranks.wait()
    assert (first.returncode, second.returncode) == (2, 2)
    assert first.stderr.startswith("train.py: data.template=chat: this model's tokenizer has no chat template")
    assert ranks.result()["status"] == "failed"


def test_a_killed_rank_ends_the_other_and_is_named(ranks: Ranks, survivors: list[psutil.Process]) -> None:
    survivors[3].kill()
    first, second = ranks.wait()
    assert (first.returncode, second.returncode) == (1, 1)
    assert first.stderr.count("rank 1 failed: killed by SIGKILL") == 1
    assert second.stderr == ""
    cause = "killed by SIGKILL (out of memory, unless someone sent the signal)"
    assert ranks.result()["error"] == {"rank": 1, "cause": cause, "log": "rank-1.log"}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_was_killed_is_named(rank: int, ranks: Ranks, survivors: list[psutil.Process]) -> None:
    ranks.signal(rank, signal.SIGKILL)
    other = ranks.wait()[1 - rank]
    assert other.returncode == 1
    assert other.stderr.count(f"rank {rank} failed: ended without a report") == 1
    error = {
        "rank": rank,
        "cause": "ended without a report (killed, or its machine was lost)",
        "log": f"rank-{rank}.log",
    }
    assert ranks.result()["error"] == error
    wait_for(lambda: not any(process.is_running() for process in survivors), 5, "the end of all")


def test_sigterm_to_one_preempts_all(ranks: Ranks) -> None:
    ranks.signal(1, signal.SIGTERM)  # as when one of several machines is preempted
    first, second = ranks.wait()
    assert (first.returncode, second.returncode) == (143, 143)
    assert "preempted by SIGTERM after step " in first.stderr
    assert second.stderr == ""
    assert ranks.result()["status"] == "preempted"


def test_a_second_ctrl_c_interrupts_all(ranks: Ranks, survivors: list[psutil.Process]) -> None:
    survivors[3].suspend()
    for rank in (0, 1):
        ranks.signal(rank, signal.SIGINT)
    time.sleep(1.5)
    assert [process.exitcode for process in ranks.started] == [None, None]
    for rank in (0, 1):
        ranks.signal(rank, signal.SIGINT)
    first, second = ranks.wait()
    assert (first.returncode, second.returncode) == (130, 130)
    assert ranks.result()["status"] == "interrupted"


def test_a_rank_that_hangs_is_found(tmp_path: Path, survivors: list[psutil.Process]) -> None:
    world = World("RANK", 0, 1, 0, 1, "localhost", free_port())
    sleeper = subprocess.Popen(["sleep", "60"])
    survivors.append(psutil.Process(sleeper.pid))
    sleeper.send_signal(signal.SIGSTOP)
    (tmp_path / "0.pid").write_text(str(sleeper.pid))
    (tmp_path / "0.beat").touch()
    detector = HangDetector(RendezvousStore(world), tmp_path, tmp_path, timeout=0.3)
    assert detector.check() is None
    time.sleep(0.4)
    found = detector.check()
    assert found is not None
    assert (found.rank, found.reason) == (0, FailureReason.hung)
    assert "its process was stopped" in found.message
    os.utime(tmp_path / "0.beat")
    assert detector.check() is None
    assert not detector.store.hung_ranks()


@pytest.mark.parametrize(("code", "by_itself"), [(0, True), (1, False)])
def test_a_rank_that_fails_since_another_was_ended_first_is_no_failure(
    code: int, by_itself: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C ends the ranks one after another, and the connection that one loses is an error of its own."""
    calls: list[float] = []

    def must_end(grace: float) -> bool:  # the signal arrives after the rank has ended
        calls.append(grace)
        time.sleep(0 if len(calls) > 1 else 1)
        return len(calls) > 1

    received: Any = SimpleNamespace(first=None, must_end=must_end)
    monkeypatch.setattr(external_rank, "RANK", f"raise SystemExit({code})")
    monkeypatch.setattr(external_rank, "_environment", lambda world, folder: dict(os.environ))
    store: Any = SimpleNamespace(world=None, has_failed=lambda: False)
    detector: Any = SimpleNamespace(check=lambda: None)
    end = external_rank._run(store, tmp_path, tmp_path, received, detector, grace=9)
    assert (end.code, end.by_itself) == (code, by_itself)

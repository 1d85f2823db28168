"""Shutdown signals to a rank and to a launcher; the resumed run is bit-equal."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from bench.resume import metrics, train, weights
from conftest import SCALE, config_of, wait_for
from hydraft.config.schema import Config
from hydraft.errors import Failure, FailureReason, RankFailed, RunStopped
from hydraft.launch import run as launch
from hydraft.launch.local.shutdown import ShutdownHandler, Stopped
from hydraft.system import signals


def when(ready: Callable[[], bool], act: Callable[[], None]) -> None:
    """Call ``act`` in a thread once ``ready`` is true, during the run that this process is about to start."""

    def wait() -> None:
        wait_for(ready, 120, "the moment to signal")
        act()

    threading.Thread(target=wait, daemon=True).start()


def rank(number: int, folder: Path) -> psutil.Process:
    """The process whose output is the log of this rank."""
    log = str(folder / f"rank-{number}.log")
    processes = psutil.Process().children(recursive=True)
    return next(p for p in processes if str(Path(f"/proc/{p.pid}/fd/1").readlink()) == log)


def result(folder: Path) -> dict[str, object]:
    """result.json."""
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


def test_a_run_that_was_ended_by_signals_resumes_bit_equal(records: Path, tmp_path: Path) -> None:
    """SIGTERM to one rank in the middle, SIGUSR1 to the launcher during the last evaluation."""
    steps = 9
    config = config_of(
        f"data.train={records}", f"data.eval={records}", "train.eval_every=epoch", "train.eval_loss_only=true", "train.epochs=3",
        "train.micro_batch_size=4", "train.log_every=1", "lora.dropout=0.1", "quant=none", "zero=stage3", "cluster=1x2", "train.save=epoch",
        "data.eval_max_new_tokens=16", "data.eval_limit=4",
    )  # fmt: skip
    uninterrupted, folder = tmp_path / "uninterrupted", tmp_path / "run"
    train(config, uninterrupted)

    def has_reached(step: int) -> bool:
        lines = folder / "metrics.jsonl"
        return lines.exists() and any(json.loads(line)["step"] >= step for line in lines.read_text().splitlines())

    when(lambda: has_reached(4), lambda: rank(1, folder).terminate())
    with pytest.raises(RunStopped) as ended:
        train(config, folder)
    step = int(str(result(folder)["step"]))
    assert ended.value.code == 143 and f"after step {step}; to resume: python train.py resume={folder}" in str(
        ended.value
    )
    assert 4 <= step < steps and (folder / f"checkpoints/step-{step:06d}/manifest.json").exists()
    assert (result(folder)["status"], result(folder)["signal"]) == ("preempted", "SIGTERM")
    assert not (folder / "adapter").exists()

    when(lambda: has_reached(steps), lambda: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(RunStopped) as ended:
        train(config, folder)
    assert ended.value.code == 138
    assert (result(folder)["status"], result(folder)["step"]) == ("preempted", steps)

    train(config, folder)
    assert result(folder)["status"] == "completed" and "signal" not in result(folder)
    before, after = weights(uninterrupted), weights(folder)
    assert all(torch.equal(before[name], after[name]) for name in before)

    def sorted_lines(run: Path) -> list[str]:  # deferred scores are written after the line of their step
        return sorted(json.dumps(line) for line in metrics(run))

    assert sorted_lines(folder) == sorted_lines(uninterrupted)
    assert result(folder)["after"] == result(uninterrupted)["after"]


def test_a_signal_before_the_first_step_ends_a_run_immediately(records: Path, tmp_path: Path) -> None:
    config = config_of(f"data.train={records}", "data.eval=null", "train.epochs=100000", "cluster.max_restarts=3")
    folder = tmp_path / "run"
    sent_at: list[float] = []

    def act() -> None:
        sent_at.append(time.monotonic())
        rank(0, folder).send_signal(signal.SIGUSR1)

    when((folder / "rank-0.log").exists, act)
    with pytest.raises(RunStopped) as ended:
        train(config, folder)
    assert time.monotonic() - sent_at[0] < 5 * SCALE
    assert ended.value.code == 138
    assert (result(folder)["status"], result(folder)["signal"]) == ("interrupted", "SIGUSR1")


LISTENER = """
import os, sys, time
from pathlib import Path
from hydraft.system.signals import SignalListener
notes = Path(sys.argv[1])
listener = SignalListener()
listener.start(notes, 0)
(notes / "0.pid").write_text(str(os.getpid()))
if float(sys.argv[2]):
    listener.allow_saving(float(sys.argv[2]))
(notes / "ready").touch()
time.sleep(30)
"""


def start_listener(notes: Path, grace: float) -> "subprocess.Popen[bytes]":
    """A rank that never finishes its step."""
    process = subprocess.Popen([sys.executable, "-c", LISTENER, str(notes), str(grace)], stdout=subprocess.DEVNULL)
    wait_for((notes / "ready").exists, 20, "a rank that listens")
    return process


def test_a_rank_ends_itself_after_the_grace_period(tmp_path: Path) -> None:
    process = start_listener(tmp_path, 0.5)
    began = time.monotonic()
    assert signals.forward(tmp_path, 1, signal.SIGINT)
    assert process.wait(10 * SCALE) == 130
    assert time.monotonic() - began > 0.4
    assert signals.interrupted_by(tmp_path) == signal.SIGINT
    assert signals.early_exit(tmp_path) is None


def test_a_rank_whose_peer_has_ended_ends_immediately_without_a_note(tmp_path: Path) -> None:
    process = start_listener(tmp_path, 20)
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / "1.pid").write_text(str(gone.pid))
    process.terminate()
    assert process.wait(5 * SCALE) == 143
    assert signals.interrupted_by(tmp_path) is None


def test_no_signal_is_forwarded_before_all_ranks_have_started(tmp_path: Path) -> None:
    (tmp_path / "0.pid").write_text(str(os.getpid()))
    assert not signals.forward(tmp_path, 2, signal.SIGTERM)


def test_a_launcher_gives_ranks_only_their_grace_period() -> None:
    requested: list[int] = []
    ended: list[bool] = []

    def request(number: int) -> bool:
        requested.append(number)
        return True

    began = time.monotonic()
    handler = ShutdownHandler(0.5)
    with handler, pytest.raises(Stopped) as stopped, handler.forwarding(request, lambda: ended.append(True)):
        for _ in range(3):  # a repetition within a second counts as the same Ctrl-C
            signal.raise_signal(signal.SIGINT)
        time.sleep(10)
    assert 0.4 < time.monotonic() - began < 5 * SCALE
    assert (stopped.value.number, requested, ended) == (signal.SIGINT, [signal.SIGINT], [True])


def test_without_a_grace_period_or_ranks_a_signal_ends_immediately() -> None:
    with ShutdownHandler(0) as handler, pytest.raises(Stopped), handler.forwarding(lambda _: True):
        signal.raise_signal(signal.SIGTERM)
    with ShutdownHandler(9) as handler, pytest.raises(Stopped), handler.forwarding(lambda _: False):
        signal.raise_signal(signal.SIGUSR1)


def test_after_a_signal_no_failure_restarts_the_run(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(f"data.train={records}", "data.eval=null", "cluster.max_restarts=3")

    def fail(config: Config, folder: Path, quiet: bool, shutdown: ShutdownHandler, store: None) -> None:
        with shutdown.forwarding(lambda number: True):
            signal.raise_signal(signal.SIGTERM)
        raise RankFailed(Failure(FailureReason.raised, "broken", 1, log=folder / "rank-1.log"))

    monkeypatch.setattr(launch, "_start", fail)
    with pytest.raises(RunStopped, match="stopped by SIGTERM, and rank 1 failed: broken"):
        train(config, tmp_path / "run")

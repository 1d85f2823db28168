"""Failures of a run on two hosts over ssh: the cause is reported in time, and no process is left on any host."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from bench.processes import runs
from conftest import HANG_TIMEOUT, ROOT, SCALE, family, wait_for
from hydraft.checkpoint import manifest
from lab import HOSTS, Lab


class FarRun:
    """A train.py on the desk that would run for hours, with a rank on each worker."""

    def __init__(self, lab: Lab, folder: Path, records: Path, *overrides: str) -> None:
        self.folder = folder
        self.stderr = folder.with_name("stderr")
        command = lab.command(
            f"data.train={records}", "data.eval=null", "train.epochs=100000", "train.log_every=1", "cluster.nodes=2",
            f"hydra.run.dir={folder}", *overrides,
        )  # fmt: skip
        with self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr)
        steps = folder / "metrics.jsonl"
        wait_for(lambda: steps.exists() or self.process.poll() is not None, 90, "the first step")
        assert self.process.poll() is None, self.stderr.read_text()
        self.desk = family(lab.python.fork(self.process.pid).pid)
        self.workers = {name: lab.processes(name) for name in HOSTS}
        # agent, node, fork server, rank, and the program that stands for the agent
        assert all(len(found) >= 5 for found in self.workers.values())

    def rank(self, number: int) -> psutil.Process:
        """The process whose output is the log of this rank."""
        log = str(self.folder / f"rank-{number}.log")
        there = [process for found in self.workers.values() for process in found]
        return next(process for process in there if str(Path(f"/proc/{process.pid}/fd/1").readlink()) == log)

    def ssh(self, name: str) -> psutil.Process:
        return next(p for p in self.desk if p.name() == "ssh" and name in p.cmdline())

    def survivors(self) -> list[psutil.Process]:
        """Processes of the run that are still running, on any host."""
        processes = [*self.desk[1:], *(process for found in self.workers.values() for process in found)]
        return [process for process in processes if runs(process)]

    def has_ended(self) -> bool:
        return self.process.poll() is not None and not self.survivors()


@pytest.fixture
def start(lab: Lab, tmp_path: Path, records: Path) -> Iterator[Callable[..., FarRun]]:
    """Starts a run; processes that are left after the test are killed."""
    started: list[FarRun] = []

    def begin(*overrides: str) -> FarRun:
        started.append(FarRun(lab, tmp_path / "run", records, *overrides))
        return started[-1]

    yield begin
    for run in started:
        for process in run.survivors():
            with suppress(psutil.NoSuchProcess):  # it has ended in the meantime
                process.kill()
        if run.process.poll() is None:
            run.process.kill()
        run.process.wait(10 * SCALE)


def test_a_run_whose_rank_is_killed_restarts_and_completes(start: Callable[..., FarRun]) -> None:
    run = start("cluster.max_restarts=1", "train.max_steps=20", "train.save_every=5")
    wait_for(lambda: bool(manifest.checkpoints(run.folder)), 30, "a checkpoint")
    run.rank(1).kill()
    wait_for(run.has_ended, 90, "the end")
    stderr = run.stderr.read_text()
    assert run.process.returncode == 0, stderr
    assert stderr.startswith("rank 1 on worker-2 failed: killed by SIGKILL") and "restarting from step-" in stderr
    assert json.loads((run.folder / "result.json").read_text())["status"] == "completed"
    steps = [json.loads(line)["step"] for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 21))


def test_ctrl_c_on_the_desk_saves_and_ends_both_hosts(start: Callable[..., FarRun]) -> None:
    run = start()
    run.desk[0].send_signal(2)
    wait_for(run.has_ended, 15, "the end")
    assert run.process.returncode == 130
    result = json.loads((run.folder / "result.json").read_text())
    assert (result["status"], result["signal"]) == ("preempted", "SIGINT")
    assert (run.folder / f"checkpoints/step-{result['step']:06d}/manifest.json").exists()


def test_sigkill_of_the_launcher_leaves_no_process(start: Callable[..., FarRun]) -> None:
    run = start()
    run.desk[0].kill()
    wait_for(run.has_ended, 5, "the end")


def test_sigkill_of_an_agent_is_reported_with_its_host(start: Callable[..., FarRun]) -> None:
    run = start()
    run.workers["worker-2"][0].kill()
    wait_for(run.has_ended, 15, "the end")
    assert run.process.returncode == 1
    assert run.stderr.read_text().startswith("worker-2 failed: ")


def test_sigkill_of_ssh_is_reported_with_its_host(start: Callable[..., FarRun]) -> None:
    run = start()
    run.ssh("worker-2").kill()
    wait_for(run.has_ended, 15, "the end")
    assert run.process.returncode == 1
    assert run.stderr.read_text().startswith("worker-2 failed: ssh was killed by SIGKILL")


def test_a_lost_connection_ends_both_sides(lab: Lab, start: Callable[..., FarRun]) -> None:
    run = start(f"cluster.link_timeout={6 * SCALE:g}")
    lab.cable("worker-2", "down")
    try:
        wait_for(run.has_ended, 20, "the end")
        assert run.process.returncode == 1
        assert run.stderr.read_text().startswith("worker-2 failed: ")
        assert "the connection" in run.stderr.read_text()
    finally:
        lab.cable("worker-2", "up")
        lab.end_sessions()


def test_a_rank_that_hangs_is_named_with_its_host(start: Callable[..., FarRun]) -> None:
    run = start(f"cluster.hang_timeout={HANG_TIMEOUT:g}")
    run.rank(1).suspend()
    wait_for(run.has_ended, 25, "the end")
    assert run.process.returncode == 1
    stderr = run.stderr.read_text()
    assert stderr.startswith("rank 1 on worker-2 failed: made no progress for ")
    assert "its process was stopped (SIGSTOP, or a debugger), so it could not write its stack" in stderr
    error = json.loads((run.folder / "result.json").read_text())["error"]
    assert (error["host"], error["rank"], error["log"]) == ("worker-2", 1, "rank-1.log")
    assert "most recent call first" in (run.folder / "rank-0.log").read_text()

"""Sweeps that are started, killed and resumed."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.processes import runs
from conftest import SCALE, family, run_script, start_script, wait_for
from hydraft.sweep.results.ledger import Job, Ledger, State

SHORT = ["quant=none", "data.eval=null", "train.log_every=1", "train.micro_batch_size=2"]


def sweep(records: Path, *more: str) -> list[str]:
    """Each job in its own process."""
    return ["-m", "hydra.launcher.pack=off", *SHORT, f"data.train={records}", *more]


def packed(records: Path, *more: str) -> list[str]:
    """Jobs of one process, after one another in a single slot."""
    return ["-m", "hydra.launcher.jobs=1", *SHORT, f"data.train={records}", *more]


def by_name(folder: Path) -> dict[str, Job]:
    return {job.name: job for job in Ledger(folder).jobs().values()}


def states(folder: Path) -> dict[str, State]:
    return {name: job.state for name, job in by_name(folder).items()}


def is_in(folder: Path, name: str, state: State) -> Callable[[], bool]:
    return lambda: states(folder).get(name) is state if folder.exists() else False


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def have_ended(processes: list[psutil.Process]) -> Callable[[], bool]:
    return lambda: not any(map(runs, processes))


@pytest.fixture
def start(tmp_path: Path) -> Any:
    """Starts a sweep; processes that are left after the test are killed."""
    started: list[ForkServerProcess] = []

    def one(*arguments: str) -> ForkServerProcess:
        streams = tmp_path / f"streams-{len(started)}"
        streams.mkdir()
        started.append(start_script("train.py", *arguments, streams=streams))
        return started[-1]

    yield one
    for process in started:
        process.kill()
        process.join()


def test_a_killed_job_does_not_affect_the_others(records: Path, tmp_path: Path, start: Any) -> None:
    folder = tmp_path / "sweep"
    command = sweep(records, "lora.r=2,3,4", "train.max_steps=4", "hydra.launcher.jobs=2")
    process = start(*command, f"hydra.sweep.dir={folder}")
    wait_for(lambda: (folder / "r=3" / "rank-0.log").exists(), 240, "the second job's rank")
    jobs = by_name(folder)
    pids = [pid for name in ("r=2", "r=3") if (pid := jobs[name].pid) is not None]
    assert len(pids) == 2, "two concurrent jobs"
    below = family(pids[1])
    os.kill(pids[1], signal.SIGKILL)
    process.join(300 * SCALE)
    assert process.exitcode == 1
    wait_for(have_ended(below), 10, "the end of the killed job's ranks")
    assert states(folder) == {"r=2": State.done, "r=3": State.failed, "r=4": State.done}
    stderr = (tmp_path / "streams-0" / "err").read_text()
    assert "r=3: failed: its process was killed by SIGKILL" in stderr and "sweep.retry_failed=true" in stderr
    for name in ("r=2", "r=4"):
        result = json.loads((folder / name / "result.json").read_text())
        assert by_name(folder)[name].objective == result["objective"]
        assert "training 4/4" in (folder / name / "job.log").read_text()

    repeated = run_script("train.py", *command, f"sweep.resume={folder}")
    assert repeated.returncode == 1, "a failed job is not retried by default"
    assert {job.attempt for job in by_name(folder).values()} == {1}
    command[-3] = "lora.r=2,3,4,5"
    more = run_script("train.py", *command, f"sweep.resume={folder}", "sweep.retry_failed=true")
    assert more.returncode == 0, more.stderr
    assert {name: job.attempt for name, job in by_name(folder).items()} == {
        "r=2": 1, "r=3": 2, "r=4": 1, "r=5": 1
    }  # fmt: skip
    assert set(states(folder).values()) == {State.done}


def test_two_sweeps_in_one_folder_share_its_jobs(records: Path, tmp_path: Path, start: Any) -> None:
    folder = tmp_path / "sweep"
    command = sweep(records, "train.max_steps=30,4,5", "hydra.launcher.jobs=1")
    first = start(*command, f"hydra.sweep.dir={folder}")
    wait_for(is_in(folder, "ms=30", State.running), 240, "the first sweep's first job")
    pid = by_name(folder)["ms=30"].pid
    assert pid is not None
    job = family(pid)
    for process in job:  # so that it has not ended when the second sweep starts
        process.suspend()
    second = start(*command, f"sweep.resume={folder}")
    wait_for(is_in(folder, "ms=4", State.running), 240, "the second sweep's first job")
    assert states(folder)["ms=30"] is State.running, "the sweeps run different jobs concurrently"
    for process in job:
        process.resume()
    for sweeping in (first, second):
        sweeping.join(300 * SCALE)
        assert sweeping.exitcode == 0
    assert {name: (job.state, job.attempt) for name, job in by_name(folder).items()} == {
        f"ms={steps}": (State.done, 1) for steps in (30, 4, 5)
    }


def test_members_of_a_pack_save_on_a_signal_and_are_resumed(records: Path, tmp_path: Path, start: Any) -> None:
    folder = tmp_path / "sweep"
    command = packed(records, "lora.r=2,3,4", "train.max_steps=60", "train.save_every=5", "hydra.launcher.pack=2")
    first = start(*command, f"hydra.sweep.dir={folder}")
    wait_for(lambda: all((folder / name / "checkpoints").exists() for name in ("r=2", "r=3")), 240, "checkpoints")
    pids = {job.pid for name, job in by_name(folder).items() if name != "r=4"}
    assert len(pids) == 1, "two jobs in one process"
    os.kill(first.pid, signal.SIGTERM)
    first.join(120 * SCALE)
    assert first.exitcode == 128 + signal.SIGTERM
    assert states(folder) == {"r=2": State.interrupted, "r=3": State.interrupted, "r=4": State.pending}
    saved = {name: max(steps(folder / name)) for name in ("r=2", "r=3")}
    assert all(0 < step < 60 for step in saved.values())
    assert "preempted by SIGTERM after step" in (by_name(folder)["r=2"].error or "")

    again = start(*command, f"sweep.resume={folder}")
    wait_for(lambda: all(max(steps(folder / name)) > saved[name] for name in saved), 240, "further steps")
    pid = by_name(folder)["r=2"].pid
    assert pid is not None and pid not in pids
    os.kill(pid, signal.SIGKILL)
    again.join(300 * SCALE)
    assert again.exitcode == 1
    assert states(folder) == {"r=2": State.failed, "r=3": State.failed, "r=4": State.done}
    assert "its process was killed by SIGKILL" in (by_name(folder)["r=3"].error or "")

    last = run_script("train.py", *command, f"sweep.resume={folder}", "sweep.retry_failed=true")
    assert last.returncode == 0, last.stderr
    assert set(states(folder).values()) == {State.done}
    for name in ("r=2", "r=3", "r=4"):
        seen = steps(folder / name)
        assert sorted(set(seen)) == list(range(1, 61)), "each step, some of them again after the kill"
        assert "lora r=" + name[-1] in (folder / name / "job.log").read_text()


REFUSED = [
    ("lora.r=", "lora.r=: is empty"),
    ("lora.r=range(0,0)", "a list of values is empty"),
    ("lora.r=0,-1 zero=stage2", "2 of 2 jobs cannot run"),
    ("lora.r=2,0", "r=0: lora.r=0: the rank"),
    ("zero=stage1,stage9", "zero=stage9: no such option; did you mean zero=stage3?"),
    ("model=llama3 model.init=random model.size=3.1-8b,3.1-70b quant=none", "does not fit"),
    ("lora.r=2,4 hydra.launcher.jobs=0", "hydra.launcher.jobs=0: must be at least 1"),
    ("lora.r=2,4 hydra.launcher.pack=many", "hydra.launcher.pack=many: must be auto, off or a number"),
    ("lora.r=2,4 sweep.name=a/b", "sweep.name=a/b: must be the name of a folder"),
    ("lora.r=2,4 sweep.resume=nothing", "sweep.resume=nothing: no such sweep"),
    ("lora.r=2,4 resume=outputs", "resume=outputs: resumes a single run"),
]


@pytest.mark.parametrize("overrides, message", REFUSED)
def test_jobs_that_cannot_run_are_refused_before_the_first_job(overrides: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    where = [] if "sweep." in overrides else [f"hydra.sweep.dir={folder}"]
    done = run_script("train.py", "-m", *overrides.split(), *where)
    assert done.returncode == 2
    assert message in done.stderr, done.stderr
    assert "Error executing job" not in done.stderr and "Traceback" not in done.stderr
    assert not folder.exists()


def test_the_plan_of_a_sweep_says_how_many_jobs_share_a_base(records: Path) -> None:
    done = run_script("train.py", "-m", "mode=plan", *SHORT, f"data.train={records}", "lora=default,pissa")
    shared, alone = (line for line in done.stdout.splitlines() if " in a pack" in f" {line}" or "in no pack" in line)
    assert re.match(r"in a pack, up to \d+ such jobs share a base: .* with 1, .* of main memory", shared)
    assert alone == "runs alone, in no pack: lora.method=pissa changes the base"


def test_jobs_that_cannot_run_may_be_skipped(records: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    command = sweep(records, "lora.r=0,2", "train.max_steps=2", f"hydra.sweep.dir={folder}", "sweep.skip_invalid=true")
    started = time.monotonic()
    done = run_script("train.py", *command)
    assert done.returncode == 0, done.stderr
    assert states(folder) == {"r=0": State.refused, "r=2": State.done}
    assert "lora.r=0: the rank" in (by_name(folder)["r=0"].error or "")
    assert time.monotonic() - started < 60 * SCALE


def test_settings_of_a_sweep_are_refused_in_a_single_run(tmp_path: Path) -> None:
    done = run_script("train.py", "sweep.name=mine", f"hydra.run.dir={tmp_path / 'run'}")
    assert (done.returncode, done.stderr) == (
        2,
        "train.py: sweep.name=mine: is for a sweep: add -m, or leave it out\n",
    )

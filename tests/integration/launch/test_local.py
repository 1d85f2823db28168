"""Ranks in processes: a failure is reported once with rank and cause, and after the end of a run no process is left."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from bench.processes import runs
from conftest import HANG_TIMEOUT, ROOT, SCALE, config_of, family, run_script, start_script, wait_for
from hydraft.plan.plan import make_plan
from hydraft.runs import run_folder
from hydraft.system.hardware import detect
from warm_python import WarmPython


class Run:
    """A train.py that would run for hours."""

    def __init__(self, python: WarmPython, folder: Path, records: Path, *more: str) -> None:
        self.folder = folder
        command = [
            str(python.path), str(ROOT / "train.py"), f"data.train={records}", "data.eval=null", "train.epochs=100000",
            "train.log_every=1", "cluster=1x2", f"hydra.run.dir={folder}", *more,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, cwd=ROOT
        )
        wait_for(lambda: (folder / "metrics.jsonl").exists() or self.process.poll() is not None, 120, "the first step")
        assert self.process.stdout is not None
        assert self.process.poll() is None, self.process.stdout.read()
        self.family = family(python.fork(self.process.pid).pid)
        assert len(self.family) >= 4  # train.py, the fork server, two ranks

    def rank(self, number: int) -> psutil.Process:
        """The process whose output is the log of this rank."""
        log = str(self.folder / f"rank-{number}.log")
        return next(process for process in self.family if str(Path(f"/proc/{process.pid}/fd/1").readlink()) == log)

    def has_ended(self) -> bool:
        """Whether no process of the run is running."""
        return not any(map(runs, self.family[1:])) and self.process.poll() is not None

    def result(self) -> dict[str, object]:
        """result.json."""
        return json.loads((self.folder / "result.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture
def run(python: WarmPython, tmp_path: Path, records: Path, survivors: list[psutil.Process]) -> Run:
    started = Run(python, tmp_path / "run", records)
    survivors += started.family
    return started


def test_ctrl_c_saves_and_leaves_no_process(run: Run) -> None:
    os.killpg(run.family[0].pid, signal.SIGINT)  # as a terminal does
    wait_for(run.has_ended, 8, "the end")
    assert run.process.returncode == 130
    assert (run.result()["status"], run.result()["signal"]) == ("preempted", "SIGINT")
    assert run.process.stdout is not None
    output = run.process.stdout.read()
    assert (
        output.count(
            f"preempted by SIGINT after step {run.result()['step']}; to resume: python train.py resume={run.folder}\n"
        )
        == 1
    )
    assert "Traceback" not in output
    assert (run.folder / f"checkpoints/step-{run.result()['step']:06d}/state.json").exists()


def test_a_second_sigterm_leaves_no_process(run: Run) -> None:
    run.rank(1).suspend()
    run.process.terminate()
    time.sleep(1.5)
    assert run.process.poll() is None
    run.process.terminate()
    wait_for(run.has_ended, 5, "the end")
    assert run.process.returncode == 143
    assert run.result()["status"] == "interrupted"


def test_sigkill_of_the_parent_leaves_no_process(run: Run) -> None:
    run.family[0].kill()
    wait_for(run.has_ended, 5, "the end")


def test_a_killed_rank_ends_the_run_and_is_named(run: Run) -> None:
    run.rank(1).kill()
    wait_for(run.has_ended, 5, "the end")
    assert run.process.returncode == 1
    assert run.process.stdout is not None
    output = run.process.stdout.read()
    assert output.count("rank 1 failed: killed by SIGKILL") == 1
    assert "rank 0 failed" not in output
    assert "Traceback" not in output
    assert run.result()["error"] == {
        "rank": 1,
        "cause": "killed by SIGKILL (out of memory, unless someone sent the signal)",
        "log": "rank-1.log",
    }


def test_a_rank_that_hangs_is_named_with_the_stacks_of_the_others(
    python: WarmPython, tmp_path: Path, records: Path, survivors: list[psutil.Process]
) -> None:
    run = Run(python, tmp_path / "run", records, f"cluster.hang_timeout={HANG_TIMEOUT:g}")
    survivors += run.family
    run.rank(1).suspend()
    assert wait_for(run.has_ended, 20, "the end") > HANG_TIMEOUT
    assert run.process.returncode == 1
    assert run.process.stdout is not None
    output = run.process.stdout.read()
    assert "rank 1 failed: made no progress for " in output
    assert "its process was stopped (SIGSTOP, or a debugger)" in output
    assert "1 other rank(s) waited in " in output
    assert "most recent call first" in (run.folder / "rank-0.log").read_text()


def test_an_error_of_a_rank_is_reported_once_with_rank_and_cause(tmp_path: Path, records: Path) -> None:
    folder = tmp_path / "run"
    config = config_of(f"data.train={records}", "data.eval=null", "cluster=1x2")
    run_folder.create(folder, config, make_plan(config, 24), detect())
    (folder / "rank-1.log").mkdir()  # rank 1 cannot open its log
    done = run_script("train.py", f"resume={folder}", timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("failed: ") == 1
    assert "rank 1 failed: IsADirectoryError" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_config_error_in_a_rank_is_reported_on_one_line(
    tmp_path: Path, records: Path, untemplated: list[str]
) -> None:
    done = run_script(
        "train.py", f"data.train={records}", "data.eval=null", *untemplated,
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("train.py: data.template=chat: this model's tokenizer has no chat template")
    assert done.stderr.count("\n") == 1


def test_two_concurrent_runs_use_different_ports(tmp_path: Path, records: Path) -> None:
    started = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        command = [f"data.train={records}", "data.eval=null", "train.max_steps=3", "cluster=1x2"]
        started.append(
            start_script("train.py", *command, f"hydra.run.dir={tmp_path / name / 'run'}", streams=tmp_path / name)
        )
    for run in started:
        run.join(240 * SCALE)
    assert [run.exitcode for run in started] == [0, 0]

"""If a pytest process or a pytest-xdist worker is killed, no process that its tests started is left."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import reaper
from bench.processes import runs
from conftest import ROOT, family, wait_for

# Ranks that train for hours, and a process in its own session, which signals to the group do not reach.
TEST = """
import subprocess, sys
from pathlib import Path
from conftest import run_script

def test_hours(records, tmp_path):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(9999)"], start_new_session=True)
    run_script("train.py", f"data.train={records}", "data.eval=null", "train.epochs=100000", "train.log_every=1", "cluster=1x2",
               f"hydra.run.dir={Path(__file__).parent / 'run'}")
"""


def test_a_reaper_finds_workers_by_the_prefix_of_their_mark() -> None:
    environment = {**os.environ, reaper.VARIABLE: "0123.4567"}
    with subprocess.Popen(["sleep", "60"], env=environment) as process:
        assert reaper.marked("0123") == reaper.marked("0123.4567") == [process.pid]
        assert reaper.marked("0123.45") == []
        process.kill()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux's pidfd_open")
@pytest.mark.parametrize("killed", ["pytest", "worker"])
def test_sigkill_leaves_no_process(killed: str, tmp_path: Path, survivors: list[psutil.Process]) -> None:
    pytest.importorskip("xdist")
    file = tmp_path / "test_hours.py"
    file.write_text(TEST)
    command = [
        sys.executable, "-m", "pytest", "-n", "1", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"),
        "-p", "conftest", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'base'}", str(file),
    ]  # fmt: skip
    paths = [str(ROOT / place) for place in ("src", "tests", "tests/support", ".")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with (tmp_path / "output").open("w") as output:
        session = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    survivors.append(psutil.Process(session.pid))
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() or session.poll() is not None, 240, "the first step")
    assert session.poll() is None, (tmp_path / "output").read_text()
    worker = psutil.Process(session.pid).children()[0]
    started = family(worker.pid)[1:]
    survivors += started
    assert len(started) >= 5  # the fork server, train.py, two ranks, the process in its own session
    (session if killed == "pytest" else worker).kill()
    wait_for(lambda: not any(map(runs, started)), 10, "the end of all processes of the test")
    if killed == "worker":  # pytest-xdist would start another worker for the test
        session.kill()
    session.wait()
    wait_for(lambda: not worker.is_running(), 10, "the end of the worker")

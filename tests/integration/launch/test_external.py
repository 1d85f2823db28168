"""Other launchers start train.py: one run, one folder, the losses of hydraft's own launcher; and every way to end it works."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from conftest import RECORDS, SCALE, family, run_script, wait_for
from external import BIN, TRAIN, environment, free_port, the_run
from sshd import Sshd
from warm_python import WarmPython

LAUNCHERS = {
    "torchrun": ["torchrun", "--nproc-per-node", "2", TRAIN],
    "accelerate": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", TRAIN],
    "deepspeed": ["deepspeed", "--num_gpus", "2", TRAIN],
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three steps on 24 short records."""
    records = tmp_path_factory.mktemp("records") / "records.json"
    records.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    return [f"data.train={records}", "data.eval=null", "train.max_steps=3", "train.log_every=1"]


def run_in(folder: Path, command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    """Run ``command`` there, as a user would, and wait; runs are in its outputs/."""
    return subprocess.run(
        command, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=240 * SCALE, check=False
    )


def losses(run: Path) -> list[float]:
    """Each step's."""
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def own(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the same run with hydraft's own launcher."""
    folder = tmp_path_factory.mktemp("own")
    done = run_script("train.py", *settings, "cluster=1x2", f"hydra.run.dir={folder / 'run'}")
    assert done.returncode == 0, done.stderr
    return losses(folder / "run")


def assert_ran(folder: Path, done: "subprocess.CompletedProcess[str]", own: list[float], starter: str) -> None:
    """It completed, with one progress bar, in one folder, with the losses of hydraft's own launcher."""
    assert done.returncode == 0, done.stdout + done.stderr
    run = the_run(folder)
    assert losses(run) == pytest.approx(own, rel=1e-5)
    assert f"2 ranks, started by {starter}: cluster is " in done.stdout
    assert done.stdout.count("training 3/3") == 1
    assert json.loads((run / "result.json").read_text())["status"] == "completed"
    assert (run / "adapter" / "adapter_model.safetensors").exists()
    assert (run / "rank-1.log").exists()


@pytest.mark.parametrize("name", LAUNCHERS)
def test_another_launcher_trains_the_same(
    name: str, python: WarmPython, settings: list[str], own: list[float], tmp_path: Path
) -> None:
    """torchrun is the real program, with a Python for each rank; the other launchers, and all below them, have the libraries in memory."""
    command = [str(BIN / LAUNCHERS[name][0]), *LAUNCHERS[name][1:-1]]
    if name != "torchrun":
        command = [str(python.path), *command]
        command += ["--main_process_port" if name == "accelerate" else "--master_port", str(free_port())]
    done = run_in(tmp_path, [*command, TRAIN, *settings])
    assert_ran(tmp_path, done, own, name)


def test_deepspeed_with_a_hostfile_trains_the_same(
    python: WarmPython, settings: list[str], own: list[float], tmp_path: Path
) -> None:
    if shutil.which("pdsh") is None:
        pytest.skip("pdsh is not installed")
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    with Sshd(tmp_path / "sshd") as sshd:
        command = [
            str(python.path), str(BIN / "deepspeed"), "--hostfile", str(hostfile), "--ssh_port", str(sshd.port), "--no_ssh_check",
            "--master_addr", "127.0.0.1", "--master_port", str(free_port()), TRAIN, *settings,
        ]  # fmt: skip
        done = run_in(tmp_path, command, PDSH_SSH_ARGS_APPEND=" ".join(sshd.options))
    done.stdout = done.stdout.replace("localhost: ", "").replace("127.0.0.1: ", "")
    assert_ran(tmp_path, done, own, "deepspeed")


@pytest.mark.parametrize("name", ["torchrun", "deepspeed"])
def test_a_refusal_is_printed_once(name: str, python: WarmPython, tmp_path: Path) -> None:
    port = ["--master_port", str(free_port())]
    command = [str(python.path), str(BIN / LAUNCHERS[name][0]), *port, *LAUNCHERS[name][1:]]
    done = run_in(tmp_path, [*command, "train.lr=3"])
    assert done.returncode == (2 if name == "deepspeed" else 1)  # torchrun has one code for all that is not 0
    assert done.stderr.count("train.py: train.lr: no such setting; did you mean train.learning_rate?") == 1
    assert not list(tmp_path.glob("outputs/*"))


def test_without_a_shared_file_system_a_rank_logs_on_its_own_machine(
    python: WarmPython, tmp_path: Path, settings: list[str], own: list[float]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("a file system of its own needs root")
    (tmp_path / "outputs").mkdir()
    elsewhere = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none outputs && exec "$@"', "sh")
    shared = environment(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(free_port()))
    ranks = [
        subprocess.Popen(
            [*(elsewhere if rank else ()), str(python.path), TRAIN, *settings],
            cwd=tmp_path, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [rank.communicate(timeout=120 * SCALE)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert losses(the_run(tmp_path)) == pytest.approx(own, rel=1e-5)
    assert not (the_run(tmp_path) / "rank-1.log").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_under_torchrun_a_signal_preempts_all(
    number: int, python: WarmPython, tmp_path: Path, settings: list[str], survivors: list[psutil.Process]
) -> None:
    torchrun = _under_torchrun(python, tmp_path, settings, survivors)
    if number == signal.SIGINT:
        group = python.fork(torchrun.pid).pid
        os.killpg(group, number)  # a terminal signals every process, and torchrun signals its own once more
    else:
        torchrun.send_signal(number)
    said = torchrun.communicate(timeout=60 * SCALE)[0]
    name = signal.Signals(number).name
    assert said.count(f"preempted by {name} after step ") == 1
    result = json.loads((the_run(tmp_path) / "result.json").read_text())
    assert (result["status"], result["signal"]) == ("preempted", name)
    wait_for(lambda: not any(process.is_running() for process in survivors), 5, "the end of all")


def test_under_torchrun_a_killed_rank_ends_all(
    python: WarmPython, tmp_path: Path, settings: list[str], survivors: list[psutil.Process]
) -> None:
    torchrun = _under_torchrun(python, tmp_path, settings, survivors)
    log = str(the_run(tmp_path) / "rank-1.log")
    next(p for p in survivors if str(Path(f"/proc/{p.pid}/fd/1").readlink()) == log).kill()
    said = torchrun.communicate(timeout=60 * SCALE)[0]
    assert torchrun.returncode == 1
    assert said.count("rank 1 failed: killed by SIGKILL") == 1
    assert json.loads((the_run(tmp_path) / "result.json").read_text())["error"]["rank"] == 1
    wait_for(lambda: not any(process.is_running() for process in survivors), 5, "the end of all")


def _under_torchrun(
    python: WarmPython, folder: Path, settings: list[str], survivors: list[psutil.Process]
) -> "subprocess.Popen[str]":
    """Two ranks that would run for hours, after their first step; ``survivors`` gets all processes."""
    launcher = [str(python.path), str(BIN / "torchrun"), "--nproc-per-node", "2"]
    command = [*launcher, TRAIN, *settings[:2], "train.epochs=100000"]
    torchrun = subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: bool(list(folder.glob("outputs/*/*/metrics.jsonl"))), 120, "the first step")
    survivors += [*family(torchrun.pid), *python.forks()]
    return torchrun

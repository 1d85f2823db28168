"""Other launchers start train.py: one run, one folder, the losses of hydraft's own launcher; and every way to end it works."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from conftest import RECORDS, ROOT, SCALE, completed, family, run_script, start_script, wait_for
from hydraft.errors import FailureReason
from hydraft.launch.external import rank as external_rank
from hydraft.launch.external.environment import World
from hydraft.launch.external.rank import HangDetector
from hydraft.launch.external.store import RendezvousStore
from sshd import Sshd

BIN = Path(sys.executable).parent
TRAIN = str(ROOT / "train.py")
LAUNCHERS = {
    "torchrun": ["torchrun", "--nproc-per-node", "2", TRAIN],
    "accelerate": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", TRAIN],
    "deepspeed": ["deepspeed", "--num_gpus", "2", TRAIN],
}


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """A shell with the virtual environment on its path, on a machine without cards."""
    return {
        **os.environ,
        "PATH": f"{BIN}:/usr/sbin:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_WAIT_POLICY": "PASSIVE",
        **more,
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


def the_run(folder: Path) -> Path:
    """The only run below ``folder``."""
    (config,) = folder.glob("outputs/*/*/config.yaml")
    assert len(list(config.parent.parent.iterdir())) == 1
    return config.parent


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
def test_another_launcher_trains_the_same(name: str, settings: list[str], own: list[float], tmp_path: Path) -> None:
    command = [str(BIN / LAUNCHERS[name][0]), *LAUNCHERS[name][1:-1]]
    if name != "torchrun":
        command += ["--main_process_port" if name == "accelerate" else "--master_port", str(free_port())]
    done = run_in(tmp_path, [*command, TRAIN, *settings])
    assert_ran(tmp_path, done, own, name)


def test_deepspeed_with_a_hostfile_trains_the_same(settings: list[str], own: list[float], tmp_path: Path) -> None:
    if shutil.which("pdsh") is None:
        pytest.skip("pdsh is not installed")
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    with Sshd(tmp_path / "sshd") as sshd:
        command = [
            str(BIN / "deepspeed"), "--hostfile", str(hostfile), "--ssh_port", str(sshd.port), "--no_ssh_check",
            "--master_addr", "127.0.0.1", "--master_port", str(free_port()), TRAIN, *settings,
        ]  # fmt: skip
        done = run_in(tmp_path, command, PDSH_SSH_ARGS_APPEND=" ".join(sshd.options))
    done.stdout = done.stdout.replace("localhost: ", "").replace("127.0.0.1: ", "")
    assert_ran(tmp_path, done, own, "deepspeed")


@pytest.mark.parametrize("name", ["torchrun", "deepspeed"])
def test_a_refusal_is_printed_once(name: str, tmp_path: Path) -> None:
    port = ["--master_port", str(free_port())]
    command = [str(BIN / LAUNCHERS[name][0]), *port, *LAUNCHERS[name][1:]]
    done = run_in(tmp_path, [*command, "train.lr=3"])
    assert done.returncode == (2 if name == "deepspeed" else 1)  # torchrun has one code for all that is not 0
    assert done.stderr.count("train.py: train.lr: no such setting; did you mean train.learning_rate?") == 1
    assert not list(tmp_path.glob("outputs/*"))


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
        (["cluster=1x4"], "cluster=1x4: a launcher started 1x2: use cluster=1x2, or start it with RANK=… "),
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


def test_without_a_shared_file_system_a_rank_logs_on_its_own_machine(
    tmp_path: Path, settings: list[str], own: list[float]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("a file system of its own needs root")
    (tmp_path / "outputs").mkdir()
    elsewhere = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none outputs && exec "$@"', "sh")
    shared = environment(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(free_port()))
    ranks = [
        subprocess.Popen(
            [*(elsewhere if rank else ()), sys.executable, TRAIN, *settings],
            cwd=tmp_path, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [rank.communicate(timeout=120 * SCALE)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert losses(the_run(tmp_path)) == pytest.approx(own, rel=1e-5)
    assert not (the_run(tmp_path) / "rank-1.log").exists()


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_under_torchrun_a_signal_preempts_all(
    number: int, tmp_path: Path, settings: list[str], survivors: list[psutil.Process]
) -> None:
    torchrun = _under_torchrun(tmp_path, settings, survivors)
    if number == signal.SIGINT:
        os.killpg(torchrun.pid, number)  # a terminal signals every process, and torchrun signals its own once more
    else:
        torchrun.send_signal(number)
    said = torchrun.communicate(timeout=60 * SCALE)[0]
    name = signal.Signals(number).name
    assert said.count(f"preempted by {name} after step ") == 1
    result = json.loads((the_run(tmp_path) / "result.json").read_text())
    assert (result["status"], result["signal"]) == ("preempted", name)
    wait_for(lambda: not any(process.is_running() for process in survivors), 5, "the end of all")


def test_under_torchrun_a_killed_rank_ends_all(
    tmp_path: Path, settings: list[str], survivors: list[psutil.Process]
) -> None:
    torchrun = _under_torchrun(tmp_path, settings, survivors)
    log = str(the_run(tmp_path) / "rank-1.log")
    next(p for p in survivors if str(Path(f"/proc/{p.pid}/fd/1").readlink()) == log).kill()
    said = torchrun.communicate(timeout=60 * SCALE)[0]
    assert torchrun.returncode == 1
    assert said.count("rank 1 failed: killed by SIGKILL") == 1
    assert json.loads((the_run(tmp_path) / "result.json").read_text())["error"]["rank"] == 1
    wait_for(lambda: not any(process.is_running() for process in survivors), 5, "the end of all")


def _under_torchrun(folder: Path, settings: list[str], survivors: list[psutil.Process]) -> "subprocess.Popen[str]":
    """Two ranks that would run for hours, after their first step; ``survivors`` gets all processes."""
    command = [str(BIN / "torchrun"), "--nproc-per-node", "2", TRAIN, *settings[:2], "train.epochs=100000"]
    torchrun = subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: bool(list(folder.glob("outputs/*/*/metrics.jsonl"))), 120, "the first step")
    survivors += family(torchrun.pid)
    return torchrun

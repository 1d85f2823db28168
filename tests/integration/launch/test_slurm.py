"""A real Slurm cluster: a job is submitted, monitored and cancelled; an allocation is used; failures are reported."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from conftest import ROOT, SCALE, config_of, family, wait_for
from external import environment
from hydraft.config.choices import Mode
from hydraft.errors import ConfigError
from hydraft.launch.remote.channel import Channel
from hydraft.launch.remote.protocol import pieces
from hydraft.launch.slurm import job_script as launcher
from slurm_cluster import Slurm
from test_external import assert_ran, losses, own, run_in, settings  # noqa: F401
from warm_python import WarmPython

AGENT = "hydraft.launch.remote.agent"
TWO_MACHINES = ["cluster=slurm_2x4", "cluster.ranks_per_node=1", "cluster.address=127.0.0.1"]


def start(
    slurm: Slurm, python: str | Path, folder: Path, *arguments: str, ahead: tuple[str, ...] = ()
) -> "subprocess.Popen[str]":
    """Start train.py on two machines with its run in ``folder``; ``ahead`` is prepended to the command."""
    command = [*ahead, str(python), str(ROOT / "train.py"), *TWO_MACHINES, f"hydra.run.dir={folder}", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder.parent,
        env=environment(SLURM_CONF=str(slurm.config)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(folder: Path) -> dict[str, object]:
    """result.json."""
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture
def running_job(
    slurm: Slurm,
    python: WarmPython,
    tmp_path: Path,
    settings: list[str],  # noqa: F811
    survivors: list[psutil.Process],
) -> "subprocess.Popen[str]":
    """A job that would run for hours, after its first step; its agents and ranks are added to ``survivors``."""
    job = start(slurm, python.path, tmp_path / "run", *settings[:2], "train.epochs=100000", "train.log_every=1")
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() or job.poll() is not None, 120, "the first step")
    for daemon in slurm.daemons[2:]:
        survivors += [p for p in family(daemon.pid)[1:] if "hydraft" in " ".join(p.cmdline())]
    survivors += python.forks()
    return job


def _of_run(folder: Path) -> list[psutil.Process]:
    """The ranks: the processes whose output is one of the run's logs."""
    logs = {str(folder / f"rank-{rank}.log") for rank in (0, 1)}
    return [p for p in psutil.process_iter() if _output(p) in logs]


def _output(process: psutil.Process) -> str:
    try:
        return str(Path(f"/proc/{process.pid}/fd/1").readlink())
    except OSError:
        return ""


def _task(rank: psutil.Process, python: WarmPython) -> psutil.Process:
    """The task of Slurm that a rank belongs to: the program whose fork is its agent."""
    agent = next(p for p in rank.parents() if p.ppid() == python.process.pid)
    tasks = (p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[-1] == AGENT)
    return next(p for p in tasks if p.parent().name().startswith("slurmstepd") and python.fork(p.pid) == agent)


def _the_rank(number: int, folder: Path) -> psutil.Process:
    return next(p for p in _of_run(folder) if _output(p).endswith(f"rank-{number}.log"))


def test_a_job_gives_the_same_losses_and_is_monitored(
    slurm: Slurm,
    tmp_path: Path,
    settings: list[str],  # noqa: F811
    own: list[float],  # noqa: F811
) -> None:
    run = tmp_path / "run"
    job = start(slurm, sys.executable, run, *settings)
    out, err = job.communicate(timeout=120 * SCALE)
    assert job.returncode == 0, out + err
    for line in ("submitted; Ctrl-C ends it", "running on n[1-2]", "training 3/3", "try it: python infer.py run="):
        assert out.count(line) == 1
    assert losses(run) == pytest.approx(own, rel=1e-5)
    assert result(run)["status"] == "completed"
    assert (run / "job.sbatch").exists()
    assert (run / "rank-1.log").exists()
    assert "precision: fp32" in (run / "config.yaml").read_text()  # auto was resolved on the machine


def test_an_existing_allocation_is_used(
    slurm: Slurm,
    python: WarmPython,
    tmp_path: Path,
    settings: list[str],  # noqa: F811
    own: list[float],  # noqa: F811
) -> None:
    run = tmp_path / "run"
    job = start(slurm, python.path, run, *settings, ahead=("salloc", "--nodes=2", "--exclusive", "--quiet"))
    out, err = job.communicate(timeout=120 * SCALE)
    assert job.returncode == 0, out + err
    assert losses(run) == pytest.approx(own, rel=1e-5)
    assert not (run / "job.sbatch").exists()


def test_ranks_started_by_srun_give_the_same_losses(
    slurm: Slurm,
    python: WarmPython,
    tmp_path: Path,
    settings: list[str],  # noqa: F811
    own: list[float],  # noqa: F811
) -> None:
    srun = ["srun", "--nodes=2", "--ntasks-per-node=1", str(python.path), str(ROOT / "train.py"), *settings]
    assert_ran(tmp_path, run_in(tmp_path, srun, SLURM_CONF=str(slurm.config)), own, "srun")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_signal_and_a_warning_preempt_the_job(
    name: str,
    code: int,
    running_job: "subprocess.Popen[str]",
    slurm: Slurm,
    tmp_path: Path,
    survivors: list[psutil.Process],
) -> None:
    if name == "SIGINT":
        running_job.send_signal(signal.SIGINT)
    else:  # as --signal=B:USR1@… does near the time limit
        slurm.run("scancel", "--batch", "--signal=USR1", slurm.jobs().split()[0])
    out, err = running_job.communicate(timeout=60 * SCALE)
    assert running_job.returncode == code
    assert ("saving and exiting" in out) == (name == "SIGINT")
    assert err.count(f"preempted by {name} after step ") == 1
    assert (result(tmp_path / "run")["status"], result(tmp_path / "run")["signal"]) == ("preempted", name)
    wait_for(lambda: "RUNNING" not in slurm.jobs(), 20, "the end of the job")
    wait_for(lambda: not any(process.is_running() for process in survivors), 10, "the end of all processes")


def test_a_killed_task_ends_the_job_and_names_its_machine(
    running_job: "subprocess.Popen[str]", python: WarmPython, tmp_path: Path, survivors: list[psutil.Process]
) -> None:
    _task(_the_rank(1, tmp_path / "run"), python).kill()
    _, err = running_job.communicate(timeout=60 * SCALE)
    assert running_job.returncode == 1
    assert err.count("n2 failed: its task was killed: Killed") == 1
    assert result(tmp_path / "run")["error"] == {
        "host": "n2", "rank": None, "cause": "its task was killed: Killed", "log": "train.log",
    }  # fmt: skip
    wait_for(lambda: not any(process.is_running() for process in survivors), 10, "the end of all processes")


def test_a_killed_rank_ends_the_job_and_is_named(running_job: "subprocess.Popen[str]", tmp_path: Path) -> None:
    _the_rank(1, tmp_path / "run").kill()
    _, err = running_job.communicate(timeout=60 * SCALE)
    assert running_job.returncode == 1
    assert err.count("rank 1 on n2 failed: killed by SIGKILL") == 1
    assert result(tmp_path / "run")["status"] == "failed"


def test_a_config_error_in_a_rank_is_a_refusal(
    slurm: Slurm,
    python: WarmPython,
    tmp_path: Path,
    settings: list[str],  # noqa: F811
    untemplated: list[str],
) -> None:
    job = start(slurm, python.path, tmp_path / "run", *settings, *untemplated)
    _, err = job.communicate(timeout=120 * SCALE)
    assert job.returncode == 2
    assert err.startswith("train.py: data.template=chat: this model's tokenizer has no chat template")
    assert err.count("\n") == 1


def test_a_job_that_slurm_rejects_is_reported_on_one_line(
    slurm: Slurm,
    python: WarmPython,
    tmp_path: Path,
    settings: list[str],  # noqa: F811
) -> None:
    job = start(slurm, python.path, tmp_path / "run", *settings, "cluster.slurm.partition=nowhere")
    _, err = job.communicate(timeout=60 * SCALE)
    assert job.returncode == 2
    assert "Slurm rejected the job: invalid partition specified: nowhere" in err
    assert err.count("\n") == 1


def test_a_machine_without_slurm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ConfigError, match="there is no sbatch here"):
        launcher.machine(config_of("cluster=slurm_2x4").cluster, Mode.train)


def test_the_batch_script_has_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sinfo = tmp_path / "sinfo"
    sinfo.write_text('#!/bin/sh\necho "cpu* (null)"\necho "a100 gpu:a100:4(S:0-1)"\n')
    sinfo.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    config = config_of(
        "cluster=slurm_2x4", "cluster.slurm.partition=a100", "cluster.slurm.account=me", "cluster.slurm.time='1-12:00:00'",
        "cluster.slurm.cpus_per_rank=8", "+cluster.slurm.options.mem=200G", "cluster.slurm.setup=[module load cuda]",
    )  # fmt: skip
    folder = tmp_path / "50% done"
    written = launcher.script(config, folder, quiet=True, terminal=os.terminal_size((120, 40))).splitlines()
    assert f'#SBATCH --output="{tmp_path}/50%% done/slurm.log"' in written
    for line in (
        "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=32", "--gres=gpu:4", "--partition=a100", "--account=me",
        "--time=1-12:00:00", "--mem=200G", "--signal=B:USR1@90",
    ):  # fmt: skip
        assert f"#SBATCH {line}" in written
    assert written.index("module load cuda") < len(written) - 1
    assert written[-1].endswith(f"-m hydraft.launch.slurm_job '{folder}' --quiet")
    assert not launcher._has_gpus(None)


def test_a_line_too_long_for_srun_arrives_complete() -> None:
    event = json.dumps({"event": "stacks", "node": 1, "ranks": "…" * 2000}).encode() + b"\n"
    cut = pieces(event, 1)
    assert max(map(len, cut.splitlines())) < 1024
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        channel = Channel(process, [0, 1], lambda code, message: message)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(cut)
        process.stdin.close()
        events = []
        channel.unread = {process.stdout.fileno()}
        while not events:
            events += list(channel.read(process.stdout, None))  # type: ignore[arg-type]
    assert events == [json.loads(event)]

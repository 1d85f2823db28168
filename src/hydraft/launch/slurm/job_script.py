"""Ranks on a Slurm cluster: a job is written, submitted and followed; inside an allocation, srun starts one agent a machine.

The job runs ``batch.py`` on its first machine, which does what a person inside an allocation would. The run's folder is on
the file system that the machines share. No torch at module level.
"""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from hydraft.config.choices import Mode
from hydraft.config.cluster import ClusterConfig, SlurmConfig
from hydraft.config.schema import Config
from hydraft.errors import ConfigError, RankFailed
from hydraft.launch.local.shutdown import Wish
from hydraft.launch.remote.channel import Channel, killed_by
from hydraft.launch.remote.protocol import Job
from hydraft.launch.remote.ssh import FAR_SIDE, NO_PROJECT, NO_PYTHON, make_job
from hydraft.launch.remote.supervisor import Supervisor
from hydraft.system.hardware import Hardware
from hydraft.system.source_tree import ROOT

SPARE_SECONDS = 30
"""From the end of the grace that follows Slurm's warning to the time limit."""

TERMINAL = "HYDRAFT_TERMINAL"
"""Columns and lines of the terminal that a job is followed on, as ``120x40``; not set where it is none."""

TASK_ENDED = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (.+)")


def is_allocated() -> bool:
    """Whether this process is inside a job's allocation."""
    return "SLURM_JOB_ID" in os.environ


def machine(config: Config) -> Hardware | None:
    """What the first machine of the allocation has; None where there is none yet.

    Raises:
        ConfigError: Slurm, or enough of the allocation, is not there.
    """
    cluster = config.cluster
    if config.mode is not Mode.train:  # a plan needs no Slurm
        return None
    command = "srun" if is_allocated() else "sbatch"
    if shutil.which(command) is None:
        raise ConfigError(
            f"cluster.launcher=slurm: there is no {command} here: start it on a machine of the Slurm cluster, "
            "or use cluster.hosts=[…] without Slurm"
        )
    if is_allocated() and len(machines()) < cluster.nodes:
        raise ConfigError(
            f"cluster.nodes={cluster.nodes}: job {os.environ['SLURM_JOB_ID']} has {len(machines())}: "
            f"use cluster.nodes={len(machines())}, or leave the allocation first"
        )
    if not is_allocated():
        return None
    done = subprocess.run(
        _command(machines()[:1], cluster, "hydraft.system.hardware"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return Hardware.from_dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        raise ConfigError(f"{machines()[0]}: {_explain(done.returncode, done.stderr, cluster)}") from None


def machines() -> list[str]:
    """Of the allocation, in Slurm's order."""
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
    return listed.stdout.split()


def run_allocated(config: Config, folder: Path, quiet: bool, wish: Wish) -> None:
    """Run ``config``, saved in ``folder``, on the machines of this allocation, and wait for all of them.

    Raises:
        RankFailed: the first rank or machine that failed.
        ConfigError: what a person has to change.
        Preempted, Stopped: a signal asked for an early end.
    """
    names = machines()[: config.cluster.nodes]
    job = make_job(config, folder, names, quiet)
    job = replace(job, terminal=_terminal() or job.terminal)
    mark = folder / ".launch"
    mark.write_text(job.token)
    channel = _srun(job, config.cluster)
    try:
        Supervisor(job, [channel], config.cluster.hang_timeout, wish).run()
    except RankFailed as error:
        raise _by_task(error, channel.said, folder) from None
    finally:
        if channel.process.poll() is None:
            channel.process.kill()
            channel.process.wait()
        mark.unlink(missing_ok=True)


def _command(names: list[str], cluster: ClusterConfig, module: str) -> list[str]:
    """The command line that starts ``module`` once on each of those machines."""
    srun = [
        "srun", f"--nodes={len(names)}", f"--nodelist={','.join(names)}", f"--ntasks={len(names)}",
        "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--cpu-bind=none", f"--job-name={module}",
    ]  # fmt: skip
    if "SLURM_STEP_ID" in os.environ:  # a shell that is a step itself holds what it is to share
        srun.append("--overlap")
    far_side = "\n".join([*cluster.slurm.setup, FAR_SIDE])
    project, python = cluster.workdir or str(ROOT), cluster.python or sys.executable
    return [*srun, "sh", "-c", far_side, "hydraft", project, python, module]


def _srun(job: Job, cluster: ClusterConfig) -> Channel:
    """Start an agent on each machine; all of them read their job from srun's stdin."""
    process = subprocess.Popen(
        _command(job.hosts, cluster, "hydraft.launch.remote.agent"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,  # Ctrl-C is for the launcher, which asks the agents to stop
    )
    assert process.stdin is not None
    process.stdin.write(job.to_line())

    def explain(code: int, said: str) -> str:
        return _explain(code, said, cluster)

    return Channel(process, list(range(len(job.hosts))), explain)


def _explain(code: int, said: str, cluster: ClusterConfig) -> str:
    """Why srun ended before the agents' last words."""
    if code == NO_PROJECT:
        return f"the project is not at {cluster.workdir or ROOT} there: name its folder with cluster.workdir="
    if code == NO_PYTHON:
        return f"there is no {cluster.python or sys.executable} there: name its python with cluster.python="
    if "ModuleNotFoundError" in said:
        return "the project's python there lacks a package: run make setup there, or use cluster.python="
    last = next((text for text in reversed(said.splitlines()) if text.strip()), "")
    return f"srun {killed_by(code)}" + (f" ({last.strip()})" if last else "")


def _by_task(error: RankFailed, said: list[str], folder: Path) -> RankFailed:
    """The failure, unless srun has named a task that was killed first: then what agents said are its effects."""
    for text in said:
        ended = TASK_ENDED.match(text)
        if ended and "Exited with exit code" not in ended[3] and error.kind not in ("config", "hung", "killed"):
            cause = f"its task was ended from outside: {ended[3]}"
            return RankFailed(None, cause, folder / "train.log", "killed", ended[1])
    return error


def _terminal() -> list[int] | None:
    size = os.environ.get(TERMINAL, "")
    return [int(part) for part in size.split("x")] if size else None


def script(config: Config, folder: Path, quiet: bool, terminal: os.terminal_size | None) -> str:
    """The job, as sbatch takes it."""
    cluster, slurm = config.cluster, config.cluster.slurm
    python, project = cluster.python or sys.executable, Path(cluster.workdir or ROOT)
    words = [python, "-u", "-m", "hydraft.launch.slurm_job", str(folder.resolve()), *(["--quiet"] if quiet else [])]
    size = [f"export {TERMINAL}={terminal.columns}x{terminal.lines}"] if terminal else []
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in _options(config, folder, slurm)),
            *slurm.setup,
            *size,
            f"export PYTHONPATH={shlex.quote(str(project / 'src'))}${{PYTHONPATH:+:$PYTHONPATH}}",
            f"exec {shlex.join(words)}",
            "",
        ]
    )


def _options(config: Config, folder: Path, slurm: SlurmConfig) -> list[str]:
    ranks = config.cluster.ranks_per_node
    log = str(folder.resolve() / "slurm.log").replace("\\", "\\\\").replace("%", "%%")
    gres = slurm.gres or (f"gpu:{ranks}" if _has_gpus(slurm.partition) else None)
    named = {"partition": slurm.partition, "account": slurm.account, "time": slurm.time, "gres": gres}
    set_ones = {name: value for name, value in named.items() if value is not None} | slurm.options
    return [
        f"--job-name=hydraft-{re.sub(r'[^A-Za-z0-9_.-]', '_', folder.name)}",
        f"--nodes={config.cluster.nodes}",
        "--ntasks-per-node=1",
        "--exclusive" if slurm.cpus_per_rank is None else f"--cpus-per-task={slurm.cpus_per_rank * ranks}",
        f'--output="{log}"',
        f"--signal=B:USR1@{SPARE_SECONDS + math.ceil(config.train.grace)}",
        "--no-requeue",
        *(f"--{name}" if value is None else f"--{name}={value}" for name, value in set_ones.items()),
    ]


def _has_gpus(partition: str | None) -> bool:
    """Whether machines of the partition (None: the default one) have GPUs that Slurm hands out."""
    listed = subprocess.run(["sinfo", "--noheader", "--format=%P %G"], capture_output=True, text=True, check=False)
    rows = [line.split(maxsplit=1) for line in listed.stdout.splitlines() if line.strip()]
    return any(
        (name == partition or (partition is None and name.endswith("*")) or name == f"{partition}*") and "gpu" in gres
        for name, gres in rows
    )

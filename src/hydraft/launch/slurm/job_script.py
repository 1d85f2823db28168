"""The batch script of a Slurm job, and runs inside an allocation, where srun starts one agent per machine.

The job runs ``slurm_job.py`` on its first machine, which starts the run as a user inside an allocation would. The run's folder is on
a file system that the machines share. No torch at module level.
"""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hydraft.config.choices import Mode
from hydraft.config.cluster import ClusterConfig, SlurmConfig
from hydraft.config.schema import Config
from hydraft.errors import ConfigError, Failure, FailureReason, RankFailed
from hydraft.launch.local.shutdown import ShutdownHandler
from hydraft.launch.remote.channel import Channel, describe_exit
from hydraft.launch.remote.protocol import LaunchSpec
from hydraft.launch.remote.ssh import NO_PROJECT, NO_PYTHON, REMOTE_SCRIPT, make_spec, no_project, project
from hydraft.launch.remote.supervisor import Supervisor
from hydraft.system import private_file, program
from hydraft.system.hardware import Hardware
from hydraft.system.source_tree import INSTALLED

SPARE_SECONDS = 30
"""From the end of the grace period, which begins with Slurm's warning, to the time limit."""

TERMINAL = "HYDRAFT_TERMINAL"
"""Environment variable: columns and lines of the terminal that shows the job, as ``120x40``; not set without a terminal."""

FAILURE = ".failure.json"
"""File in the run's folder: the failure of the job, for the command that submitted it."""

TASK_ENDED = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (.+)")


def is_allocated() -> bool:
    """Whether this process is inside a job's allocation."""
    return bool(os.environ.get("SLURM_JOB_ID"))


def machine(cluster: ClusterConfig, mode: Mode) -> Hardware | None:
    """The hardware of the first machine of the allocation; None if there is no allocation yet.

    Raises:
        ConfigError: Slurm is not available, or the allocation is too small.
    """
    if mode is not Mode.train:  # a plan needs no Slurm
        return None
    command = "srun" if is_allocated() else "sbatch"
    if shutil.which(command) is None:
        raise ConfigError(
            f"cluster.launcher=slurm: there is no {command} here: run this on a machine of the Slurm cluster, "
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
    """Names of the machines of the allocation, in Slurm's order."""
    nodes = os.environ.get("SLURM_JOB_NODELIST", "")
    listed = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
    return listed.stdout.split()


def run_allocated(config: Config, folder: Path, quiet: bool, shutdown: ShutdownHandler) -> None:
    """Run ``config``, saved in ``folder``, on the machines of this allocation, and wait for all of them.

    Raises:
        RankFailed: the first rank or machine that failed.
        ConfigError: what the user has to change.
        Preempted, Stopped: a signal ended the run.
    """
    names = machines()[: config.cluster.nodes]
    spec = make_spec(config, folder, names, quiet)
    spec = replace(spec, terminal=_terminal() or spec.terminal)
    mark = folder / ".launch"
    private_file.write(mark, spec.token)
    channel = _srun(spec, config.cluster)
    try:
        Supervisor(spec, [channel], config.cluster.hang_timeout, shutdown).run()
    except RankFailed as error:
        raise RankFailed(_task_failure(error.failure, channel.stderr, folder)) from None
    finally:
        if channel.process.poll() is None:
            channel.process.kill()
            channel.process.wait()
        mark.unlink(missing_ok=True)


def _command(names: list[str], cluster: ClusterConfig, module: str) -> list[str]:
    """The command line that runs ``module`` once on each of the machines ``names``."""
    srun = [
        "srun", f"--nodes={len(names)}", f"--nodelist={','.join(names)}", f"--ntasks={len(names)}",
        "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--cpu-bind=none", f"--job-name={module}",
    ]  # fmt: skip
    if os.environ.get("SLURM_STEP_ID"):  # a shell inside a step holds the resources that it has to share
        srun.append("--overlap")
    remote_script = "\n".join([*cluster.slurm.setup, REMOTE_SCRIPT])
    python = cluster.python or sys.executable
    return [*srun, "sh", "-c", remote_script, "hydraft", project(cluster), python, module]


def _srun(spec: LaunchSpec, cluster: ClusterConfig) -> Channel:
    """Start an agent on each machine; all of them read their launch specification from srun's stdin."""
    process = subprocess.Popen(
        _command(spec.hosts, cluster, "hydraft.launch.remote.agent"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,  # Ctrl-C is for the launcher, which stops the agents
    )
    assert process.stdin is not None
    process.stdin.write(spec.to_line())

    def explain(code: int, stderr: str) -> str:
        return _explain(code, stderr, cluster)

    return Channel(process, list(range(len(spec.hosts))), explain, blamed=_first_to_end)


def _explain(code: int, stderr: str, cluster: ClusterConfig) -> str:
    """Why srun ended before the agents' final events."""
    if code == NO_PROJECT:
        return no_project(cluster)
    if code == NO_PYTHON:
        return f"there is no {cluster.python or sys.executable} there: set cluster.python= to its python"
    if "ModuleNotFoundError" in stderr:
        return f"the project's python there lacks a package: {program.set_up()}, or use cluster.python="
    last = next((text for text in reversed(stderr.splitlines()) if text.strip()), "")
    return f"srun {describe_exit(code)}" + (f" ({last.strip()})" if last else "")


def _first_to_end(stderr: Sequence[str]) -> str | None:
    """The machine whose task ended first by itself, according to srun; it ends the others after that."""
    return next((ended[1] for ended in map(TASK_ENDED.match, stderr) if ended and "Exited with" in ended[3]), None)


def _task_failure(failure: Failure, stderr: Sequence[str], folder: Path) -> Failure:
    """The failure, unless srun reports a task that was killed: then that is the cause, and ``failure`` is an effect."""
    if failure.reason in (FailureReason.config, FailureReason.hung, FailureReason.killed):
        return failure
    for text in stderr:
        ended = TASK_ENDED.match(text)
        if ended and "Exited with exit code" not in ended[3]:
            message = f"its task was killed: {ended[3]}"
            return Failure(FailureReason.killed, message, host=ended[1], log=folder / "train.log")
    return failure


def _terminal() -> list[int] | None:
    size = os.environ.get(TERMINAL, "")
    return [int(part) for part in size.split("x")] if size else None


def script(config: Config, folder: Path, quiet: bool, terminal: os.terminal_size | None) -> str:
    """The batch script, for sbatch."""
    cluster, slurm = config.cluster, config.cluster.slurm
    python = cluster.python or sys.executable
    command = [
        python,
        *(["-P"] if INSTALLED else []),
        "-u",
        "-m",
        "hydraft.launch.slurm_job",
        str(folder.resolve()),
        *(["--quiet"] if quiet else []),
    ]
    size = [f"export {TERMINAL}={terminal.columns}x{terminal.lines}"] if terminal else []
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in _options(config, folder, slurm)),
            *slurm.setup,
            *size,
            *_import_from(cluster),
            f"exec {shlex.join(command)}",
            "",
        ]
    )


def _import_from(cluster: ClusterConfig) -> list[str]:
    """The line with which a job imports the working copy; an installed package needs none."""
    if INSTALLED:
        return []
    source = shlex.quote(str(Path(project(cluster), "src")))
    return [f"export PYTHONPATH={source}${{PYTHONPATH:+:$PYTHONPATH}}"]


def _options(config: Config, folder: Path, slurm: SlurmConfig) -> list[str]:
    ranks = config.cluster.ranks_per_node
    log = str(folder.resolve() / "slurm.log").replace("%", "%%")
    gres = slurm.gres or (f"gpu:{ranks}" if _has_gpus(slurm.partition) else None)
    named = {"partition": slurm.partition, "account": slurm.account, "time": slurm.time, "gres": gres}
    options = {name: value for name, value in named.items() if value is not None} | slurm.options
    return [
        f"--job-name=hydraft-{re.sub(r'[^A-Za-z0-9_.-]', '_', folder.name)}",
        f"--nodes={config.cluster.nodes}",
        "--ntasks-per-node=1",
        "--exclusive" if slurm.cpus_per_rank is None else f"--cpus-per-task={slurm.cpus_per_rank * ranks}",
        f"--output={_in_quotes(log)}",
        f"--signal=B:USR1@{SPARE_SECONDS + math.ceil(config.train.grace)}",
        "--no-requeue",
        *(
            f"--{name}" if value is None else f"--{name}={_option_value(name, str(value))}"
            for name, value in options.items()
        ),
    ]


def check_folder(folder: Path) -> None:
    """Refuse a folder that Slurm cannot write the job's output to: it drops backslashes, and a batch script has one line per option.

    Raises:
        ConfigError: names ``hydra.run.dir``.
    """
    path = str(folder.resolve())
    for character, called in (("\\", "a backslash"), ("\n", "a line break"), ("\r", "a carriage return")):
        if character in path:
            raise ConfigError(
                f"hydra.run.dir={folder}: has {called} in its path ({path!r}), which Slurm cannot write the job's output to: "
                "give another folder"
            )


def _option_value(name: str, value: str) -> str:
    """A value as sbatch reads it from a batch script.

    Raises:
        ConfigError: it has a line break.
    """
    if "\n" in value or "\r" in value:
        raise ConfigError(f"cluster.slurm.options: {name} has a line break, which ends an option of a batch script")
    return value if re.fullmatch(r"[^\s\"'#\\]+", value) else _in_quotes(value)


def _in_quotes(text: str) -> str:
    """Text in sbatch's quotes, in which a backslash escapes."""
    escaped = re.sub(r'(["\\])', r"\\\1", text)
    return f'"{escaped}"'


def _has_gpus(partition: str | None) -> bool:
    """Whether machines of the partition (None: the default one) have GPUs that Slurm allocates."""
    listed = subprocess.run(["sinfo", "--noheader", "--format=%P %G"], capture_output=True, text=True, check=False)
    rows = [line.split(maxsplit=1) for line in listed.stdout.splitlines() if line.strip()]
    return any(
        (name == partition or (partition is None and name.endswith("*")) or name == f"{partition}*") and "gpu" in gres
        for name, gres in rows
    )

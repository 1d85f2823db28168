"""The process of one job of the pool: its environment, its start and its result. No torch."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer

from hydraft.launch.local.packed import LOG
from hydraft.system import streams
from hydraft.system.parent_death import die_with_parent

EXIT_INTERRUPTED = 130


class Task(NamedTuple):
    """A job of a sweep."""

    number: int
    overrides: list[str]
    config: Any = None
    """Its config, if that has been composed."""
    pack: str | None = None
    """What it has in common with the jobs that it can share a process with; None if it runs alone."""


@dataclass
class Sweep:
    """What all jobs of one launch share."""

    context: HydraContext
    config: DictConfig
    """The sweep's config, without the overrides of a job."""
    task: TaskFunction
    state: Any
    """Hydra's singletons and OmegaConf's resolvers."""


@dataclass
class JobEnvironment:
    """Working directory, environment variables and part of the machine of a job."""

    folder: str
    """The working directory."""
    variables: dict[str, str]
    cores: int
    gpus: tuple[str, ...] | None
    """Names for CUDA_VISIBLE_DEVICES; None leaves it unchanged."""


def enter(channel: Connection, environment: JobEnvironment, sweep: bytes, job: bytes) -> None:
    """Run one job and send its result through ``channel``, as pickled bytes.

    Args:
        environment: of the job.
        sweep: a pickled ``Sweep``.
        job: a pickled ``Task``.
    """
    prepare(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # the fork server ignores them
    try:
        task: Task = cloudpickle.loads(job)
        done = run(cloudpickle.loads(sweep), task, to_file)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        done = failed(error)
    sys.stdout.flush()
    sys.stderr.flush()
    channel.send_bytes(packed(done))


def prepare(environment: JobEnvironment) -> None:
    """Give this process its working directory, its environment variables and its part of the machine."""
    die_with_parent()
    os.setpgid(0, 0)  # the launcher passes on a Ctrl-C in the terminal
    os.chdir(environment.folder)
    os.environ.clear()
    os.environ.update(environment.variables)
    if environment.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(environment.gpus)
    os.environ["HYDRAFT_CORES"] = str(environment.cores)  # its ranks count their threads by it


def packed(returned: JobReturn) -> bytes:
    """What a job returned, pickled; if that is not possible, that it failed."""
    try:
        return bytes(cloudpickle.dumps(returned))
    except Exception as error:
        return bytes(cloudpickle.dumps(failed(RuntimeError(f"what the job returned cannot be sent back: {error}"))))


def failed(error: BaseException, overrides: Sequence[str] | None = None) -> JobReturn:
    """The result of a job that failed, for Hydra."""
    returned = JobReturn()
    returned.overrides = overrides
    returned.status = JobStatus.FAILED
    returned.return_value = error
    return returned


def run(sweep: Sweep, task: Task, redirect: Callable[[Path], None]) -> JobReturn:
    """Run a job.

    Args:
        sweep: its sweep; its Hydra objects are those of this job from now on.
        task: the job.
        redirect: sends what is printed to a file.
    """
    config: DictConfig | None = task.config
    plugins = Plugins.instance()
    Singleton._instances = {**sweep.state["instances"], Plugins: plugins}
    BaseContainer._resolvers = sweep.state["omegaconf_resolvers"]
    setup_globals()
    composed = config is not None
    if config is None:
        config = sweep.context.config_loader.load_sweep_config(sweep.config, task.overrides)
    with open_dict(config):
        config.hydra.job.id = config.hydra.job.num = task.number
    HydraConfig.instance().cfg = config  # for ``${hydra:…}`` in the folder; run_job sets its own copy
    folder = Path(str(OmegaConf.select(config, "hydra.sweep.dir")), str(OmegaConf.select(config, "hydra.sweep.subdir")))
    folder.mkdir(parents=True, exist_ok=True)
    redirect(folder / LOG)
    returned: JobReturn = run_job(
        hydra_context=sweep.context,
        task_function=sweep.task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    if composed:  # by a sweep of this package, which has the config; those of thousands of jobs would take gigabytes
        returned.cfg = returned.hydra_cfg = None
    if returned.status is JobStatus.FAILED:
        traceback.print_exception(returned._return_value)  # into the log; the launcher reports the last line
    return returned


def to_file(log: Path) -> None:
    """Redirect the output of this process and its children to ``log``."""
    nowhere = os.open(os.devnull, os.O_RDONLY)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for source, target in ((nowhere, 0), (handle, 1), (handle, 2)):
        os.dup2(source, target)
    os.close(nowhere)
    os.close(handle)
    streams.guard(log.name)
    streams.go_on()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)  # type: ignore[union-attr]

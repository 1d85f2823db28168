"""A job of the pool, in a process of its own that was forked for it: where it begins, and what it hands back. No torch here."""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer

from hydraft.system.parent_death import die_with_parent

LOG = "job.log"
"""What a job prints, in its folder."""

EXIT_INTERRUPTED = 130


@dataclass
class Sweep:
    """What all jobs of a launch share."""

    context: HydraContext
    config: DictConfig
    """The sweep's own config, jobs' overrides apart."""
    task: TaskFunction
    state: Any
    """Hydra's singletons and OmegaConf's resolvers."""


@dataclass
class Place:
    """Where a job runs: its share of the machine."""

    folder: str
    """The working directory."""
    environment: dict[str, str]
    cores: int
    gpus: tuple[str, ...] | None
    """As in CUDA_VISIBLE_DEVICES; None leaves that alone."""


def enter(channel: Connection, place: Place, sweep: bytes, job: bytes) -> None:
    """Run one job and send what came of it through ``channel``, as pickled bytes.

    Args:
        place: its share.
        sweep: a pickled ``Sweep``.
        job: pickled: its number, its overrides, its config if that is composed already.
    """
    die_with_parent()
    os.setpgid(0, 0)  # a Ctrl-C in the terminal is the launcher's to hand on
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # the server that this was forked from hears none
    os.chdir(place.folder)
    os.environ.clear()
    os.environ.update(place.environment)
    if place.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(place.gpus)
    os.environ["HYDRAFT_CORES"] = str(place.cores)  # its ranks count their threads by it
    try:
        done = _run(cloudpickle.loads(sweep), *cloudpickle.loads(job))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        done = failed(error)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        answer = cloudpickle.dumps(done)
    except Exception as error:
        answer = cloudpickle.dumps(failed(RuntimeError(f"what the job returned cannot be sent back: {error}")))
    channel.send_bytes(answer)


def failed(error: BaseException, overrides: Sequence[str] | None = None) -> JobReturn:
    """What Hydra gets of a job that has nothing else to hand back."""
    returned = JobReturn()
    returned.overrides = overrides
    returned.status = JobStatus.FAILED
    returned.return_value = error
    return returned


def _run(sweep: Sweep, number: int, overrides: list[str], config: DictConfig | None) -> JobReturn:
    plugins = Plugins.instance()
    Singleton._instances = {**sweep.state["instances"], Plugins: plugins}
    BaseContainer._resolvers = sweep.state["omegaconf_resolvers"]
    setup_globals()
    if config is None:
        config = sweep.context.config_loader.load_sweep_config(sweep.config, overrides)
    with open_dict(config):
        config.hydra.job.id = config.hydra.job.num = number
    HydraConfig.instance().set_config(config)
    folder = Path(str(OmegaConf.select(config, "hydra.sweep.dir")), str(OmegaConf.select(config, "hydra.sweep.subdir")))
    folder.mkdir(parents=True, exist_ok=True)
    _redirect(folder / LOG)
    returned: JobReturn = run_job(
        hydra_context=sweep.context,
        task_function=sweep.task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    if returned.status is JobStatus.FAILED:
        traceback.print_exception(returned._return_value)  # into the log; whoever asked is told the last line
    return returned


def _redirect(log: Path) -> None:
    """What this process and all below it print goes to ``log``."""
    nowhere = os.open(os.devnull, os.O_RDONLY)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for source, target in ((nowhere, 0), (handle, 1), (handle, 2)):
        os.dup2(source, target)
    os.close(nowhere)
    os.close(handle)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)  # type: ignore[union-attr]

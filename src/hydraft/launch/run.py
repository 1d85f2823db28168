"""Starts a run with the launcher that its config names, restarts it if needed, and writes its result. No torch at module level."""

import dataclasses
import json
import logging
import os
import shlex
import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from hydraft.checkpoint import manifest
from hydraft.config import printed
from hydraft.config.choices import Launcher, Mode
from hydraft.config.cluster import ClusterConfig
from hydraft.config.schema import Config
from hydraft.config.train import TrainConfig
from hydraft.errors import ConfigError, Failure, FailureReason, RankFailed, RunFailed, RunStopped
from hydraft.launch import recovery, run_log
from hydraft.launch.external import coordinator
from hydraft.launch.external.store import RendezvousStore
from hydraft.launch.local import elastic, packed
from hydraft.launch.local.shutdown import Preempted, ShutdownHandler, Stopped
from hydraft.launch.remote import hosts, ssh
from hydraft.launch.slurm import job_script, monitor
from hydraft.runs import run_folder
from hydraft.system import files, hardware, limits, program, streams, temporary
from hydraft.system.hardware import Hardware
from hydraft.system.redaction import redact, redact_command, redact_text
from hydraft.system.source_tree import INSTALLED, ROOT
from hydraft.training import deepspeed_ops

logger = logging.getLogger(__name__)
logger.setLevel(logging.INFO)

Shutdown = ShutdownHandler | packed.MemberShutdown

END_KEYS = ("error", "signal", "step")
"""Keys of result.json that describe how a run ended; those of an earlier attempt are removed."""


def run(config: Config, folder: Path, quiet: bool = False, store: RendezvousStore | None = None) -> float | None:
    """Run ``config``, already saved in ``folder``, on its ranks, and write the result to ``result.json``.

    Args:
        config: the run.
        folder: its folder.
        quiet: print neither the progress bar nor the table.
        store: of rank 0, if another launcher started the ranks.

    Returns:
        The run's objective (held-out loss, else training loss), or None.

    Raises:
        RunFailed: a rank failed; the message names the rank and the cause.
        RunStopped: a signal ended the run; the message says what is saved.
        ConfigError: a rank found a setting that the user has to change.
    """
    started = time.time()
    with run_log.writing(folder):
        logger.info("command: %s", redact_command(program.words()))
        try:
            with packed.shutdown() or ShutdownHandler(config.train.grace) as shutdown:
                _run_with_restarts(config, folder, quiet, shutdown, store)
        except RankFailed as error:
            failure = error.failure
            status = "diverged" if failure.reason is FailureReason.diverged else "failed"
            _write_result(folder, started, status, error=_error(failure))
            _raise_failed(config.train, folder, failure)
        except Preempted as error:
            name = signal.Signals(error.number).name
            _write_result(folder, started, "preempted", signal=name, step=error.step)
            advice = f"to resume: {printed.command('train', printed.override('resume', folder))}"
            raise RunStopped(str(error), error.number, error.step, advice) from None
        except Stopped as error:
            _write_result(folder, started, "interrupted", signal=signal.Signals(error.number).name)
            raise RunStopped(str(error), error.number, advice=f"what was saved is in {folder}") from None
        except BaseException as error:
            cause = f"{type(error).__name__}: {error}"
            _write_result(folder, started, "failed", error={"rank": None, "cause": cause})
            raise
        _write_result(folder, started, "completed")
    if (verdict := run_folder.not_learned(folder)) is not None:
        raise RunFailed(verdict)
    return run_folder.objective(folder)


def _write_result(folder: Path, started: float, status: str, **values: Any) -> None:
    """Write how the run ended to result.json, beside what rank 0 has written there."""
    logger.info("%s %s", status, values)
    file = folder / "result.json"
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        assert isinstance(known, dict)
    except (OSError, ValueError, AssertionError):  # none, or damaged
        known = {}
    removed = END_KEYS if status == "diverged" else (*END_KEYS, "divergence")
    known = {name: value for name, value in known.items() if name not in removed}
    try:
        files.write_json(file, {**known, "status": status, "started": started, "ended": time.time(), **redact(values)})
    except OSError as error:  # a full disk must not hide why the run ended
        print(f"{file} could not be written: {error.strerror}", file=sys.stderr)


def _error(failure: Failure) -> dict[str, Any]:
    """``error`` in result.json."""
    host = {} if failure.host is None else {"host": failure.host}
    log = None if failure.log is None else failure.log.name
    return {**host, "rank": failure.rank, "cause": failure.cause, "log": log}


def _raise_failed(train: TrainConfig, folder: Path, failure: Failure) -> NoReturn:
    """Raise the error that the command ends with."""
    if failure.reason is FailureReason.config:
        raise ConfigError(failure.message) from None
    if failure.reason is FailureReason.diverged:
        advice = "" if failure.advice is None else f"; try {failure.advice}"
        details = f"what was saved is in {folder}"
        raise RunFailed(f"the run diverged: {failure.message}{advice}", failure=failure, details=details) from None
    cause = f"{failure.cause}{recovery.advice_on_kill(train, failure)}"
    if any(text in failure.message for text in files.FULL.values()):
        cause += f"; free space there, then: {program.typed('train')} resume={shlex.quote(str(folder))}"
    raise RunFailed(f"{failure.subject} failed: {cause}", failure=failure, details=f"its log: {failure.log}") from None


def hold(cluster: ClusterConfig, folder: Path) -> AbstractContextManager[None]:
    """Lock the run in ``folder`` against other processes; a Slurm job takes the lock itself when it starts.

    Raises:
        ConfigError: another process is running it, or Slurm cannot use the folder.
    """
    if cluster.launcher is not Launcher.slurm or job_script.is_allocated():
        return run_folder.held(folder)
    job_script.check_folder(folder)
    with run_folder.held(folder):
        return nullcontext()


def _run_with_restarts(
    config: Config, folder: Path, quiet: bool, shutdown: Shutdown, store: RendezvousStore | None
) -> None:
    """Start the ranks, and restart them from the newest checkpoint up to ``cluster.max_restarts`` times.

    Recoveries (``recovery.py``) do not count as restarts.

    Raises:
        RankFailed: they failed once more, or for a reason that a restart does not change.
        Preempted, Stopped: a signal ended the run.
    """
    attempts, restart = recovery.Attempts(config, folder), 0
    while True:
        try:
            return _start(attempts.config, folder, quiet, shutdown, store)
        except RankFailed as error:
            failure = error.failure
            diverged = failure.reason is FailureReason.diverged
            if shutdown.number is not None and not diverged:
                name = signal.Signals(shutdown.number).name
                why = f"stopped by {name}, and {failure.subject} failed: {failure.cause}"
                raise Stopped(shutdown.number, why) from None
            if shutdown.number is None and attempts.recover(failure):
                continue
            restart += 1
            if diverged or restart > config.cluster.max_restarts or failure.reason is FailureReason.config:
                raise
            checkpoint, _ = manifest.newest(folder)
            source = "the beginning" if checkpoint is None else checkpoint.name
            count = f"restart {restart} of {config.cluster.max_restarts}"
            line = redact_text(f"{failure.subject} failed: {failure.cause}; restarting from {source} ({count})")
            logger.info(line)
            print(line, file=sys.stderr, flush=True)


def _start(config: Config, folder: Path, quiet: bool, shutdown: Shutdown, store: RendezvousStore | None) -> None:
    """Start the ranks with the launcher that the config names, and wait for them; in a pack, train in this thread."""
    if isinstance(shutdown, packed.MemberShutdown):
        packed.start(config, folder)
    elif config.cluster.launcher is Launcher.joined:
        assert store is not None, "environment.apply sets the launcher only under another launcher"
        coordinator.start(config, folder, shutdown, store)
    elif config.cluster.launcher is Launcher.slurm:
        monitor.start(config, folder, quiet, shutdown)
    elif config.cluster.on_hosts:
        ssh.start(config, folder, hosts.choose(config.cluster), quiet, shutdown)
    else:
        _start_here(config, folder, quiet, shutdown)


def machine(config: Config) -> Hardware | None:
    """The hardware of rank 0's machine; None if Slurm has yet to choose it, or for a plan without host names.

    Raises:
        ConfigError: the hosts are not known, or the first cannot be reached; or Slurm is not available.
    """
    if config.cluster.launcher is Launcher.slurm:
        return job_script.machine(config.cluster, config.mode)
    if config.debug.cpu:
        hardware.hide_gpus()  # the hosts get the variable too
    if not config.cluster.on_hosts:
        return hardware.detect()
    try:
        chosen = hosts.choose(config.cluster)
    except ConfigError:
        if config.mode is Mode.train:
            raise
        return None
    found = ssh.query_hardware(chosen[0], config.cluster)
    return dataclasses.replace(found, gpus=()) if config.debug.cpu else found


def refused_here(cluster: ClusterConfig) -> list[str]:
    """Why a run on several machines cannot be started here; empty if it can."""
    if not cluster.on_hosts or cluster.launcher is Launcher.slurm:
        return []
    try:
        hosts.choose(cluster)
    except ConfigError as error:
        return [str(error)]
    return []


def placed(config: Config) -> Config:
    """``config`` with the paths as its ranks see them: those below the project's folder are moved to ``cluster.workdir``."""
    workdir = config.cluster.workdir

    def there(path: str) -> str:
        return f"{workdir}{path.removeprefix(str(ROOT))}" if path.startswith(f"{ROOT}/") else path

    if workdir is None or INSTALLED:  # what is shipped is in the package there
        return config
    data = config.data
    held_out = None if data.eval is None else there(data.eval)
    start = None if config.lora.start is None else there(config.lora.start)
    return dataclasses.replace(
        config,
        lora=dataclasses.replace(config.lora, start=start),
        model=dataclasses.replace(config.model, path=there(config.model.path)),
        data=dataclasses.replace(
            data, train=there(data.train), eval=held_out, mix=[there(source) for source in data.mix]
        ),
    )


def _start_here(config: Config, folder: Path, quiet: bool, shutdown: ShutdownHandler) -> None:
    """All ranks on this machine."""
    limits.raise_open_files(config.world_size)
    machine = hardware.detect()
    for line in deepspeed_ops.prepare(deepspeed_ops.needed(config, machine), machine):
        print(line, file=sys.stderr)
        logger.info(line)
    os.environ.update(deepspeed_ops.environment(machine))
    # Beside another busy process, threads that spin while they wait slow a run on a CPU a hundredfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with temporary.folder("notes") as notes:
        ranks = elastic.LocalRanks(
            folder,
            notes,
            config.world_size,
            terminal=os.devnull if quiet or streams.is_lost() else None,
            hang_timeout=config.cluster.hang_timeout,
        )
        elastic.start(ranks, machine, shutdown)

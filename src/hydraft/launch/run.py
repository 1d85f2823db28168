"""How ranks come to life. Knows a Config and a run's folder, nothing of training, and imports no torch at module level."""

import dataclasses
import json
import logging
import os
import signal
import sys
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from hydraft.checkpoint import manifest
from hydraft.config.choices import Launcher, Mode
from hydraft.config.schema import Config
from hydraft.errors import ConfigError, RankFailed, RunFailed, RunStopped
from hydraft.launch import recovery
from hydraft.launch.external import coordinator
from hydraft.launch.local import elastic
from hydraft.launch.local.shutdown import Preempted, Stopped, Wish
from hydraft.launch.remote import hosts, ssh
from hydraft.launch.slurm import job_script, monitor
from hydraft.runs import run_folder
from hydraft.system import files, hardware
from hydraft.system.hardware import Hardware
from hydraft.system.source_tree import ROOT
from hydraft.training import deepspeed_ops

logger = logging.getLogger(__name__)
logger.setLevel(logging.INFO)

OF_ITS_END = ("error", "signal", "step")
"""What result.json says of how a run ended; an earlier end is no matter any more."""


def run(config: Config, folder: Path, quiet: bool = False) -> float | None:
    """Run ``config``, already saved in ``folder``, on its ranks, and write how it ended to ``result.json``.

    ``quiet`` keeps the bar and the table off the screen.

    Returns:
        The run's objective (held-out loss, else training loss), or None.

    Raises:
        RunFailed: a rank failed; the message names rank and cause.
        RunStopped: a signal asked for the end; the message says what is saved.
        ConfigError: a rank found a value that a person has to change.
    """
    started = time.time()

    def end(status: str, **more: Any) -> None:
        result_file = folder / "result.json"
        known = json.loads(result_file.read_text()) if result_file.exists() else {}
        logger.info("%s %s", status, more)
        gone = OF_ITS_END if status == "diverged" else (*OF_ITS_END, "divergence")
        known = {name: value for name, value in known.items() if name not in gone}
        result = {**known, "status": status, "started": started, "ended": time.time(), **more}
        try:
            files.write_json(result_file, result)
        except OSError as error:  # a full disk must not hide why the run ended
            print(f"result.json could not be written: {error.strerror}", file=sys.stderr)

    log = logging.FileHandler(folder / "train.log", encoding="utf-8")
    log.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.getLogger("hydraft").addHandler(log)
    logger.info("command: %s", sys.argv)
    try:
        with Wish(config.train.grace) as wish:
            _persist(config, folder, quiet, wish)
    except RankFailed as error:
        where = {} if error.host is None else {"host": error.host}
        diverged = error.cause.startswith(recovery.DIVERGED)
        known = {**where, "rank": error.rank, "cause": error.cause, "log": error.log.name}
        end("diverged" if diverged else "failed", error=known)
        if diverged:
            raise RunFailed(
                f"the run diverged: {error.cause.removeprefix(recovery.DIVERGED)}\n  what was saved is in {folder}"
            ) from None
        if error.cause.startswith("ConfigError: "):
            raise ConfigError(error.cause.removeprefix("ConfigError: ")) from None
        why = f"{error.cause}{recovery.advice_on_a_kill(config, error)}"
        raise RunFailed(f"{error.who} failed: {why}\n  its log: {error.log}") from None
    except Preempted as error:
        end("preempted", signal=signal.Signals(error.number).name, step=error.step)
        raise RunStopped(f"{error}; to go on: python train.py resume={folder}", error.number) from None
    except Stopped as error:
        end("interrupted", signal=signal.Signals(error.number).name)
        raise RunStopped(f"{error}; what was saved is in {folder}", error.number) from None
    except BaseException as error:
        end("failed", error={"rank": None, "cause": f"{type(error).__name__}: {error}"})
        raise
    finally:
        logging.getLogger("hydraft").removeHandler(log)
        log.close()
    end("completed")
    return run_folder.objective(folder)


def hold(config: Config, folder: Path) -> AbstractContextManager[None]:
    """Keep others from running the run in ``folder``; where Slurm will run it, that job does so when it begins.

    Raises:
        ConfigError: another process runs it now.
    """
    if config.cluster.launcher is not Launcher.slurm or job_script.is_allocated():
        return run_folder.held(folder)
    with run_folder.held(folder):
        return nullcontext()


def _persist(config: Config, folder: Path, quiet: bool, wish: Wish) -> None:
    """Start the ranks, and again from the newest checkpoint as often as ``cluster.max_restarts`` says.

    What the run may mend by itself (``again.py``) is no restart of those.

    Raises:
        RankFailed: they failed once more, or for what a person has to change.
        Preempted, Stopped: a signal asked for the end.
    """
    attempts, restart = recovery.Attempts(config, folder), 0
    while True:
        try:
            return _start(attempts.config, folder, quiet, wish)
        except RankFailed as error:
            diverged = error.cause.startswith(recovery.DIVERGED)
            if wish.number is not None and not diverged:
                raise Stopped(
                    wish.number, f"stopped by {signal.Signals(wish.number).name}, and {error.who} failed: {error.cause}"
                ) from None
            if wish.number is None and attempts.mend(error):
                continue
            restart += 1
            if diverged or restart > config.cluster.max_restarts or error.cause.startswith("ConfigError: "):
                raise
            checkpoint, _ = manifest.newest(folder)
            place = "its beginning" if checkpoint is None else checkpoint.name
            line = f"{error.who} failed: {error.cause}; beginning again from {place} ({restart} of {config.cluster.max_restarts})"
            logger.info(line)
            print(line, file=sys.stderr, flush=True)


def _start(config: Config, folder: Path, quiet: bool, wish: Wish) -> None:
    """The ranks, by the launcher that the config names."""
    if config.cluster.launcher is Launcher.joined:
        coordinator.start(config, folder, wish)
    elif config.cluster.launcher is Launcher.slurm:
        monitor.start(config, folder, quiet, wish)
    elif config.cluster.on_hosts:
        ssh.start(config, folder, hosts.choose(config.cluster), quiet, wish)
    else:
        _here(config, folder, quiet, wish)


def machine(config: Config) -> Hardware | None:
    """What the machine of rank 0 has; None where Slurm has yet to choose it, or a plan is for hosts that have no names.

    Raises:
        ConfigError: the hosts cannot be told, or the first cannot be reached; or Slurm is not there.
    """
    if config.cluster.launcher is Launcher.slurm:
        return job_script.machine(config)
    if not config.cluster.on_hosts:
        return hardware.detect()
    try:
        chosen = hosts.choose(config.cluster)
    except ConfigError:
        if config.mode is Mode.train:
            raise
        return None
    return ssh.ask_hardware(chosen[0], config.cluster)


def refused_here(config: Config) -> list[str]:
    """What keeps a run of many machines from being started here."""
    if not config.cluster.on_hosts or config.cluster.launcher is Launcher.slurm:
        return []
    try:
        hosts.choose(config.cluster)
    except ConfigError as error:
        return [str(error)]
    return []


def placed(config: Config) -> Config:
    """``config`` as its ranks find things: paths below the project's folder follow it to ``cluster.workdir``."""
    workdir = config.cluster.workdir

    def there(path: str) -> str:
        return f"{workdir}{path.removeprefix(str(ROOT))}" if path.startswith(f"{ROOT}/") else path

    if workdir is None:
        return config
    data = config.data
    held_out = None if data.eval is None else there(data.eval)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, path=there(config.model.path)),
        data=dataclasses.replace(
            data, train=there(data.train), eval=held_out, mix=[there(source) for source in data.mix]
        ),
    )


def _here(config: Config, folder: Path, quiet: bool, wish: Wish) -> None:
    """All ranks on this machine."""
    machine = hardware.detect()
    for line in deepspeed_ops.prepare(deepspeed_ops.needed(config, machine), machine):
        print(line, file=sys.stderr)
        logger.info(line)
    os.environ.update(deepspeed_ops.environment(machine))
    # Beside another busy process, threads that spin while they wait slow a run on a CPU a hundredfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory(prefix="hydraft-") as notes:
        terminal = os.devnull if quiet else None
        watched = config.cluster.hang_timeout
        elastic.start(folder, Path(notes), config.world_size, machine, wish, terminal, hang_timeout=watched)

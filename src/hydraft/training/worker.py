"""The training of one rank: reads the run's config.yaml and trains; rank 0 writes the results."""

import os
from pathlib import Path

import torch.distributed as dist
import transformers

from hydraft.config.choices import Launcher, Offload
from hydraft.config.schema import Config, load_config
from hydraft.models import exchange, prepare, quantised_copy
from hydraft.models.load import load_trainable
from hydraft.runs import consistency
from hydraft.system.console import Screen
from hydraft.system.heartbeat import Heartbeat
from hydraft.system.signals import SignalListener
from hydraft.training import deepspeed_ops, op_locks, process_group, run, swap_files, threads
from hydraft.training.arguments import training_arguments
from hydraft.training.oom import OutOfMemoryHandler
from hydraft.training.rendezvous import Rendezvous
from hydraft.training.trainer import RunTrainer


def main(
    folder: Path,
    terminal: int,
    listener: SignalListener | None = None,
    heartbeat: Heartbeat | None = None,
    rendezvous: Rendezvous | None = None,
) -> None:
    """Train the run in ``folder`` on this rank.

    Args:
        folder: the run's folder.
        terminal: the file descriptor that rank 0 prints to.
        listener: receives the shutdown signals of this rank; None if nothing is to be saved upon one.
        heartbeat: of this rank; None if it is not monitored.
        rendezvous: where the ranks find each other; None if this process is in a process group already.
    """
    process_group.refuse_pickles()
    listener = listener or SignalListener()
    config = load_config(folder / "config.yaml")
    deepspeed_ops.ready_device()
    if config.zero.offload_optimizer is not Offload.none:
        deepspeed_ops.cache_cpu_info()
    rank = int(os.environ["RANK"])
    threads.use_share()
    transformers.logging.disable_progress_bar()
    with (
        OutOfMemoryHandler(config, folder) as memory,
        Screen(terminal, rank == 0, heartbeat) as screen,
        swap_files.folder(config.zero) as swap,
    ):
        screen.phase("starting")
        op_locks.install(screen.phase)  # DeepSpeed loads its ops with the arguments
        arguments = training_arguments(
            config, folder, rendezvous, swap
        )  # before the model: ZeRO-3 shards it while it is loaded
        threads.use_share()
        if config.cluster.launcher is Launcher.joined and int(os.environ["LOCAL_RANK"]) == 0:
            with screen.heartbeat.while_working():  # other launchers prepare it before the ranks start
                prepare.native(config.model, config.seed, screen.console, storage=quantised_copy.of_run(config))
        _compare_hosts(config)
        run.train(run.Rank(folder, arguments, screen, memory, listener, load_trainable, RunTrainer), config)
    dist.destroy_process_group()


def _compare_hosts(config: Config) -> None:
    """Raise ``ConfigError`` if a rank has another config or other code than rank 0."""
    found = exchange.all_gather([f"rank {dist.get_rank()} ({consistency.host()})", consistency.of_run(config)])
    consistency.check([(name, about) for name, about in found])

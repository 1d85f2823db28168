"""The training of one member of a pack: as of a rank alone (``worker.py``), with the base and the passes of the pack."""

import os
from pathlib import Path
from typing import Any

import torch.distributed as dist
import transformers
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper

from hydraft.config.schema import Config
from hydraft.models.load import has_chunked_loss
from hydraft.system.console import Screen
from hydraft.system.signals import EarlyExit, SignalListener
from hydraft.training import deepspeed_ops, process_group, run, threads
from hydraft.training.arguments import training_arguments
from hydraft.training.oom import OutOfMemoryHandler
from hydraft.training.pack.engine import MemberEngine
from hydraft.training.pack.scheduler import Member, current
from hydraft.training.rendezvous import Rendezvous
from hydraft.training.trainer import RunTrainer


def train(config: Config, folder: Path) -> EarlyExit | None:
    """Train the run in ``folder`` in this process, as the member that this thread runs.

    Returns:
        The step and the signal if a signal has ended it early and a checkpoint is saved; None if it is complete.

    Raises:
        ConfigError, Diverged, OutOfMemory: as in a rank alone.
    """
    member = current()
    assert member is not None
    AcceleratorState._shared_state, GradientState._shared_state = {}, {}  # a new Trainer with its own batch sizes
    if not dist.is_initialized():
        process_group.refuse_pickles()
        deepspeed_ops.ready_device()
        deepspeed_ops.prepare_here(config)
        transformers.logging.disable_progress_bar()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with OutOfMemoryHandler(config, folder) as memory, Screen(nowhere, False) as screen:
        rendezvous = None if dist.is_initialized() else Rendezvous()
        arguments = training_arguments(config, folder, rendezvous)
        threads.use_share()
        listener = _Listener(member)
        pack = member.pack
        return run.train(
            run.Rank(folder, arguments, screen, memory, listener, pack.model, MemberTrainer, pack.evaluations), config
        )


class _Listener(SignalListener):
    """The shutdown signals of a member, which arrive at the process of the pack."""

    def __init__(self, member: Member) -> None:
        self.member = member

    @property
    def received(self) -> int:  # type: ignore[override]
        """The first one; 0 before it arrives."""
        return self.member.signal

    def allow_saving(self, grace: float) -> None:
        """From now on there is something to save."""
        self.member.stoppable = grace > 0

    def report_early_exit(self, step: int, number: int) -> None:
        """``train`` returns it."""


class MemberTrainer(RunTrainer):
    """The Trainer of a run, with the engine of a member in place of DeepSpeed's."""

    def _prepare_engine(self, max_steps: int, loader: Any) -> tuple[Any, Any]:
        member, adam = current(), self.create_optimizer()
        assert member is not None and self.model is not None
        chunked = has_chunked_loss(self.config, self.model)
        engine = MemberEngine(self.model, adam, self.config.train.max_grad_norm, chunked, member)
        self.accelerator.deepspeed_engine_wrapped = engine
        self.optimizer = DeepSpeedOptimizerWrapper(adam)  # whose step does nothing: the engine steps in ``backward``
        self.create_scheduler(num_training_steps=max_steps)
        self.model_wrapped = engine  # type: ignore[assignment]
        for name in ("model", "optimizer", "lr_scheduler"):
            setattr(self.callback_handler, name, getattr(self, name))
        self.callback_handler.train_dataloader = loader
        return engine, loader

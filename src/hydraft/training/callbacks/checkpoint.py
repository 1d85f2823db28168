"""The callback that saves checkpoints and restores a run from one.

A checkpoint has all state that the uninterrupted run would have after that step: weights, Adam's state, schedule, position in the
data, random states of all ranks, loss sums of the next line in metrics.jsonl, scores so far, and the run's id on the dashboard.
"""

import functools
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft.checkpoint import best_weights, manifest, optimizer_state, random_state, weights
from hydraft.checkpoint.interval import Interval
from hydraft.checkpoint.training_state import TrainingState
from hydraft.config.choices import Save
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.models import exchange
from hydraft.system.console import Screen
from hydraft.training.callbacks.divergence import DivergenceCallback
from hydraft.training.callbacks.evaluation import EvaluationCallback
from hydraft.training.callbacks.logging import LoggingCallback
from hydraft.training.schedule import schedule_step
from hydraft.training.trainer import RunTrainer, Start


def find_start(folder: Path, screen: Screen) -> Start | None:
    """The newest valid checkpoint of the run in ``folder``, as rank 0 finds it; None for a new run.

    Raises:
        ConfigError: a newer version of hydraft saved it.
    """
    found: dict[str, Any] | None = None
    if dist.get_rank() == 0:
        checkpoint, skipped = manifest.newest(folder)
        for line in skipped:
            screen.say(line)
        if checkpoint is not None:
            found = {"folder": str(checkpoint), "state": asdict(TrainingState.load(checkpoint))}
    found = exchange.broadcast(found)
    if found is None:
        return None
    start = Start(Path(found["folder"]), TrainingState(**found["state"]))
    screen.say(f"resuming from {start.folder.name}")
    return start


class CheckpointCallback(TrainerCallback):
    """Saves checkpoints at the configured steps. Every rank has one, and all save at the same steps."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        records: str,
        logging: LoggingCallback,
        evaluation: EvaluationCallback,
        origin: weights.Origin,
    ) -> None:
        """``folder``: of the run. ``records``: the key of the encoded records."""
        self.config = config
        self.folder = folder
        self.records = records
        self.logging = logging
        self.evaluation = evaluation
        self.origin = origin
        self.trainer: RunTrainer | None = None
        self.divergence: DivergenceCallback | None = None
        self.state: TrainingState | None = None
        self.interval = Interval(config.train.save_minutes)

    def attach(self, trainer: RunTrainer, divergence: DivergenceCallback) -> None:
        """Set what exists only after this callback, and restore the state of the checkpoint that the run resumes from.

        Raises:
            ConfigError: the run was started with other records.
        """
        self.trainer, self.divergence = trainer, divergence
        trainer.on_save = self.save
        state = None if trainer.start is None else trainer.start.state
        best = self.evaluation.best_so_far
        best.write = functools.partial(self.write, trainer)
        if state is None:
            best.begin(None)
            return
        if state.records != self.records:
            raise ConfigError(
                f"data.train={self.config.data.train}: its encoded records are not those that the run was started with (the "
                "files, the tokenizer or the version of hydraft changed): start a new run"
            )
        self.state = state
        trainer.tokens = state.tokens if dist.get_rank() == 0 else 0
        divergence.resume(state.divergence)
        self.evaluation.resume({int(step): scores for step, scores in state.scores.items()})
        best.begin(state)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Restore the sums of the checkpoint; the Trainer has just set its own to 0."""
        self.interval.device = args.device
        self.interval.begin(state.global_step)
        if self.state is None or self.trainer is None:
            return
        saved, trainer, rank = self.state, self.trainer, dist.get_rank()
        sums = saved.loss_sums
        own = sums[rank] if len(sums) == dist.get_world_size() else sum(sums) / len(sums)
        trainer._tr_loss = torch.tensor(own, device=args.device)
        trainer._total_loss_scalar = saved.loss_total
        trainer._globalstep_last_logged = saved.last_logged
        if saved.measured and rank == 0:
            trainer.measured = torch.tensor(saved.measured, dtype=torch.float64, device=args.device)
        over = (
            control.should_training_stop or saved.step >= state.max_steps
        )  # no step follows that would log the last ones anew
        self.logging.resume(saved.step, saved.step if over else saved.last_logged, saved.tokens, saved.seconds)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Request a checkpoint; the Trainer saves it after it has logged the step."""
        step, every = state.global_step, self.config.train.save_every
        by_number = every is not None and step % every == 0
        if (self.interval.due(step) or by_number) and step < state.max_steps:
            control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """With ``train.save=epoch``, request one at the end of each epoch but the last, after which the result is saved."""
        over = state.global_step >= state.max_steps or control.should_training_stop
        if self.config.train.save is Save.epoch and not over:
            control.should_save = True

    def save(self, trainer: RunTrainer) -> None:
        """Write ``checkpoints/step-…``, and then remove the oldest."""
        if self.divergence is not None:
            self.divergence.settle()  # a diverged step is never saved
        step, began = trainer.state.global_step, time.monotonic()
        target = self.folder / "checkpoints" / f"step-{step:06d}"
        state = self._state(trainer)

        def more(staging: Path | None) -> dict[str, str]:
            known = optimizer_state.save_optimizer(trainer.model_wrapped, trainer.parameters, staging)
            random_state.save(staging)
            if staging is not None:
                state.save(staging)
            return known

        self.write(trainer, target, more)
        if dist.get_rank() == 0:
            best = self.evaluation.best().get("step")
            manifest.retain(self.folder, self.config.train.keep_last, None if best is None else int(best))
            best_weights.prune(self.folder, self.evaluation.best_so_far.kept)
        self.interval.saved(step, time.monotonic() - began)

    def write(self, trainer: RunTrainer, target: Path, more: Any = None) -> None:
        """Write the current adapter or model."""
        updated = schedule_step(trainer.lr_scheduler) > self.config.train.warms_up
        tokenizer: Any = trainer.processing_class
        with self.logging.screen.heartbeat.while_working():
            weights.save(trainer.model, tokenizer, target, updated, self.origin, more)  # type: ignore[arg-type]

    def _state(self, trainer: RunTrainer) -> TrainingState:
        sums = exchange.all_gather(float(trainer._tr_loss))
        return TrainingState(
            step=trainer.state.global_step,
            records=self.records,
            epoch=float(trainer.state.epoch or 0),
            adam_step=optimizer_state.adam_step(trainer.model_wrapped),
            schedule_step=schedule_step(trainer.lr_scheduler),
            loss_scale=optimizer_state.loss_scale(trainer.model_wrapped),
            loss_sums=sums,
            measured=trainer.all_measured(),
            loss_total=trainer._total_loss_scalar,
            last_logged=trainer._globalstep_last_logged,
            tokens=trainer.all_tokens(),
            seconds=self.logging.seconds,
            scores={str(step): scores for step, scores in self.evaluation.scores.items()},
            best_step=self.evaluation.best_so_far.kept,
            tracker=self.logging.tracker.identity,
            tracker_name=self.logging.tracker.name,
            divergence={} if self.divergence is None else self.divergence.state(),
            skipped_steps=self.config.train.pass_over,
        )

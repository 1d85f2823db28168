"""A run's checkpoints: when they are saved, what is in them, and how a run goes on from one.

What the uninterrupted run would have had in memory after that step is all there: weights, Adam's state, schedule, position in
the data, random numbers of every rank, sums that the next line of metrics.jsonl is made of, scores so far, the dashboard's id.
"""

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft.checkpoint import manifest, weights
from hydraft.checkpoint import training_state as run_state
from hydraft.checkpoint.interval import Interval
from hydraft.config.choices import Save
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.models import base_identity
from hydraft.system.console import Screen
from hydraft.training.callbacks.divergence import Health
from hydraft.training.callbacks.evaluation import Scorer
from hydraft.training.callbacks.logging import Reporter
from hydraft.training.trainer import RunTrainer, Start, schedule_step

Numbers = dict[str, Any]
"""What ``state.json`` holds."""


def find_start(folder: Path, screen: Screen) -> tuple[Start | None, Numbers]:
    """The newest whole checkpoint of the run in ``folder``, as rank 0 sees it, and its numbers; None for a new run."""
    shared: list[Any] = [None]
    if dist.get_rank() == 0:
        checkpoint_folder, passed_over = manifest.newest(folder)
        for line in passed_over:
            screen.say(line)
        if checkpoint_folder is not None:
            shared = [(checkpoint_folder, run_state.load_json(checkpoint_folder))]
    dist.broadcast_object_list(shared, 0)
    if shared[0] is None:
        return None, {}
    place, numbers = shared[0]
    screen.say(f"going on from {place.name}")
    step = numbers["step"]
    start = Start(
        place, step, numbers["adam_step"], numbers.get("schedule_step", step), numbers.get("loss_scale", {})
    )  # neither is in what earlier versions saved
    return start, numbers


class Keeper(TrainerCallback):
    """Saves checkpoints as the config asks; every rank has one, and all save together."""

    def __init__(
        self,
        config: Config,
        asked: Config,
        folder: Path,
        records: str,
        reporter: Reporter,
        scorer: Scorer,
        first: weights.Tensors | None,
    ) -> None:
        """``asked``: the config before the model was prepared. ``records``: a hash of the encoded records. ``first``: a PiSSA adapter's initial weights."""
        self.config = config
        self.folder = folder
        self.records = records
        self.reporter = reporter
        self.scorer = scorer
        self.first = first
        self.origin = base_identity.of(asked) if dist.get_rank() == 0 else None
        self.trainer: RunTrainer | None = None
        self.health: Health | None = None
        self.numbers: Numbers = {}
        self.interval = Interval(config.train.save_minutes)

    def attach(self, trainer: RunTrainer, numbers: Numbers, health: Health) -> None:
        """``numbers``: those of the checkpoint that ``trainer`` goes on from; empty for a new run."""
        if numbers and numbers["records"] != self.records:
            raise ConfigError(
                f"data.train={self.config.data.train}: its encoded records are not those that the run was begun with "
                "(the files, the tokenizer or the version of hydraft changed): start a new run"
            )
        self.trainer, self.numbers, self.health = trainer, numbers, health
        health.resume(numbers.get("health", {}))
        trainer.on_save = self.save
        self.scorer.scores |= {int(step): scores for step, scores in numbers.get("scores", {}).items()}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Take up the sums of a checkpoint; the Trainer has just set its own to 0."""
        self.interval.device = args.device
        self.interval.begin(state.global_step)
        if not self.numbers or self.trainer is None:
            return
        numbers, trainer, rank = self.numbers, self.trainer, dist.get_rank()
        sums = numbers["loss_sums"]
        mine = sums[rank] if len(sums) == dist.get_world_size() else sum(sums) / len(sums)
        trainer._tr_loss = torch.tensor(mine, device=args.device)
        trainer._total_loss_scalar = numbers["loss_total"]
        trainer._globalstep_last_logged = numbers["last_logged"]
        trainer.tokens = numbers["tokens"] if rank == 0 else 0
        self.reporter.resume(numbers["step"], numbers["tokens_logged"], numbers["seconds"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Ask for a checkpoint; the Trainer takes it after it has logged the step."""
        step, every = state.global_step, self.config.train.save_every
        by_number = every is not None and step % every == 0
        if (self.interval.due(step) or by_number) and step < state.max_steps:
            control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """The same; the last epoch ends in the adapter itself."""
        over = state.global_step >= state.max_steps or control.should_training_stop
        if self.config.train.save is Save.epoch and not over:
            control.should_save = True

    def save(self, trainer: RunTrainer) -> None:
        """Write ``checkpoints/step-…``; what is too old goes when it is there."""
        if self.health is not None:
            self.health.settle()  # a sick step becomes no checkpoint
        step, begun = trainer.state.global_step, time.monotonic()
        target = self.folder / "checkpoints" / f"step-{step:06d}"
        numbers = self._numbers(trainer)

        def more(staging: Path | None) -> dict[str, str]:
            known = run_state.save_optimizer(trainer.model_wrapped, trainer.parameters, staging)
            run_state.save_random(staging)
            if staging is not None:
                run_state.save_json(staging, numbers)
            return known

        self.write(trainer, target, more)
        if dist.get_rank() == 0:
            best = self.scorer.best().get("step")
            manifest.retain(self.folder, self.config.train.keep_last, None if best is None else int(best))
        self.interval.saved(step, time.monotonic() - begun)

    def write(self, trainer: RunTrainer, target: Path, more: Any = None) -> None:
        """The adapter or the model as it is now."""
        moved = schedule_step(trainer.lr_scheduler) > (self.config.train.warmup_ratio > 0)
        tokenizer: Any = trainer.processing_class
        with self.reporter.screen.heartbeat.while_working():
            weights.save(trainer.model, tokenizer, target, moved, self.first, more, self.origin)  # type: ignore[arg-type]

    def _numbers(self, trainer: RunTrainer) -> Numbers:
        sums: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(sums, float(trainer._tr_loss))
        return {
            "step": trainer.state.global_step,
            "records": self.records,
            "epoch": trainer.state.epoch,
            "adam_step": run_state.adam_step(trainer.model_wrapped),
            "schedule_step": schedule_step(trainer.lr_scheduler),
            "loss_scale": run_state.loss_scale(trainer.model_wrapped),
            "loss_sums": sums,
            "loss_total": trainer._total_loss_scalar,
            "last_logged": trainer._globalstep_last_logged,
            "tokens": trainer.all_tokens(),
            "tokens_logged": self.reporter.tokens,
            "seconds": self.reporter.seconds,
            "scores": {str(step): scores for step, scores in self.scorer.scores.items()},
            "tracker": self.reporter.tracker.identity,
            "health": {} if self.health is None else self.health.numbers(),
            "pass_over": self.config.train.pass_over,
        }

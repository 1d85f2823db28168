"""When a run is scored: before training, in the middle of it where that is asked for, and after."""

import math
import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft.held_out import HeldOut
from hydraft.metrics import Scores
from hydraft.progress import Screen
from hydraft.reporter import Reporter
from hydraft.training import TrainConfig


class Scorer(TrainerCallback):
    """Scores the held-out records, where there are any; every rank has one, and all score together."""

    def __init__(
        self, model: torch.nn.Module, held_out: HeldOut, train: TrainConfig, reporter: Reporter, screen: Screen
    ) -> None:
        self.model = model
        self.held_out = held_out
        self.every = train.eval_every
        self.loss_only = train.eval_loss_only
        self.reporter = reporter
        self.screen = screen
        self.scores: dict[int, Scores] = {}
        """What was found, by optimizer steps made."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """The untouched model, once the engine is there (under ZeRO-3 nothing can run before)."""
        if state.global_step == 0:
            self.at_an_end("before training", 0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """In mid-training, by steps."""
        if isinstance(self.every, int) and state.global_step % self.every == 0:
            self._midway(state)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """In mid-training, by epochs."""
        if self.every == "epoch":
            self._midway(state)

    def at_an_end(self, when: str, step: int) -> Scores:
        """Every score, before or after training."""
        if not self.held_out.conversations:
            return {}
        self.screen.phase(f"scoring {when}", self.held_out.parts())
        return self._score(step, False)

    def best(self) -> dict[str, float]:
        """The scores with the lowest held-out loss, and their step."""
        if not self.scores:
            return {}

        def loss(step: int) -> float:
            value = self.scores[step]["loss"]
            return math.inf if math.isnan(value) else value

        step = min(self.scores, key=loss)
        return {"step": step, **self.scores[step]}

    def _midway(self, state: TrainerState) -> None:
        step = state.global_step
        if step >= state.max_steps:
            return  # training is over, and is scored as such
        began = time.perf_counter()
        cards = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with (
            self.screen.aside(f"scoring at step {step}", self.held_out.parts(self.loss_only)),
            torch.random.fork_rng(cards),  # the training draws its dropout as it would have
        ):
            self._score(step, self.loss_only)
        self.reporter.skip(time.perf_counter() - began)

    def _score(self, step: int, loss_only: bool) -> Scores:
        scores = self.held_out.score(self.model, self.screen.advance, loss_only)
        self.reporter.write(step, {f"eval_{name}": value for name, value in scores.items()})
        self.scores[step] = scores
        return scores

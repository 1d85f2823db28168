"""When a run is scored: before training, in the middle of it where that is asked for, and after."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft.config.train import TrainConfig
from hydraft.evaluation.evaluator import HeldOut
from hydraft.evaluation.metrics import Scores
from hydraft.system.console import Screen
from hydraft.training.callbacks.early_stop import Stopper
from hydraft.training.callbacks.logging import Reporter
from hydraft.training.memory_peaks import Peaks


class Abandoned(Exception):
    """A signal asked for an early end; every rank leaves the scoring at the same point."""


class Scorer(TrainerCallback):
    """Scores the held-out records, where there are any; every rank has one, and all score together."""

    def __init__(
        self,
        model: torch.nn.Module,
        held_out: HeldOut,
        train: TrainConfig,
        reporter: Reporter,
        screen: Screen,
        stopper: Stopper,
        peaks: Peaks,
    ) -> None:
        self.model = model
        self.held_out = held_out
        self.every = train.eval_every
        self.loss_only = train.eval_loss_only
        self.reporter = reporter
        self.screen = screen
        self.stopper = stopper
        self.peaks = peaks
        self.scores: dict[int, Scores] = {}
        """What was found, by optimizer steps made."""
        self.before: Callable[[], None] = lambda: None
        """Called before it scores in mid-training: the last step is looked at first (``health.py``)."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """The untouched model, once the engine is there (under ZeRO-3 nothing can run before)."""
        self.peaks.end("loading")
        if state.global_step == 0:
            self.at_an_end("before training", 0)
        elif self._is_due(state) and state.global_step not in self.scores:  # a run that was asked to end put it off
            self._midway(state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """In mid-training, by steps."""
        if isinstance(self.every, int) and self._is_due(state):
            self._midway(state, control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """In mid-training, by epochs."""
        if self.every == "epoch":
            self._midway(state, control)

    def _is_due(self, state: TrainerState) -> bool:
        if isinstance(self.every, int):
            return state.global_step % self.every == 0
        return self.every == "epoch" and float(state.epoch or 0).is_integer()

    def at_an_end(self, when: str, step: int) -> Scores:
        """Every score, before or after training; none where the run has been asked to end."""
        if not self.held_out.conversations:
            return {}
        self.screen.phase(f"scoring {when}", self.held_out.parts())
        try:
            return self._score(step, False)
        except Abandoned:
            return {}

    def best(self) -> dict[str, float]:
        """The scores with the lowest held-out loss, and their step."""
        if not self.scores:
            return {}

        def loss(step: int) -> float:
            value = self.scores[step]["loss"]
            return math.inf if value is None or math.isnan(value) else value  # None: NaN, read back from JSON

        step = min(self.scores, key=loss)
        return {"step": step, **self.scores[step]}

    def _midway(self, state: TrainerState, control: TrainerControl) -> None:
        step = state.global_step
        self.before()
        if step >= state.max_steps or self.stopper.number:
            return  # training is over, and is scored as such; or the run is, and is scored when it goes on
        began = time.perf_counter()
        cards = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with (
            self.screen.aside(f"scoring at step {step}", self.held_out.parts(self.loss_only)),
            torch.random.fork_rng(cards),  # the training draws its dropout as it would have
        ):
            try:
                self._score(step, self.loss_only)
            except Abandoned:
                self.stopper.stop(control)
        self.reporter.skip(time.perf_counter() - began)

    def _score(self, step: int, loss_only: bool) -> Scores:
        def done(count: int) -> None:
            self.screen.advance(count)
            if self.stopper.agreed():
                raise Abandoned

        self.peaks.end("training")
        try:
            scores = self.held_out.score(self.model, done, loss_only)
        finally:
            self.peaks.end("scoring")
        self.reporter.write(step, {f"eval_{name}": value for name, value in scores.items()})
        self.scores[step] = scores
        return scores

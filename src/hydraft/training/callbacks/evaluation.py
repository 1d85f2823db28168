"""The callback that evaluates on held-out records: before training, after it, and with ``train.eval_every`` in between."""

import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft.config.train import TrainConfig
from hydraft.evaluation import answers, record_scores, standing
from hydraft.evaluation.evaluator import Evaluated, Evaluator
from hydraft.evaluation.metrics import Scores
from hydraft.training.benchmarks import Benchmarks
from hydraft.training.callbacks.best import BestEvaluation
from hydraft.training.callbacks.early_stop import EarlyStopCallback
from hydraft.training.callbacks.logging import LoggingCallback
from hydraft.training.memory_peaks import MemoryPeaks


class Interrupted(Exception):
    """A signal ends the evaluation, on all ranks at the same point."""


class EvaluationCallback(TrainerCallback):
    """Evaluates on held-out records, if there are any. Every rank has one, and all evaluate at the same steps."""

    def __init__(
        self,
        model: torch.nn.Module,
        evaluator: Evaluator,
        train: TrainConfig,
        logging: LoggingCallback,
        early_stop: EarlyStopCallback,
        peaks: MemoryPeaks,
    ) -> None:
        self.model = model
        self.evaluator = evaluator
        self.train = train
        self.every = train.eval_every
        self.loss_only = train.eval_loss_only
        self.logging = logging
        self.screen = logging.screen
        self.early_stop = early_stop
        self.peaks = peaks
        self.scores: dict[int, Scores] = {}
        """The scores, by optimizer step."""
        self.best_so_far = BestEvaluation(train, logging, self.scores)
        self.complete: int | None = None
        """The step of the last evaluation, if that has all scores."""
        self.said_unfinished = False
        self.known: MutableMapping[str, Evaluated] | None = None
        """Evaluations of this model as it is before training, if others have the same one (``training/pack/base.py``), by key."""
        self.benchmarks: Benchmarks | None = None
        """Run before and after training."""
        self.before: Callable[[], None] = lambda: None
        """Called before an evaluation during training, so that the last step is checked for divergence first."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Evaluate the model before training. (Under ZeRO-3 that is not possible before there is an engine.)"""
        self.peaks.end("loading")
        if note := self.evaluator.note:
            self.screen.say(note)
        if state.global_step == 0:
            self.evaluate_all("before training", 0)
        elif self._is_due(state) and state.global_step not in self.scores:  # a signal interrupted it
            self._during_training(state, control)
        elif self.best_so_far.is_over and state.global_step < state.max_steps:  # it has ended early before
            self._end(state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Evaluate every so many steps."""
        if isinstance(self.every, int) and self._is_due(state):
            self._during_training(state, control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Evaluate every epoch."""
        if self.every == "epoch":
            self._during_training(state, control)

    def _is_due(self, state: TrainerState) -> bool:
        if isinstance(self.every, int):
            return state.global_step % self.every == 0
        return self.every == "epoch" and float(state.epoch or 0).is_integer()

    def evaluate_all(self, when: str, step: int) -> Scores:
        """All scores, before or after training; with those of benchmarks; empty if there are none or a signal interrupts it."""
        try:
            if self.evaluator.records and self.complete != step:  # else training has ended early, after an evaluation
                self.screen.phase(f"evaluating {when}", self.evaluator.parts())
                self._evaluate(step, False)
                if step:
                    self.best_so_far.evaluated(step)
            if self.benchmarks is not None:
                self.screen.phase(f"benchmarks {when}")
                self._run_benchmarks(self.benchmarks, step)
        except Interrupted:
            return {}
        return self.scores.get(step, {})

    def _run_benchmarks(self, benchmarks: Benchmarks, step: int) -> None:
        """Run the benchmarks, and add their scores to those of ``step``."""
        self.peaks.end("training")
        shared = self.known if step == 0 else None
        if shared is not None and benchmarks.key in shared:
            found = shared[benchmarks.key].scores
        else:
            found = benchmarks.evaluate(self._beat)
        if shared is not None:
            shared[benchmarks.key] = Evaluated(found, [], 0, {})
        self.peaks.end("scoring")
        self.logging.write(step, {f"eval_{name}": value for name, value in found.items()})
        self.scores[step] = {**self.scores.get(step, {}), **found}

    def _done(self, count: int) -> None:
        self.screen.advance(count)
        self._check_signal()

    def _check_signal(self) -> None:
        if self.early_stop.stops():
            raise Interrupted

    def _beat(self) -> None:
        """Between the batches of benchmarks, whose number is not known before."""
        self.screen.heartbeat.beat()
        self._check_signal()

    def begin(self) -> None:
        """Start from the first step: remove the answers of an earlier attempt that left no checkpoint."""
        self.resume({})

    def resume(self, scores: Mapping[int, Scores]) -> None:
        """Resume with these scores, by step: remove the answers of later evaluations, which are repeated."""
        self.scores |= scores
        if self.logging.rank == 0:
            answers.keep(self.logging.file.parent, list(scores))

    def write_records(self, folder: Path) -> None:
        """Write the loss and scores of each record in the last evaluation to the run's folder, if there are held-out records."""
        if self.evaluator.by_record:
            record_scores.write(folder, self.evaluator.by_record)

    def best(self) -> dict[str, float]:
        """The best scores (``train.best_by``), those before training among them, and their step."""
        if not self.scores:
            return {}
        best = standing.best(self.scores, self.train.best_by, self.scores)
        step = min(self.scores) if best is None else best
        return {"step": step, **self.scores[step]}

    def _during_training(self, state: TrainerState, control: TrainerControl) -> None:
        step = state.global_step
        self.before()
        if step >= state.max_steps or self.early_stop.number:
            return  # evaluated after training, or when the run is resumed
        began = time.perf_counter()
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with (
            self.screen.aside(f"evaluating at step {step}", self.evaluator.parts(self.loss_only)),
            torch.random.fork_rng(devices),  # dropout in training must not depend on it
        ):
            try:
                self._evaluate(step, self.loss_only)
                self.best_so_far.evaluated(step)
            except Interrupted:
                self.early_stop.stop(control)
        if self.best_so_far.is_over and not self.early_stop.number:
            self._end(state, control)
        self.logging.exclude(time.perf_counter() - began)

    def _end(self, state: TrainerState, control: TrainerControl) -> None:
        """End the training as if this were its last step."""
        self.screen.say(self.best_so_far.why_over(state.global_step, state.max_steps))
        control.should_training_stop = True

    def _scores(self, step: int, done: Callable[[int], None], loss_only: bool) -> Scores:
        if step or self.known is None:
            return self.evaluator.evaluate(self.model, done, loss_only)
        key = self.evaluator.key(loss_only)
        if key in self.known:
            self.evaluator.last = self.known[key]
            done(self.evaluator.parts(loss_only))
        else:
            self.evaluator.evaluate(self.model, done, loss_only)
            self.known[key] = self.evaluator.last
        return self.evaluator.scores

    def _evaluate(self, step: int, loss_only: bool) -> Scores:
        self.peaks.end("training")
        try:
            scores = self._scores(step, self._done, loss_only)
        finally:
            self.peaks.end("scoring")
        if not loss_only and (cut := self.evaluator.unfinished) and not self.said_unfinished:
            self.said_unfinished = True
            self.screen.say(
                f"data.eval_max_new_tokens={self.evaluator.sizes.max_new_tokens}: the thoughts of {cut} of "
                f"{len(self.evaluator.questions)} answers did not end within it, so these count as empty: give more"
            )
        tokens = self.logging.count_tokens()
        self.logging.write(step, {**{f"eval_{name}": value for name, value in scores.items()}, "tokens": tokens})
        self._write_answers(step)
        self.scores[step] = scores
        self.complete = None if loss_only else step
        return scores

    def _write_answers(self, step: int) -> None:
        """Write the answers of the last evaluation, if it has any, on rank 0."""
        found = self.evaluator
        if self.logging.rank == 0 and found.found:
            task = found.data.task
            answers.append(
                self.logging.file.parent, answers.lines(step, found.records, found.by_record, found.found, task)
            )

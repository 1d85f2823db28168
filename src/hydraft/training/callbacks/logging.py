"""The callback that logs metrics to metrics.jsonl, the progress bar and the dashboard."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft.system import line_file
from hydraft.system.console import Screen
from hydraft.tracking.base import Tracker, numbers
from hydraft.training.flop_rate import FlopRate

SPEED = "tokens_per_second"
"""Since the last line, without evaluation; only lines of training steps have it."""


class LoggingCallback(TrainerCallback):
    """Logs metrics. Every rank has one, and only rank 0 writes."""

    def __init__(self, folder: Path, rank: int, screen: Screen, tracker: Tracker) -> None:
        self.file = folder / "metrics.jsonl"
        self.rank = rank
        self.screen = screen
        self.tracker = tracker
        self.clock = self.started = time.perf_counter()
        self.seconds = 0.0
        """Time of the optimizer steps, without evaluation and the final save."""
        self.tokens = 0
        """Tokens at the last log, or at the start of this attempt."""
        self.of_ranks: list[int] = []
        """Tokens of each rank at the last log; before the first one, those of the earlier attempts count as rank 0's."""
        self.stepped = False
        """Whether a step of this attempt has begun."""
        self.flops = FlopRate()
        """Makes the operations a second from the speed."""
        self.count_tokens: Callable[[], int] = lambda: 0
        """The tokens of all ranks so far; every rank must call it."""

    def begin(self) -> None:
        """Start from the first step: remove the lines of an earlier attempt that left no checkpoint."""
        if self.rank == 0:
            self.file.unlink(missing_ok=True)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write a line to metrics.jsonl, with null for numbers that are not finite, and log it to the dashboard."""
        if self.rank != 0:
            return
        line_file.append(self.file, {"step": step, **values})
        self.tracker.log(numbers(values), step)

    def resume(self, step: int, logged: int, tokens: int, seconds: float) -> None:
        """Resume after ``step``: remove the lines of later steps, and damaged ones, from metrics.jsonl.

        Args:
            logged: the last step that was logged because of ``train.log_every``. The steps after it are in the next line of this
                attempt, so the line that the end of the earlier one has written of them is removed too.
            tokens: of all ranks, after ``step``.
            seconds: that the steps took.
        """
        self.tokens, self.seconds = tokens, seconds
        self.started -= seconds
        if self.rank == 0 and self.file.exists():
            lines = line_file.read(self.file)
            kept = [line for line in lines.values if isinstance(line.get("step"), int) and line["step"] <= step]
            kept = [line for line in kept if line["step"] <= logged or SPEED not in line]
            if lines.damaged:
                self.screen.say(f"{self.file}: what was cut off in writing is removed (lines: {lines.damaged:,})")
            line_file.rewrite(self.file, kept)
            self.tracker.resume(kept)

    def exclude(self, seconds: float) -> None:
        """Exclude time that was not spent on training."""
        self.clock += seconds
        self.started += seconds

    def exclude_from_speed(self, seconds: float) -> None:
        """Exclude time from the speed of the next line, and not from that of the training: compiling."""
        self.clock += seconds

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Start the progress bar."""
        self.screen.phase("training", state.max_steps)
        self.screen.advance(state.global_step)
        self.clock = self.started = time.perf_counter()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Exclude what comes before the first step of an attempt, such as the records that a resumed run skips."""
        if not self.stepped:
            self.stepped = True
            self.exclude(time.perf_counter() - self.clock)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        """Log loss, gradient norm, learning rate, tokens and speed."""
        if logs is None or "loss" not in logs:
            return
        now = time.perf_counter()
        ranks = self._ranks(logs.get("ranks", []), now - self.clock)
        speed = (logs["tokens"] - self.tokens) / (now - self.clock)
        self.clock, self.tokens = now, logs["tokens"]
        kept: dict[str, Any] = {
            name: float(logs[name]) for name in ("loss", "grad_norm", "learning_rate", "epoch") if name in logs
        }
        kept |= logs.get("measures", {})
        self.write(
            state.global_step, {**kept, "tokens": logs["tokens"], SPEED: round(speed, 1), **self.flops.values(speed)}
        )
        self.tracker.log(numbers(ranks), state.global_step)
        pairs = "".join(
            f"  {name} {kept[key]:{form}}"
            for name, key, form in (("margin", "margin", ".3f"), ("accuracy", "reward_accuracy", ".0%"))
            if key in kept
        )
        self.screen.advance(0, f"loss {kept['loss']:.3f}{pairs}  {speed:,.0f} tokens/s", line=True)

    def _ranks(self, ranks: list[list[int]], seconds: float) -> dict[str, float]:
        """Values of each rank for the dashboard: memory and speed."""
        found = {f"rank {rank}/memory_gib": bytes_ / 2**30 for rank, (_, bytes_) in enumerate(ranks)}
        if found:
            found["memory_gib"] = max(found.values())
        before = self.of_ranks or [self.tokens, *[0] * (len(ranks) - 1)]
        for rank, ((tokens, _), old) in enumerate(zip(ranks, before, strict=False)):
            found[f"rank {rank}/{SPEED}"] = (tokens - old) / seconds
        self.of_ranks = [tokens for tokens, _ in ranks]
        return found

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Advance the progress bar."""
        self.screen.advance()
        self.seconds = time.perf_counter() - self.started

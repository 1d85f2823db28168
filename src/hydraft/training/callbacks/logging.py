"""The Trainer's callback of a run: metrics.jsonl, the progress bar and the dashboard."""

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft.system import files
from hydraft.system.console import Screen
from hydraft.tracking.base import Tracker, numbers


class Reporter(TrainerCallback):
    """Tells what happens, as it happens. Every rank has one; what rank 0 alone may do is asked of ``rank``."""

    def __init__(self, folder: Path, rank: int, screen: Screen, tracker: Tracker) -> None:
        self.file = folder / "metrics.jsonl"
        self.rank = rank
        self.screen = screen
        self.tracker = tracker
        self.note = ""
        self.clock = self.started = time.perf_counter()
        self.seconds = 0.0
        """What the optimizer steps took, all scoring and saving at the end apart."""
        self.tokens = 0
        self.of_ranks: list[int] | None = None
        """Tokens of each rank at the last log; None where they were not seen from the first step on."""

    def begin(self) -> None:
        """A run from its first step: what an earlier attempt without a checkpoint has left will be made again."""
        if self.rank == 0:
            self.file.unlink(missing_ok=True)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """A line of metrics.jsonl, with null for what is no finite number, and the same to the dashboard."""
        if self.rank != 0:
            return
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(files.finite({"step": step, **values}), ensure_ascii=False) + "\n")
        self.tracker.log(numbers(values), step)

    def resume(self, step: int, tokens: int, seconds: float) -> None:
        """Go on after ``step``: what metrics.jsonl has of later steps will be made again."""
        self.tokens, self.seconds = tokens, seconds
        self.started -= seconds
        if self.rank == 0 and self.file.exists():
            lines = self.file.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            files.write_text(self.file, "".join(f"{line}\n" for line in kept))
            self.tracker.resume([json.loads(line) for line in kept])

    def skip(self, seconds: float) -> None:
        """Leave out time that was not spent on training."""
        self.clock += seconds
        self.started += seconds

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """The bar of the training begins."""
        self.screen.phase("training", state.max_steps)
        self.screen.advance(state.global_step)
        self.clock = self.started = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        """A logged step: loss, gradient norm, learning rate, tokens, speed."""
        if logs is None or "loss" not in logs:
            return
        now = time.perf_counter()
        ranks = self._ranks(logs.get("ranks", []), now - self.clock)
        speed = (logs["tokens"] - self.tokens) / (now - self.clock)
        self.clock, self.tokens = now, logs["tokens"]
        kept: dict[str, Any] = {
            name: float(logs[name]) for name in ("loss", "grad_norm", "learning_rate", "epoch") if name in logs
        }
        self.write(state.global_step, {**kept, "tokens": logs["tokens"], "tokens_per_second": round(speed, 1)})
        self.tracker.log(ranks, state.global_step)
        self.note = f"loss {kept['loss']:.3f}  {speed:,.0f} tokens/s"
        self.screen.advance(0, self.note, line=True)

    def _ranks(self, ranks: list[list[int]], seconds: float) -> dict[str, float]:
        """What the dashboard gets of each rank: how fast it is, and what it holds."""
        found = {f"rank {rank}/memory_gib": bytes_ / 2**30 for rank, (_, bytes_) in enumerate(ranks)}
        before = self.of_ranks or ([0] * len(ranks) if self.tokens == 0 else None)
        if before is not None:
            speeds = [(tokens - old) / seconds for (tokens, _), old in zip(ranks, before, strict=True)]
            found |= {f"rank {rank}/tokens_per_second": speed for rank, speed in enumerate(speeds)}
        self.of_ranks = [tokens for tokens, _ in ranks]
        return found

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """The bar moves."""
        self.screen.advance()
        self.seconds = time.perf_counter() - self.started

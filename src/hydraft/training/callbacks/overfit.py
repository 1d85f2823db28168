"""The callback of ``debug=overfit``: ends the training when the batch is learned, and says whether it was."""

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft.config.schema import Config

SLOW = 0.5
"""Of the first loss: a last one below it was still falling, and more steps may be enough."""


class OverfitCallback(TrainerCallback):
    """Watches the loss of the one batch, the same on all ranks. Every rank has one."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **rest: Any,
    ) -> None:
        """Stop as soon as the loss is small enough, or is no number any more."""
        if logs is None or "loss" not in logs:
            return
        self.losses.append(float(logs["loss"]))
        self.norms.append(float(logs.get("grad_norm", math.nan)))
        if self.learned or not math.isfinite(self.losses[-1]):
            control.should_training_stop = True

    @property
    def learned(self) -> bool:
        """Whether the loss of the last logged step is at most ``debug.learned_loss``."""
        return bool(self.losses) and self.losses[-1] <= self.config.debug.learned_loss

    def result(self, steps: int) -> dict[str, Any]:
        """``debug`` in result.json: the verdict, and what it is made from."""
        first, last = (self.losses[0], self.losses[-1]) if self.losses else (math.nan, math.nan)
        change = f"loss {first:.2f} → {last:.2f} in {steps:,} steps"
        causes = "" if self.learned else f"; likely causes: {'; '.join(self._causes(first, last))}"
        return {
            "learned": self.learned,
            "losses": [one if math.isfinite(one) else None for one in (first, last)],
            "verdict": f"{'learned' if self.learned else 'not learned'}: {change}{causes}",
        }

    def _causes(self, first: float, last: float) -> list[str]:
        """What keeps a batch from being learned, the likeliest first."""
        train, lora, rate = self.config.train, self.config.lora, self.config.train.learning_rate
        lower, higher = f"train.learning_rate={rate / 10:g}", f"train.learning_rate={rate * 10:g}"
        if not math.isfinite(last):
            return [f"the learning rate of {rate:g} is too high (try {lower})", "numbers overflow in train.precision"]
        if self.norms and max(self.norms) == 0:
            return [
                "all gradients are 0: no token of the batch is trained (mode=preview shows which are)",
                "nothing is trained: lora.target_modules",
            ]
        if last > first:
            return [f"the learning rate of {rate:g} is too high (try {lower})"]
        found = [f"the learning rate of {rate:g} is too low (try {higher})"]
        if last < SLOW * first:
            found.insert(0, f"too few steps (try train.max_steps={2 * (train.max_steps or 300)})")
        if lora.method.value != "none":
            found.append(f"the adapter is too small (try lora.r={2 * lora.r})")
        if lora.dropout:
            found.append(f"lora.dropout={lora.dropout:g}")
        if self.config.objective.label_smoothing:
            found.append(f"objective.label_smoothing={self.config.objective.label_smoothing:g} bounds the loss")
        return [*found, "records of the batch with the same prompt and different answers (mode=preview shows them)"]

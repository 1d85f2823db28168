"""The callback that ends the training after a signal: all ranks stop after the same step, and a checkpoint is saved."""

from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft.system.signals import SHUTDOWN_SIGNALS, SignalListener


class EarlyStopCallback(TrainerCallback):
    """Checks after each step whether a rank received a signal (``system/signals.py``). Every rank has one; all decide the same."""

    def __init__(self, grace: float, device: torch.device, listener: SignalListener) -> None:
        """Create the callback.

        Args:
            grace: seconds from a signal to the end of the process; with 0, every signal ends its rank at once.
            device: where the signals of the ranks are reduced.
            listener: receives the signals of this rank.
        """
        self.listener = listener
        self.grace = grace
        self.device = device
        self.number = 0
        """The signal for which all ranks stop; 0 if there is none."""
        self.shared = False
        """Whether ``divergence.py`` exchanges signals together with losses and calls ``receive``; then no other exchange is needed."""

    def stops(self) -> bool:
        """Whether to stop. Every rank must call it: a signal to one rank stops all."""
        if self.grace and not self.number:
            if dist.get_world_size() == 1:
                self.number = self.listener.received
            else:
                number = torch.tensor([self.listener.received], device=self.device)
                dist.all_reduce(number, op=dist.ReduceOp.MAX)
                self.number = int(number)
        return self.number != 0

    def counts(self) -> list[float]:
        """For each signal of ``SHUTDOWN_SIGNALS``, 1 if this rank received it; to be summed over the ranks for ``receive``."""
        number = self.listener.received if self.grace else 0
        return [float(number == signal) for signal in SHUTDOWN_SIGNALS]

    def receive(self, counts: list[float]) -> None:
        """Take the sums of ``counts`` over all ranks. Every rank must call it after the same step."""
        received = [int(signal) for signal, count in zip(SHUTDOWN_SIGNALS, counts, strict=True) if count]
        self.number = self.number or max(received, default=0)

    def stop(self, control: TrainerControl) -> None:
        """Let the Trainer save a checkpoint and end."""
        control.should_training_stop = control.should_save = True

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """From the first step on, there is something to save."""
        self.listener.allow_saving(self.grace)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Stop if a signal was received."""
        if self.number or (not self.shared and self.stops()):
            self.stop(control)

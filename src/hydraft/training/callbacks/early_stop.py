"""Ends the training in good order when any rank was asked to: all ranks stop after the same step, and it is saved."""

from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft.system.signals import SHUTDOWN_SIGNALS, SignalListener


class Stopper(TrainerCallback):
    """Asks after each step whether a signal came (see ``system/signals.py``); every rank has one, and all get the same answer."""

    def __init__(self, grace: float, device: torch.device, listener: SignalListener) -> None:
        """Create the callback.

        Args:
            grace: seconds from a signal to the end of the process; with 0, every signal ends its rank at once.
            device: where the ranks' signals are reduced.
            listener: receives this rank's signals.
        """
        self.listener = listener
        self.grace = grace
        self.device = device
        self.number = 0
        """The signal that all ranks have agreed to leave for; 0 as long as they have not."""
        self.told = False
        """Whether ``health.py`` shares the signals with what else the ranks share after a step, and calls ``tell``."""

    def agreed(self) -> bool:
        """Whether to leave. Every rank must ask: a signal that reached one of them is told to all."""
        if self.grace and not self.number:
            if dist.get_world_size() == 1:
                self.number = self.listener.received
            else:
                number = torch.tensor([self.listener.received], device=self.device)
                dist.all_reduce(number, op=dist.ReduceOp.MAX)
                self.number = int(number)
        return self.number != 0

    def heard(self) -> list[float]:
        """What ``tell`` wants the sum of, over the ranks: which of ``SHUTDOWN_SIGNALS`` has asked this rank to leave."""
        number = self.listener.received if self.grace else 0
        return [float(number == signal) for signal in SHUTDOWN_SIGNALS]

    def tell(self, counts: list[float]) -> None:
        """How many ranks each of ``SHUTDOWN_SIGNALS`` has asked to leave; the same on all of them, and told at the same step."""
        asked = [int(signal) for signal, count in zip(SHUTDOWN_SIGNALS, counts, strict=True) if count]
        self.number = self.number or max(asked, default=0)

    def stop(self, control: TrainerControl) -> None:
        """Have the Trainer save and end."""
        control.should_training_stop = control.should_save = True

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """A step that has begun is a step to save."""
        self.listener.allow_saving(self.grace)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """The last step of a run that was asked to end."""
        if self.number or (not self.told and self.agreed()):
            self.stop(control)

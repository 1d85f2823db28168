"""The callback that ends the training after the step ``sweep.stop_at``, as a signal would: a checkpoint is saved, to be resumed."""

import signal
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft.training.callbacks.early_stop import EarlyStopCallback


class PauseCallback(TrainerCallback):
    """Stops the training at a rung of a search. Every rank has one; it comes after the evaluation of the same step."""

    def __init__(self, step: int, early_stop: EarlyStopCallback) -> None:
        """``step``: the optimizer step after which the training ends, unless it is the last one."""
        self.step = step
        self.early_stop = early_stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Stop after the step, or after the first one of a run that resumes beyond it; a run that ends there is complete."""
        if control.should_training_stop:  # it ends here for another reason
            return
        if self.step <= state.global_step < state.max_steps and not self.early_stop.number:
            self.early_stop.number = signal.SIGTERM
            self.early_stop.stop(control)

"""The callback that stops a run after a step: when it does, and when the run has ended or stopped already."""

import signal
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from hydraft.system.signals import SignalListener
from hydraft.training.callbacks.early_stop import EarlyStopCallback
from hydraft.training.callbacks.pause import PauseCallback


def stopped_after(stop_at: int, begin: int = 0, total: int = 8, received: int = 0) -> tuple[int, int, bool]:
    """The step after which a run ends, the signal that it ends for, and whether a checkpoint is saved then.

    Args:
        stop_at: the step of the callback.
        begin: the step from which the run resumes.
        total: steps of the whole run.
        received: the signal of a step before.
    """
    early = EarlyStopCallback(0.0, torch.device("cpu"), SignalListener())
    early.number = received
    pause = PauseCallback(stop_at, early)
    arguments: Any = None  # creating them would start a process group
    state, control = TrainerState(max_steps=total, global_step=begin), TrainerControl()
    while state.global_step < total and not control.should_training_stop:
        state.global_step += 1
        pause.on_step_end(arguments, state, control)
    return state.global_step, early.number, control.should_save


@pytest.mark.parametrize(
    ("stop_at", "begin", "ended"),
    [(4, 0, 4), (4, 2, 4), (4, 4, 5), (4, 6, 7), (1, 0, 1)],
    ids=["from the start", "resumed before it", "resumed at it", "resumed beyond it", "the first step"],
)
def test_a_run_stops_after_its_step_and_saves(stop_at: int, begin: int, ended: int) -> None:
    assert stopped_after(stop_at, begin) == (ended, signal.SIGTERM, True)


@pytest.mark.parametrize(("stop_at", "begin"), [(8, 0), (9, 0), (4, 7)])
def test_a_run_that_ends_there_is_complete(stop_at: int, begin: int) -> None:
    assert stopped_after(stop_at, begin) == (8, 0, False)


def test_the_signal_that_a_run_received_is_kept() -> None:
    assert stopped_after(4, received=signal.SIGUSR1)[1] == signal.SIGUSR1

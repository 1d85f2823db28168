"""What libraries keep once a process and every member of a pack must have its own of: random generators and accelerate's states."""

import random
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState


class PythonRandom:
    """Python's generator."""

    def take(self) -> Any:
        return random.getstate()

    def put(self, value: Any) -> None:
        random.setstate(value)


class NumpyRandom:
    """NumPy's global generator."""

    def take(self) -> Any:
        return np.random.get_state()

    def put(self, value: Any) -> None:
        np.random.set_state(value)


class TorchRandom:
    """torch's generators of the CPU and of the current GPU."""

    def take(self) -> Any:
        return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    def put(self, value: Any) -> None:
        cpu, gpu = value
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)


class Accelerate:
    """What accelerate's objects of a Trainer share: the state of the accelerator and of gradient accumulation."""

    def take(self) -> Any:
        return AcceleratorState._shared_state, GradientState._shared_state

    def put(self, value: Any) -> None:
        AcceleratorState._shared_state, GradientState._shared_state = value


STATES = (PythonRandom(), NumpyRandom(), TorchRandom(), Accelerate())
"""For ``Scheduler``."""

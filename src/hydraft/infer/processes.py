"""What the processes of ``mode=batch`` and ``mode=evaluate`` share: how one begins, and how it has ended."""

import dataclasses
import os
import signal

import torch

from hydraft.config.infer import InferConfig
from hydraft.system.parent_death import die_with_parent


def begin(rank: int, count: int, options: InferConfig) -> InferConfig:
    """Give this process, one of ``count``, its share of the cores and its GPU; the options with that GPU."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the parent, which ends this process
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // count))
    if options.device == "cpu" or not torch.cuda.is_available():
        return options
    return dataclasses.replace(options, device=f"cuda:{rank}")


def ended(code: int) -> str:
    """How a process with this exit code has ended."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def failed(rank: int, error: Exception) -> str:
    """The error of a process, in one line."""
    return f"process {rank}: {' '.join(f'{type(error).__name__}: {error}'.split())}"

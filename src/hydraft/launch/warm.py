"""Imported once by the server that ranks are forked from, so that a rank starts in hundredths of a second."""

import signal
import warnings

from hydraft.launch.lifeline import die_with_parent

die_with_parent()
for number in (
    signal.SIGTERM,
    signal.SIGUSR1,
):  # one that a whole process group gets is for its ranks, which die with it
    signal.signal(number, signal.SIG_IGN)
warnings.simplefilter("ignore")

import torch  # noqa: E402

import hydraft.worker  # noqa: E402, F401

# isort: split
import bitsandbytes  # noqa: E402, F401
import deepspeed  # noqa: E402, F401

assert not torch.cuda.is_initialized(), "a process that has touched CUDA must not be forked"

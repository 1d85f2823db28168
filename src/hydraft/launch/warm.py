"""Imported once by the server that ranks are forked from, so that a rank starts in hundredths of a second."""

import os
import warnings

from hydraft.launch.lifeline import die_with_parent

die_with_parent()
warnings.simplefilter("ignore")

# bitsandbytes announces at import that an optional kernel is not there; no rank has a log yet to put it in.
_terminal, _nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
os.dup2(_nowhere, 2)
try:
    import bitsandbytes  # noqa: F401
    import deepspeed  # noqa: F401
    import torch

    import hydraft.worker  # noqa: F401
finally:
    os.dup2(_terminal, 2)
    os.close(_terminal)
    os.close(_nowhere)

assert not torch.cuda.is_initialized(), "a process that has touched CUDA must not be forked"

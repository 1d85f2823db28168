"""Imports PyTorch and the other libraries that ranks need; imported once by the server that ranks are forked from.

With GPUs, modules that touch CUDA's driver on import are left out, and so are those that import them: a rank imports the rest after
the fork, in some two seconds. ``python tests/support/touches.py`` finds out which modules do.
"""

import gc
import os
import signal
import warnings

from hydraft.launch.local.fork_server import CLEAN, PRELOADED, TOUCHING
from hydraft.system import deferred_compile
from hydraft.system.parent_death import die_with_parent

gc.disable()  # saves a fifth of the time of these imports; what they leave behind is not collected
die_with_parent()
for number in (
    signal.SIGTERM,
    signal.SIGUSR1,
):  # sent to a whole process group, they are for the ranks, which end this process
    signal.signal(number, signal.SIG_IGN)
warnings.simplefilter("ignore")
deferred_compile.prepare()

import matplotlib  # noqa: E402

matplotlib.use("Agg")
for name in CLEAN:
    PRELOADED.add(name)
if os.environ.get("DS_ACCELERATOR") == "cpu":  # set by deepspeed_ops.environment on a machine without GPUs
    for name in TOUCHING:
        PRELOADED.add(name)
from transformers.conversion_mapping import get_checkpoint_conversion_mapping  # noqa: E402

get_checkpoint_conversion_mapping("llama")  # builds its table for all families, which takes a tenth of a second
gc.freeze()  # otherwise the first collection in each fork visits, and so copies, all of this
gc.enable()

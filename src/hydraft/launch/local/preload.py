"""Imported once by the server that ranks are forked from, so that a rank starts in hundredths of a second.

With GPUs it leaves out what touches the driver as it is imported, and what imports that: a rank imports the rest after the fork,
in some two seconds. ``python tests/support/touches.py`` finds out which modules do.
"""

import gc
import importlib
import inspect
import os
import signal
import warnings

from hydraft.launch.local.fork_server import CLEAN, TOUCHING
from hydraft.system.library_logs import quiet_bitsandbytes
from hydraft.system.parent_death import die_with_parent

gc.disable()  # a fifth of the time that these imports take; what they leave behind goes uncollected
die_with_parent()
for number in (
    signal.SIGTERM,
    signal.SIGUSR1,
):  # one that a whole process group gets is for its ranks, which die with it
    signal.signal(number, signal.SIG_IGN)
warnings.simplefilter("ignore")
quiet_bitsandbytes()

import matplotlib  # noqa: E402

matplotlib.use("Agg")
for name in CLEAN:
    importlib.import_module(name)
if os.environ.get("DS_ACCELERATOR") == "cpu":  # as ops.environment has it where there is no GPU
    for name in TOUCHING:
        importlib.import_module(name)
inspect.stack()  # fills the table of modules by file, which torch's agent asks a launcher for
gc.freeze()  # else the first collection in each fork walks, and so copies, all of this
gc.enable()

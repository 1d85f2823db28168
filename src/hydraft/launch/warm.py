"""Imported once by the server that ranks are forked from, so that a rank starts in hundredths of a second."""

import gc
import importlib
import inspect
import signal
import warnings

from hydraft.launch.lifeline import die_with_parent

gc.disable()  # a fifth of the time that these imports take; what they leave behind goes uncollected
LATER = (
    "deepspeed.ops.op_builder.all_ops", "matplotlib.pyplot", "peft.tuners.lora.bnb", "torch.distributed.launcher.api",
    "torch.utils.cpp_extension", "transformers.integrations.bitsandbytes", "transformers.models.llama.modeling_llama",
)  # fmt: skip
"""What a launcher and its ranks would import in passing, each anew: some two seconds a run."""

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
import matplotlib  # noqa: E402

matplotlib.use("Agg")
for name in LATER:
    importlib.import_module(name)

assert not torch.cuda.is_initialized(), "a process that has touched CUDA must not be forked"
inspect.stack()  # fills the table of modules by file, which torch's agent asks a launcher for
gc.freeze()  # else the first collection in each fork walks, and so copies, all of this
gc.enable()

"""Imported once by the server that ranks are forked from, so that a rank starts in hundredths of a second.

With GPUs it leaves out what touches the driver as it is imported, and what imports that: a rank imports the rest after the fork,
in some two seconds. ``python tests/launch/touches.py`` finds out which modules do.
"""

import gc
import importlib
import inspect
import os
import signal
import warnings

from hydraft.launch.lifeline import die_with_parent

gc.disable()  # a fifth of the time that these imports take; what they leave behind goes uncollected
CLEAN = (
    "torch", "transformers", "datasets", "accelerate", "deepspeed", "deepspeed.ops.op_builder.all_ops", "matplotlib.pyplot",
    "torch.distributed.launcher.api", "torch.utils.cpp_extension", "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_sentencepiece", "transformers.tokenization_utils_tokenizers",
    "torch._dynamo.repro.after_dynamo", "torch._inductor.compiler_bisector",  # bitsandbytes compiles as it is imported
    "hydraft.data.cache", "hydraft.models.attention", "hydraft.models.head", "hydraft.quant", "hydraft.report", "hydraft.state",
    "hydraft.track",
)  # fmt: skip
"""What leaves CUDA's driver alone (with ``launch.server``'s environment)."""

TOUCHING = (
    "bitsandbytes", "hydraft.worker", "peft.tuners.lora.bnb", "transformers.integrations.bitsandbytes",
)  # fmt: skip
"""bitsandbytes asks each GPU for its compute capability; peft and transformers' Trainer import it."""

die_with_parent()
for number in (
    signal.SIGTERM,
    signal.SIGUSR1,
):  # one that a whole process group gets is for its ranks, which die with it
    signal.signal(number, signal.SIG_IGN)
warnings.simplefilter("ignore")

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

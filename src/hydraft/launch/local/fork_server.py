"""The servers that ranks and jobs are forked from: each has imported the stack once, so that a fork starts in hundredths of a second.

A fork of a process that has touched CUDA's driver cannot use a GPU. So on a machine with GPUs a server imports what leaves the
driver alone (``launch.warm``), and before anything is forked a first fork of it is asked whether it could use a GPU: that is
where torch itself tells. Where it could not, or where an import raised, processes are spawned instead. No torch at module level.
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

from hydraft.system.hardware import Hardware
from hydraft.training import deepspeed_ops

PRELOAD = "HYDRAFT_PRELOAD"
"""In a server's environment: the modules that it imports, as JSON."""

BY_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Set to 1, ``torch.cuda.is_available`` counts GPUs by NVML, which leaves the driver alone; without NVML it asks the driver."""

TOUCHED = "the process that it is forked from had touched CUDA's driver"

UNIFIED_MEMORY = "/dev/nvidia-uvm"

CLEAN = (
    "torch", "transformers", "datasets", "accelerate", "deepspeed", "deepspeed.ops.op_builder.all_ops", "matplotlib.pyplot",
    "torch.distributed.launcher.api", "torch.utils.cpp_extension", "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_sentencepiece", "transformers.tokenization_utils_tokenizers",
    "torch._dynamo.repro.after_dynamo", "torch._inductor.compiler_bisector",  # bitsandbytes compiles as it is imported
    "hydraft.data.cache", "hydraft.models.attention", "hydraft.models.loss_chunked", "hydraft.models.quant", "hydraft.runs.loss_plot", "hydraft.checkpoint.optimizer_state",
    "hydraft.tracking.factory",
)  # fmt: skip
"""What leaves CUDA's driver alone (with the environment of ``begin``)."""

TOUCHING = (
    "bitsandbytes", "hydraft.training.worker", "peft.tuners.lora.bnb", "transformers.integrations.bitsandbytes",
)  # fmt: skip
"""bitsandbytes asks each GPU for its compute capability; peft and transformers' Trainer import it."""

imported: list[str] = []
"""In a server and its forks: the modules that it has imported, or tried to."""
trouble: list[str] = []
"""In a server and its forks: why modules could not be imported."""


def begin(modules: Sequence[str], hardware: Hardware) -> None:
    """Start the server where there is none yet; it imports ``modules`` while its caller does other things."""
    os.environ.setdefault(BY_NVML, "1")  # for the caller too: what it forks must be able to use a GPU
    given = {**deepspeed_ops.environment(hardware), PRELOAD: json.dumps(list(modules))}
    forkserver.set_forkserver_preload(["hydraft.launch.local.server_preload"])
    with _environment(given):
        forkserver.ensure_running()


def unusable(modules: Sequence[str], hardware: Hardware) -> str | None:
    """Wait until the server has imported ``modules``.

    Returns:
        Why what it forks could not be used, in a line; None where it can.
    """
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(theirs, list(modules), bool(hardware.gpus)))
    try:
        process.start()
        theirs.close()
        found: str | None = ours.recv()
        process.join()
    except (EOFError, OSError):  # a module ended the server: a crash in compiled code, or os._exit
        return f"the server that processes are forked from ended as it imported {', '.join(modules)}"
    finally:
        ours.close()
    return found


def forks_without_gpu() -> str | None:
    """Why a fork of this process could not use a GPU, which a fork of it is asked; None where it could."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, (without_gpu() or "").encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        found = told.read()
    os.waitpid(child, 0)
    return found or None


def without_gpu() -> str | None:
    """Why this process, a fork, cannot use a GPU; None where it can, or is no fork.

    torch marks the forks of a process in which it has called CUDA, be it only to count devices (``torch.cuda._is_in_bad_fork``).
    Of other libraries' calls it knows nothing: NVIDIA's driver, once initialised (cuInit), keeps /dev/nvidia-uvm open, which
    NVML, asked for names and counts, does not open.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda._is_in_bad_fork():
        return TOUCHED
    for descriptor in Path("/proc/self/fd").glob("*"):
        with suppress(OSError):
            if str(descriptor.readlink()) == UNIFIED_MEMORY:
                return TOUCHED
    return None


def _tell(channel: Connection, modules: list[str], on_gpu: bool) -> None:
    """In a fork of the server: what the server is like."""
    if imported != modules:  # multiprocessing has started another in its place
        why: str | None = f"the server that processes are forked from ended as it imported {', '.join(modules)}"
    elif trouble:
        why = "; ".join(trouble)
    else:
        why = without_gpu() if on_gpu else None
        why = why and f"{why}, which one of these does as it is imported: {', '.join(modules)}"
    channel.send(why)
    channel.close()


@contextmanager
def _environment(given: Mapping[str, str]) -> Iterator[None]:
    """Variables for a process that is started meanwhile."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

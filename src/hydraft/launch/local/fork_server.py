"""Fork servers for ranks and for a sweep's jobs: a fork has all imports, and starts in hundredths of a second.

A fork of a process that has touched CUDA's driver cannot use a GPU. So on a machine with GPUs a server imports only modules that do
not touch the driver (``preload.py``), and a first fork of it checks whether it could use a GPU. If it could not, or if an import
raised, processes are spawned instead. No torch at module level.
"""

import ctypes
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, util
from multiprocessing.connection import Connection

from hydraft.errors import Failure, FailureReason
from hydraft.system import temporary
from hydraft.system.hardware import Hardware
from hydraft.system.processes import ProcessId
from hydraft.training import deepspeed_ops

PRELOAD = "HYDRAFT_PRELOAD"
"""Environment variable of a server: the modules that it imports, as JSON."""

BY_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Set to 1, ``torch.cuda.is_available`` counts GPUs with NVML, which does not touch the driver; without NVML it uses the driver."""

TOUCHED = "the process that it is forked from had touched CUDA's driver"

DRIVER_LIBRARY = "libcuda.so.1"
CUDA_SUCCESS, CUDA_ERROR_NOT_INITIALIZED = 0, 3

CLEAN = (
    "torch", "transformers", "datasets", "accelerate", "deepspeed", "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.zero.muon.muon_optimizer", "matplotlib.pyplot",
    "torch.distributed.launcher.api", "torch.utils.cpp_extension", "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_sentencepiece", "transformers.tokenization_utils_tokenizers",
    "hydraft.data.cache", "hydraft.models.attention", "hydraft.models.loss_chunked", "hydraft.models.quant",
    "hydraft.runs.loss_plot",
    "hydraft.checkpoint.optimizer_state", "hydraft.tracking.factory",
)  # fmt: skip
"""Modules that do not touch CUDA's driver on import (with the environment of ``start``)."""

TOUCHING = (
    "bitsandbytes", "hydraft.training.worker", "peft.tuners.lora.bnb", "transformers.integrations.bitsandbytes",
)  # fmt: skip
"""Modules that do: bitsandbytes queries the compute capability of each GPU; peft and transformers' Trainer import it."""


@dataclass
class Preloaded:
    """What the fork server that this process belongs to has imported."""

    modules: list[str] = field(default_factory=list)
    """Modules that it has imported, or tried to; empty in any other process."""
    errors: list[str] = field(default_factory=list)
    """Why modules could not be imported."""
    touching: str = ""
    """The first module whose import initialised CUDA's driver; empty if none did."""

    def add(self, name: str) -> None:
        """Import a module, and notice if this initialises CUDA's driver."""
        importlib.import_module(name)
        if not self.touching and _initialised():
            self.touching = name


LOST = 255
"""The exit code that multiprocessing gives to a fork whose server has ended before it reported the fork's own."""

SOCKET_PATH = 108
"""Longest path of a socket, with a NUL (unix(7))."""

PRELOADED = Preloaded()
"""One a process. multiprocessing's fork server runs no code but imports, and passes no arguments to its forks: what it has imported
can only be handed to them as state of a module. ``server_preload.py`` sets it, ``unusable`` reads it in a fork."""


def start(modules: Sequence[str], hardware: Hardware) -> None:
    """Start the server if there is none yet; it imports ``modules`` in the background."""
    os.environ.setdefault(BY_NVML, "1")  # for the caller too: its forks must be able to use a GPU
    given = {**deepspeed_ops.environment(hardware), PRELOAD: json.dumps(list(modules))}
    # Python 3.11.0 would listen on an abstract socket, which belongs to nobody.
    util.abstract_sockets_supported = False  # type: ignore[misc]
    forkserver.set_forkserver_preload(["hydraft.launch.local.server_preload"])
    _own_socket_folder()
    with _environment(given):
        forkserver.ensure_running()


def stop() -> None:
    """End the server, if there is one. It must not have forks yet."""
    server = process()
    if server is not None:
        with suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGKILL)  # it hears of nothing else before it has imported its modules
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _own_socket_folder() -> None:
    """Have multiprocessing make its sockets in a folder of ours: its own stays when this process is killed."""
    known = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    if "tempdir" in known:
        return
    folder = temporary.make("mp")
    if len(f"{folder}/listener-12345678") < SOCKET_PATH:
        known["tempdir"] = str(folder)  # as multiprocessing.util.get_temp_dir does
        util.Finalize(None, temporary.remove, args=(folder,), exitpriority=-100)
    else:  # multiprocessing's own name is shorter by a few letters
        temporary.remove(folder)


def unusable(modules: Sequence[str], hardware: Hardware) -> str | None:
    """Wait until the server has imported ``modules``.

    Returns:
        Why its forks cannot be used, on one line; None if they can.
    """
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(theirs, list(modules), bool(hardware.gpus)))
    try:
        process.start()
        theirs.close()
        found: str | None = ours.recv()
        process.join()
    except (EOFError, OSError):  # a module ended the server: a crash in compiled code, or os._exit
        return f"the server that processes are forked from ended while importing {', '.join(modules)}"
    finally:
        ours.close()
    return found


def process() -> ProcessId | None:
    """The server that this process has started last; None if there is none."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)  # multiprocessing does not publish it
    return None if pid is None else ProcessId.of(pid)


def ended(forks: str, server: ProcessId | None = None) -> Failure | None:
    """The failure of a fork with exit code ``LOST``, if its server has ended; None if that was its own code.

    Args:
        forks: what is forked from it, for the message.
        server: the one that they were forked from, if another may have been started since.
    """
    server = server or process()
    if server is None:
        return None
    began = time.monotonic()
    while server.runs:  # its pipes are closed a moment before it counts as ended
        if time.monotonic() - began > 1:
            return None
        time.sleep(0.01)
    how = "ended (killed, or it exited)"
    with suppress(ChildProcessError):
        while (found := os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is None:
            if time.monotonic() - began > 2:
                break
            time.sleep(0.01)  # its other threads end after its first one
        if found is not None and found.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
            how = f"was killed by {signal.Signals(found.si_status).name}"
            how += " (out of memory, unless someone sent the signal)" if found.si_status == signal.SIGKILL else ""
        elif found is not None:
            how = f"exited with code {found.si_status}"
    return Failure(FailureReason.killed, f"the server that {forks} are forked from {how}, and they ended with it")


def forks_without_gpu() -> str | None:
    """Why a fork of this process could not use a GPU, found out in a fork; None if it could."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, (without_gpu() or "").encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as result:
        found = result.read()
    os.waitpid(child, 0)
    return found or None


def without_gpu() -> str | None:
    """Why this process, a fork, cannot use a GPU; None if it can, or if it is not a fork.

    torch marks the forks of a process in which it has called CUDA, even if only to count devices (``torch.cuda._is_in_bad_fork``),
    but not those of a process in which another library has. The driver itself refuses to initialise (cuInit) in the fork of a process
    in which it was initialised. Open device files tell nothing: NVML may open the same ones as CUDA.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda._is_in_bad_fork():
        return TOUCHED
    driver = _driver()
    return TOUCHED if driver is not None and driver.cuInit(0) != CUDA_SUCCESS else None


def _driver() -> ctypes.CDLL | None:
    """CUDA's driver, if this process has loaded it, as ``import torch`` may do: before that, nothing can have touched it."""
    try:
        return ctypes.CDLL(DRIVER_LIBRARY, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:
        return None


def _initialised() -> bool:
    """Whether this process, which is no fork, has initialised CUDA's driver; this call does not."""
    driver = _driver()
    return driver is not None and driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != CUDA_ERROR_NOT_INITIALIZED


def _report(channel: Connection, modules: list[str], on_gpu: bool) -> None:
    """In a fork of the server: send why forks of it cannot be used, or None."""
    if PRELOADED.modules != modules:  # multiprocessing has started another server in its place
        why: str | None = f"the server that processes are forked from ended while importing {', '.join(modules)}"
    elif PRELOADED.errors:
        why = "; ".join(PRELOADED.errors)
    else:
        why = without_gpu() if on_gpu else None
        why = why and f"{why}, on importing {PRELOADED.touching or ' or '.join(modules)}"
    channel.send(why)
    channel.close()


@contextmanager
def _environment(given: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for a process that is started inside the block."""
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

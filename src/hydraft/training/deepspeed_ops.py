"""DeepSpeed's compiled ops: one process builds them once, before any rank starts. No torch at module level.

They are stored in the folder of the Python environment, or in the user's cache if that folder is read-only. ``op_marker.py`` knows
what they were built from, and ``op_locks.py`` which of torch's locks are held.
"""

import functools
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import psutil
from filelock import FileLock, Timeout

from hydraft.config.choices import Offload
from hydraft.config.optimizer import OptimizerKind
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.system import files, program
from hydraft.system.hardware import Hardware, detect
from hydraft.system.hardware import environment as cards
from hydraft.system.source_tree import own_code_first
from hydraft.system.toolchain import has_headers
from hydraft.training import op_build, op_locks, op_marker
from hydraft.training.op_build import ASYNC_IO, CPU_ADAM, PIN_MEMORY, QUANTIZER, SHARED_MEMORY

NVME = "nvme"
"""The argument of ``hydraft ops`` for the ops of ``zero=stage3_nvme``."""


def folder() -> Path:
    """The folder of this environment's ops: its own, or one in the user's cache if its own is read-only."""
    own = Path(sys.prefix) / "torch_extensions"
    if os.access(own if own.exists() else sys.prefix, os.W_OK):
        built_on = (op_marker.read(own / CPU_ADAM) or {}).get("cpu", op_marker.cpu())
        return own if built_on == op_marker.cpu() else own / f"cpu-{op_marker.cpu()}"  # machines share the environment
    version = hashlib.sha256(f"{sys.prefix} {sys.version} {files.version_of('torch')}".encode()).hexdigest()[:12]
    return files.cache_folder("ops") / version  # an op is built for one version of torch and of Python


def environment(hardware: Hardware) -> dict[str, str]:
    """Environment variables of every process that imports DeepSpeed: the ops' folder, the device, GPUs, and ninja on the path."""
    return {
        "TORCH_EXTENSIONS_DIR": str(folder()),
        "DS_ACCELERATOR": "cuda" if hardware.gpus else "cpu",
        "PATH": op_marker.search_path(),
        **cards(hardware),
    }


def needed(config: Config, hardware: Hardware) -> list[str]:
    """The ops that a run loads."""
    names = []
    if not hardware.gpus:
        names.append(SHARED_MEMORY)  # DeepSpeed's communication loads it even for one rank
    if config.zero.offload_optimizer is not Offload.none and config.optimizer.kind is OptimizerKind.adamw:
        names.append(CPU_ADAM)
    if config.zero.swaps:
        names += [PIN_MEMORY, ASYNC_IO]
    if config.zero.quantized_weights or config.zero.quantized_gradients:
        names.append(QUANTIZER)
    return names


def is_built(name: str) -> bool:
    """Whether ``name`` was built completely, and from what it would be built from now."""
    return op_marker.is_current(folder() / name)


def prepare(names: list[str], hardware: Hardware) -> list[str]:
    """Remove stale locks and build missing ops.

    Returns:
        Lines for the user about what was done.

    Raises:
        ConfigError: an op cannot be compiled on this machine; the message names what is missing.
    """
    if not names:
        return []
    try:
        folder().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder()}: DeepSpeed's {names[0]} cannot be built there ({error.strerror}): set another folder with HYDRAFT_CACHE="
        ) from None
    if all(is_built(name) for name in names) and not any(folder().glob("*/lock")):
        return []
    with _build_lock():
        lines = [f"cleared a lock left by a killed build: {lock}" for lock in clear_locks()]
        for name in names:
            if not is_built(name):
                _say(f"building DeepSpeed's {name} (once, takes 20 to 150 seconds) …")
                with _telling(name):
                    _build(name, hardware)
                lines.append(f"built {name}")
    return lines


def prepare_here(config: Config) -> None:
    """``prepare`` for a run that trains in this process, which then loads the ops from ``folder()``."""
    machine = detect()
    for line in prepare(needed(config, machine), machine):
        _say(line)
    os.environ.update(TORCH_EXTENSIONS_DIR=str(folder()), PATH=op_marker.search_path())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def _build_lock() -> Iterator[None]:
    """The lock of everything that builds in this folder; a wait for it is told. The kernel releases it if its process ends."""
    lock, who, began = FileLock(folder() / ".build"), folder() / ".building", time.monotonic()
    while True:
        try:
            lock.acquire(timeout=0 if time.monotonic() - began < 1 else op_locks.SAY_SECONDS)
            break
        except Timeout:
            seconds = time.monotonic() - began
            _say(f"waiting {seconds:.0f} s for {op_locks.holder(who)}, which builds DeepSpeed's ops in {folder()}")
            time.sleep(1)
    try:
        who.write_text(op_locks.describe_self())
        yield
    finally:
        who.unlink(missing_ok=True)
        lock.release()


@contextmanager
def _telling(name: str) -> Iterator[None]:
    """While the block builds an op, tell how long that has taken so far, and for whom it waits."""
    done, began, lock = threading.Event(), time.monotonic(), folder() / name / "lock"

    def tell() -> None:
        while not done.wait(op_locks.SAY_SECONDS):
            known, seconds = op_locks.read(lock), time.monotonic() - began
            ours = known is None or (known["host"] == socket.gethostname() and os.getpid() in _parents(known["pid"]))
            _say(f"building DeepSpeed's {name}: {seconds:.0f} s so far" if ours else op_locks.waiting(lock, seconds))

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _parents(pid: int) -> list[int]:
    """The processes above a process of this machine; none if it has ended, or is another machine's."""
    try:
        return [process.pid for process in psutil.Process(pid).parents()]
    except psutil.Error:
        return []


def _build(name: str, hardware: Hardware) -> None:
    """Compile ``name`` in another process.

    Raises:
        ConfigError: it cannot be compiled; with the compiler's error, and what is missing if that is known.
    """
    compiler = os.environ.get("CXX", "c++")  # as torch's cpp_extension does
    if which(compiler) is None:
        raise ConfigError(
            f"DeepSpeed's {name} needs a C++ compiler, and {compiler} was not found: install one (Debian: apt-get install g++)"
            f"{op_build.instead(name)}"
        )
    if (lacking := op_build.lacking(name)) is not None:
        raise ConfigError(f"{lacking}{op_build.instead(name)}")
    if not has_headers():
        raise ConfigError(
            f"DeepSpeed's {name} compiles against Python.h, which was not found: install it (Debian: apt-get install python3-dev)"
            f"{op_build.instead(name)}"
        )
    op = folder() / name
    if op.exists() and not (op / "lock").exists():
        shutil.rmtree(op)  # built from something else: ninja might take its objects for good
    log = folder() / f"{name}.log"
    own_code = {"PYTHONPATH": own_code_first()}  # hydraft may not be installed
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "hydraft.training.deepspeed_ops", name],
            env={**os.environ, **environment(hardware), **own_code},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode != 0:
        raise ConfigError(
            f"DeepSpeed's {name} does not compile here: {op_build.cause(log)}; the log is {log}{op_build.instead(name)}"
        )
    op_marker.write(op)


def ready_device() -> None:
    """Verify in a rank that torch sees the GPUs that the driver reports, and let DeepSpeed query their memory through torch.

    DeepSpeed itself queries NVML with the numbers in CUDA_VISIBLE_DEVICES. That fails for names of MIG slices, and for GPUs that
    share the machine's memory.

    Raises:
        ConfigError: torch sees no GPU, or fewer than this machine's ranks need; with torch's reason.
    """
    if os.environ.get("DS_ACCELERATOR") != "cuda":
        return
    import torch

    count, ranks = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if count == 0:
        try:
            torch.cuda.init()
            reason = "no reason given"
        except Exception as error:
            reason = " ".join(str(error).split())
        raise ConfigError(
            f"the driver reports a GPU, but torch {torch.__version__} sees none ({reason}); "
            f"to train on the CPU: CUDA_VISIBLE_DEVICES= {program.typed('train')} …"
        )
    if count < ranks:
        raise ConfigError(
            f"cluster.ranks_per_node={ranks}: torch sees {count} GPUs on this machine: use cluster.ranks_per_node={count}"
        )
    from deepspeed.accelerator import get_accelerator

    get_accelerator().available_memory = lambda index=None: torch.cuda.mem_get_info(index)[0]


def cache_cpu_info() -> None:
    """Have the description of the CPU read once in this process.

    DeepSpeed's CPUAdam asks py-cpuinfo for it, and so does the builder of its op, five times at the start of a run that offloads; each
    time py-cpuinfo starts a process that takes a second.
    """
    import cpuinfo  # type: ignore[import-untyped]

    if not hasattr(cpuinfo.get_cpu_info, "cache_info"):
        cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)


def clear_locks() -> list[Path]:
    """Remove and return every ``lock`` in the ops' folder whose holder has ended."""
    return [lock for lock in folder().glob("*/lock") if op_locks.clear(lock)]


def main(arguments: list[str]) -> int:
    """``hydraft ops [nvme]``: build the ops for this machine, or those of ``zero=stage3_nvme``; with an op's name: compile it in this process."""
    from hydraft.system import hardware

    if arguments and arguments[0] in op_build.NAMES:
        op_build.load(arguments[0])
        return 0
    if arguments not in ([], [NVME]):
        print(f"hydraft ops: {' '.join(arguments)}: takes nothing, or {NVME}", file=sys.stderr)
        return 2
    machine = hardware.detect()
    names = [CPU_ADAM] if machine.gpus else [CPU_ADAM, SHARED_MEMORY]
    if arguments:
        names = [PIN_MEMORY, ASYNC_IO]
    try:
        for line in prepare(names, machine) or ["DeepSpeed's ops are built"]:
            print(line)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return (
            0 if machine.gpus and not arguments else 2
        )  # with a GPU, only offloading needs an op, and is refused then
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

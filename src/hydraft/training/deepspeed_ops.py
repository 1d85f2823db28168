"""DeepSpeed's compiled ops: built once, by one process, before any rank starts. No torch at module level.

They live in the environment's own folder, or in the user's where that one is not to be written to. torch guards a build with a file named ``lock`` and waits for it for ever; one
that a killed build left behind is recognised by nobody having it open, and removed.
"""

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from shutil import which

from filelock import FileLock

from hydraft.config.choices import Offload
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.system import files
from hydraft.system.hardware import Hardware
from hydraft.system.hardware import environment as cards
from hydraft.system.source_tree import own_code_first
from hydraft.system.toolchain import has_headers

SHARED_MEMORY = "deepspeed_shm_comm"
CPU_ADAM = "cpu_adam"


def folder() -> Path:
    """Where this environment's ops are built: in its own folder, or in the user's cache where only others may write there."""
    own = Path(sys.prefix) / "torch_extensions"
    if os.access(own if own.exists() else sys.prefix, os.W_OK):
        return own
    version = hashlib.sha256(f"{sys.prefix} {sys.version} {files.version_of('torch')}".encode()).hexdigest()[:12]
    return files.cache_folder("ops") / version  # an op fits one torch and one Python


def environment(hardware: Hardware) -> dict[str, str]:
    """What every process that imports DeepSpeed needs: the ops' folder, the device, its cards, and ninja on the path."""
    path = os.environ.get("PATH", "")
    scripts = sysconfig.get_path("scripts")
    return {
        "TORCH_EXTENSIONS_DIR": str(folder()),
        "DS_ACCELERATOR": "cuda" if hardware.gpus else "cpu",
        "PATH": path if scripts in path.split(os.pathsep) else f"{scripts}{os.pathsep}{path}",
        **cards(hardware),
    }


def needed(config: Config, hardware: Hardware) -> list[str]:
    """The ops a run loads."""
    names = []
    if not hardware.gpus:
        names.append(SHARED_MEMORY)  # DeepSpeed's communication loads it even for one rank
    if config.zero.offload_optimizer is Offload.cpu:
        names.append(CPU_ADAM)
    return names


def is_built(name: str) -> bool:
    """Whether ``name`` is there, whole."""
    return (folder() / name / f"{name}.so").is_file() and (folder() / name / ".built").is_file()


def prepare(names: list[str], hardware: Hardware) -> list[str]:
    """Clear locks no one holds and build what is missing.

    Returns:
        What was done, a line each, for a person.

    Raises:
        ConfigError: an op cannot be compiled here; it says what is missing.
    """
    if not names:
        return []
    try:
        folder().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder()}: DeepSpeed's {names[0]} cannot be built there ({error.strerror}): name another folder with HYDRAFT_CACHE="
        ) from None
    if all(is_built(name) for name in names) and not any(folder().glob("*/lock")):
        return []
    with FileLock(folder() / ".build"):  # the kernel frees this one when its holder dies, on whatever host that is
        said = [f"cleared a lock left by a killed build: {lock}" for lock in clear_locks()]
        for name in names:
            if not is_built(name):
                print(f"building DeepSpeed's {name}, once, some 20 to 150 seconds …", file=sys.stderr, flush=True)
                _build(name, hardware)
                said.append(f"built {name}")
    return said


def _build(name: str, hardware: Hardware) -> None:
    """Compile ``name`` in a process of its own.

    Raises:
        ConfigError: it cannot be; with the compiler's own words, and what is missing where that is known.
    """
    compiler = os.environ.get("CXX", "c++")  # torch's cpp_extension takes this one
    if which(compiler) is None:
        raise ConfigError(
            f"DeepSpeed's {name} needs a C++ compiler, and {compiler} was not found: install one (Debian: apt-get install g++)"
            f"{_instead(name)}"
        )
    if not has_headers():
        raise ConfigError(
            f"DeepSpeed's {name} compiles against Python.h, which was not found: install it (Debian: apt-get install python3-dev)"
            f"{_instead(name)}"
        )
    log = folder() / f"{name}.log"
    own_code = {"PYTHONPATH": own_code_first()}  # hydraft need not be installed
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
            f"DeepSpeed's {name} does not compile here: {_cause(log)}; all of it is in {log}{_instead(name)}"
        )
    (folder() / name / ".built").touch()


def _instead(name: str) -> str:
    """What a person may ask for that does not need the op."""
    return "; or use zero.offload_optimizer=none, which does without" if name == CPU_ADAM else ""


def _cause(log: Path) -> str:
    """The line of a build's log that says most: the compiler's first error, else the last that is no summary."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(?:error|undefined reference)\b:? ", line)]
    named = [
        line for line in lines if re.match(r"\w+(?:Error|Exception)\b", line) and "Error building extension" not in line
    ]
    return next(iter([*errors[:1], *named[-1:], *lines[-1:]]), "it said nothing")


def ready_device() -> None:
    """In a rank, before anything is loaded: torch must see the cards that the driver showed, and DeepSpeed must ask it for their memory.

    DeepSpeed asks NVML by the numbers in CUDA_VISIBLE_DEVICES, which knows neither the names of MIG slices nor the memory of a
    card that has the machine's.

    Raises:
        ConfigError: torch sees no card, or fewer than the machine's ranks need; with its own reason.
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
            f"the driver shows a GPU, but torch {torch.__version__} sees none ({reason}); "
            "without a card: CUDA_VISIBLE_DEVICES= python train.py …"
        )
    if count < ranks:
        raise ConfigError(
            f"cluster.ranks_per_node={ranks}: torch sees {count} GPUs on this machine: use cluster.ranks_per_node={count}"
        )
    from deepspeed.accelerator import get_accelerator

    get_accelerator().available_memory = lambda index=None: torch.cuda.mem_get_info(index)[0]


def clear_locks() -> list[Path]:
    """Remove each ``lock`` in the ops' folder that no process has open; the removed ones are returned."""
    stale = [lock for lock in folder().glob("*/lock") if not _is_open(lock)]
    for lock in stale:
        lock.unlink(missing_ok=True)
    return stale


def _is_open(file: Path) -> bool:
    """Whether a process of this machine has ``file`` open (torch keeps the descriptor while it builds)."""
    target = file.resolve()
    for process in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(Path(entry.path).readlink() == target for entry in os.scandir(process)):
                return True
        except OSError:
            continue  # it ended, or it is another user's
    return False


def load(name: str) -> None:
    """Compile and load ``name`` in this process, through DeepSpeed's own builder."""
    if name == CPU_ADAM:
        from deepspeed.ops.op_builder import CPUAdamBuilder

        CPUAdamBuilder().load(verbose=True)
    else:
        from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

        ShareMemCommBuilder().load(verbose=True)


def main(arguments: list[str]) -> int:
    """``python -m hydraft.training.deepspeed_ops``: build all that this machine can use; with a name: compile that one here."""
    from hydraft.system import hardware

    if arguments:
        load(arguments[0])
        return 0
    machine = hardware.detect()
    names = [CPU_ADAM] if machine.gpus else [CPU_ADAM, SHARED_MEMORY]
    try:
        for line in prepare(names, machine) or ["DeepSpeed's ops are there"]:
            print(line)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 0 if machine.gpus else 2  # on a GPU only offload needs one, and is refused when it is asked for
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

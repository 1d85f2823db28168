"""DeepSpeed's compiled ops: built once, by one process, before any rank starts. No torch at module level.

They live in the environment's own folder. torch guards a build with a file named ``lock`` and waits for it for ever; one
that a killed build left behind is recognised by nobody having it open, and removed.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from filelock import FileLock

from hydraft.choices import Offload
from hydraft.config import Config, ConfigError
from hydraft.hardware import Hardware

SHARED_MEMORY = "deepspeed_shm_comm"
CPU_ADAM = "cpu_adam"


def folder() -> Path:
    """Where this environment's ops are built."""
    return Path(sys.prefix) / "torch_extensions"


def environment(hardware: Hardware) -> dict[str, str]:
    """What every process that imports DeepSpeed needs: the ops' folder, the device, and ninja on the path."""
    path = os.environ.get("PATH", "")
    scripts = sysconfig.get_path("scripts")
    return {
        "TORCH_EXTENSIONS_DIR": str(folder()),
        "DS_ACCELERATOR": "cuda" if hardware.gpus else "cpu",
        "PATH": path if scripts in path.split(os.pathsep) else f"{scripts}{os.pathsep}{path}",
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
        ConfigError: an op cannot be compiled here.
    """
    folder().mkdir(parents=True, exist_ok=True)
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
    log = folder() / f"{name}.log"
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "hydraft.ops", name],
            env={**os.environ, **environment(hardware)},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode != 0:
        raise ConfigError(
            f"DeepSpeed's {name} does not compile here (see {log}): install a C++ compiler, "
            "or use zero=stage2 cluster=1x1, which needs no compiled op"
        )
    (folder() / name / ".built").touch()


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
    """``python -m hydraft.ops``: build all that this machine can use; with a name: compile that one here."""
    from hydraft import hardware

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
        return 0 if machine.gpus else 2  # on a GPU only offload needs one, and says so when it is asked for
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

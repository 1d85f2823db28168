"""One of DeepSpeed's ops: its builder, what it needs, and why it does not compile. No torch at module level."""

import functools
import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

from hydraft.system.parent_death import die_with_parent
from hydraft.training import op_locks

SHARED_MEMORY = "deepspeed_shm_comm"
CPU_ADAM = "cpu_adam"
PIN_MEMORY = "pin_memory"
ASYNC_IO = "async_io"
QUANTIZER = "quantizer"
NAMES = (SHARED_MEMORY, CPU_ADAM, PIN_MEMORY, ASYNC_IO, QUANTIZER)

_INSTEAD = {
    QUANTIZER: "; or use zero.quantized_weights=false zero.quantized_gradients=false",
    CPU_ADAM: "; or use zero.offload_optimizer=none, which does not need it",
    **dict.fromkeys(
        (PIN_MEMORY, ASYNC_IO), "; or use zero=stage3_offload, which keeps weights and optimizer in main memory"
    ),
}


def load(name: str) -> None:
    """Compile and load ``name`` in this process, with DeepSpeed's builder."""
    die_with_parent()
    op_locks.install(functools.partial(print, flush=True))
    from deepspeed.ops import op_builder
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    builders = {
        SHARED_MEMORY: ShareMemCommBuilder,
        CPU_ADAM: op_builder.CPUAdamBuilder,
        PIN_MEMORY: op_builder.PinMemoryBuilder,
        ASYNC_IO: op_builder.AsyncIOBuilder,
        QUANTIZER: op_builder.QuantizerBuilder,
    }
    builders[name]().load(verbose=True)


def instead(name: str) -> str:
    """A setting that does not need the op."""
    return _INSTEAD.get(name, "")


def lacking(name: str) -> str | None:
    """What ``name`` needs besides a compiler and is not installed; None if nothing is missing."""
    if name != ASYNC_IO or _links("#include <libaio.h>\nint main() { return io_destroy(0); }\n", "-laio"):
        return None
    return (
        f"DeepSpeed's {name} needs libaio with its header, which was not found: install it (Debian: apt-get install libaio-dev; "
        "RHEL: dnf install libaio-devel)"
    )


def _links(program: str, *flags: str) -> bool:
    """Whether the compiler of the ops makes an executable of a C++ program."""
    own = [word for name in ("CFLAGS", "LDFLAGS") for word in shlex.split(os.environ.get(name, ""))]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "program.cpp"
        source.write_text(program)
        command = [os.environ.get("CXX", "c++"), str(source), *own, *flags, "-o", str(Path(folder) / "program")]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def cause(log: Path) -> str:
    """The most informative line of a build's log: the compiler's first error, or else the last exception."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(?:error|undefined reference)\b:? ", line)]
    named = [
        line for line in lines if re.match(r"\w+(?:Error|Exception)\b", line) and "Error building extension" not in line
    ]
    return next(iter([*errors[:1], *named[-1:], *lines[-1:]]), "it printed nothing")

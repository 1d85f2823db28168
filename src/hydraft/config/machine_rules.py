"""Rules about this machine: GPUs, driver, compiler and headers. No torch."""

from shutil import which

from hydraft.config.choices import Kernels, Mode, Precision
from hydraft.config.kernel_packages import interpreted
from hydraft.config.rule import Rule, value
from hydraft.config.schema import Config
from hydraft.system.hardware import Hardware
from hydraft.system.toolchain import compilers, has_headers


def _no_compiler(hardware: Hardware) -> bool:
    return not any(map(which, compilers(for_gpu=bool(hardware.gpus))))


def _triton(config: Config, hardware: Hardware) -> bool:
    """Whether Triton compiles kernels on this machine."""
    return config.kernels.kind is not Kernels.torch and bool(hardware.gpus)


MACHINE = [
    Rule(
        lambda c, h: c.mode is not Mode.preview and bool(h.unusable),
        "{h.unusable}; without a card: CUDA_VISIBLE_DEVICES= {train} …",
        here=True,
    ),
    Rule(
        lambda c, h: bool(h.gpus) and not c.cluster.on_hosts and c.cluster.ranks_per_node > len(h.gpus),
        "cluster=1x{c.cluster.ranks_per_node} needs {c.cluster.ranks_per_node} GPUs and {h.count} were found: use cluster=1x{h.count}",
        here=True,
    ),
    Rule(
        lambda c, h: bool(h.gpus) and c.cluster.hosts_here > 1 and not c.debug.cpu,
        "cluster.hosts: names this machine {c.cluster.hosts_here} times, and each would use the same GPUs, which NCCL refuses: use debug.cpu=true, which uses none",
        source="NCCL, src/init.cc: Duplicate GPU detected",
        here=True,
    ),
    Rule(
        lambda c, h: c.train.precision is Precision.fp16 and not h.gpus,
        "train.precision=fp16 needs a GPU, and none was found: use train.precision=fp32 or bf16",
        source="DeepSpeed, accelerator/cpu_accelerator.py, is_fp16_supported",
        here=True,
    ),
    Rule(
        lambda c, h: c.train.precision is Precision.bf16 and any(0 < g.compute_capability < 8 for g in h.gpus),
        "train.precision=bf16 needs compute capability 8.0 and this GPU has {h.gpus[0].compute_capability}: use train.precision=fp16",
        source="CUDA C++ programming guide, arithmetic instructions by compute capability",
        here=True,
    ),
    Rule(
        lambda c, h: c.train.compile and _no_compiler(h),
        "train.compile=true needs a compiler, and none was found: use train.compile=false, or install one (Debian: apt-get install g++)",
        source="torch, _inductor/cpp_builder.py; on a GPU Triton compiles its launchers",
        here=True,
    ),
    value(
        lambda c: c.train.compile and not has_headers(),
        "train.compile=true compiles against Python.h, which was not found: use train.compile=false, or install it (Debian: apt-get install python3-dev)",
        source="torch, _inductor/codecache.py, CppPythonBindingsCodeCache; on a GPU triton, backends/nvidia/driver.c",
        here=True,
    ),
    Rule(
        lambda c, h: c.kernels.kind is not Kernels.torch and not h.gpus and not interpreted(c),
        "kernels={c.kernels.kind.value} needs a GPU, and none was found: use kernels=torch",
        here=True,
    ),
    Rule(
        lambda c, h: _triton(c, h) and _no_compiler(h),
        "kernels={c.kernels.kind.value} needs a C compiler, and none was found: use kernels=torch, or install one (Debian: apt-get install gcc)",
        source="triton, runtime/build.py",
        here=True,
    ),
    Rule(
        lambda c, h: _triton(c, h) and not has_headers(),
        "kernels={c.kernels.kind.value} compiles against Python.h, which was not found: use kernels=torch, or install it (Debian: apt-get install python3-dev)",
        source="triton, backends/nvidia/driver.c",
        here=True,
    ),
]

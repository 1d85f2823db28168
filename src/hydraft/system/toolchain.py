"""Finds the compilers and Python headers that torch.compile, Triton and DeepSpeed's ops need. No torch."""

import os
import sysconfig
from pathlib import Path


def compilers(for_gpu: bool) -> list[str]:
    """Compilers that torch.compile and Triton call: for a CPU a C++ compiler, for a GPU a C compiler."""
    return [os.environ.get("CC", "gcc"), "clang"] if for_gpu else [os.environ.get("CXX", "g++")]


def has_headers() -> bool:
    """Whether Python.h is installed, which extension modules are compiled against."""
    folders = {sysconfig.get_path("include"), sysconfig.get_path("include", "posix_prefix")}
    return any((Path(folder) / "Python.h").is_file() for folder in folders)

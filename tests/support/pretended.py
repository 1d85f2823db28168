"""Simulated drivers for tests: a library that replaces NVML, compiled here, and a program that replaces nvidia-smi."""

import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "nvml.c"
GIB = 2**30


@dataclass
class Device:
    """What the driver reports about a GPU, or about a MIG slice of one."""

    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = "GPU-11111111-aaaa"
    total: int = 80 * GIB
    free: int = 79 * GIB
    reserved: int = GIB // 2
    capability: tuple[int, int] = (9, 0)
    mig: int = 0
    """1: on, 0: off, -1: not supported."""
    slices: list["Device"] = field(default_factory=list)
    handle_code: int = 0
    memory_code: int = 0

    def c(self, parts: str = "0") -> str:
        """A C initializer of ``struct device``."""
        numbers = f"{self.handle_code}, {self.memory_code}, {self.total}ULL, {self.reserved}ULL, {self.free}ULL"
        return f'{{"{self.name}", "{self.uuid}", {numbers}, {self.capability[0]}, {self.capability[1]}, {self.mig}, {len(self.slices)}, {parts}}}'


RTX = Device("NVIDIA GeForce RTX 4090, D", "GPU-22222222-bbbb", 24 * GIB, 20 * GIB, GIB // 2, (8, 9), -1)
"""A GPU with a comma in its name."""


def library(
    folder: Path,
    *cards: Device,
    driver: str = "580.65.06",
    cuda: int = 13000,
    init: int = 0,
    before_510: bool = False,
) -> Path:
    """Compile a libnvidia-ml.so.1 into ``folder``."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f'#define DRIVER "{driver}"',
        f"#define CUDA {cuda}",
        f"#define INIT {init}",
        f"#define COUNT {len(cards)}",
    ]
    if before_510:
        lines.append("#define BEFORE_510")
    for number, card in enumerate(cards):
        parts = ", ".join(part.c() for part in card.slices) or Device().c()
        lines.append(f"static struct device slices_{number}[] = {{{parts}}};")
    whole = ", ".join(card.c(f"slices_{number}") for number, card in enumerate(cards)) or Device().c()
    lines.append(f"static struct device cards[] = {{{whole}}};")
    (folder / "cards.h").write_text("\n".join(lines) + "\n")
    target = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-I", folder, "-o", target, SOURCE], check=True)
    return target


def program(folder: Path, script: str) -> Path:
    """Write an nvidia-smi with the sh code ``script`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "nvidia-smi"
    target.write_text(f"#!/bin/sh\n{script}\n")
    target.chmod(0o755)
    return target

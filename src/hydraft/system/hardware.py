"""Detects the hardware of this machine without importing torch: GPUs, cores and main memory; and whether torch can use the GPUs."""

import json
import os
import platform
import re
import sys
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, Self

from hydraft.errors import EXIT_REFUSED, ConfigError
from hydraft.system import torch_build
from hydraft.system.driver import visible
from hydraft.system.driver.card import Gpu
from hydraft.system.driver.query import query

__all__ = ["Gpu", "Hardware", "detect", "environment", "parse_memory"]

UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
"""Units of a memory size. GPUs are sold and listed in GiB, even where GB is written."""

ORDER = "CUDA_DEVICE_ORDER"
"""By default CUDA numbers the fastest GPU first; nvidia-smi, and hydraft like it, numbers by PCI bus."""

ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""The environment variable for torch's allocator, under its two names."""


@dataclass(frozen=True)
class Hardware:
    """The hardware of a machine."""

    gpus: tuple[Gpu, ...] = ()
    cpus: int = 1
    """Cores that this process may use."""
    memory: int = 0
    """Bytes of main memory."""
    machine: str = ""
    driver: str = ""
    """Version of the NVIDIA driver; empty without one, and in files that older versions wrote."""
    driver_cuda: str = ""
    """The newest CUDA version that the driver supports."""
    torch: str = ""
    """Version of the installed torch, on a machine with GPUs."""
    torch_cuda: str | None = None
    """The CUDA version that torch was built for; empty if built without CUDA, None if not known."""
    trouble: str = ""
    """Why there are no ``gpus``: a problem of the driver, or of CUDA_VISIBLE_DEVICES."""

    @property
    def count(self) -> int:
        """Number of usable GPUs."""
        return len(self.gpus)

    @property
    def names(self) -> list[str]:
        """The name of each GPU in CUDA_VISIBLE_DEVICES."""
        return [
            gpu.uuid if gpu.is_slice else str(position if gpu.index is None else gpu.index)
            for position, gpu in enumerate(self.gpus)
        ]

    @property
    def unusable(self) -> str:
        """Why torch cannot use the GPUs of this machine, and what to do about it; empty if it can, or if there are none."""
        if self.trouble:
            return self.trouble
        return torch_build.incompatibility(self.gpus, self.driver, self.driver_cuda, self.torch, self.torch_cuda)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for environment.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``, of this or another version."""
        return cls(**{**_known(cls, values), "gpus": tuple(Gpu(**_known(Gpu, gpu)) for gpu in values["gpus"])})


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def parse_memory(text: str, setting: str) -> int:
    """Convert a size such as ``24GiB`` to bytes.

    Raises:
        ConfigError: it is not a number with a unit, or it is zero; the message names ``setting``.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", text.strip())
    size = round(float(match[1]) * UNITS[match[2]]) if match and match[2] in UNITS else 0
    if size == 0:
        raise ConfigError(f"{setting}={text}: must be a number with one of the units {', '.join(UNITS)}, such as 24GiB")
    return size


@cache
def detect() -> Hardware:
    """Detect the hardware of this machine, once per process."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpus = len(os.sched_getaffinity(0))
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # no GPU is to be used: the driver is not queried
        return Hardware((), cpus, memory, platform.machine())
    found = query()
    gpus, trouble = visible.chosen(found.cards, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if os.environ.get(ORDER) == "FASTEST_FIRST" and len({card.gpu.name for card in found.cards}) > 1:
        gpus, trouble = (
            (),
            f"{ORDER}=FASTEST_FIRST: only CUDA knows that order, and the GPUs differ: use {ORDER}=PCI_BUS_ID",
        )
    torch, torch_cuda = torch_build.installed() if gpus else ("", None)
    return Hardware(
        gpus, cpus, memory, platform.machine(), found.driver, found.cuda, torch, torch_cuda, found.failure or trouble
    )  # fmt: skip


def hide_gpus() -> None:
    """From now on, this process and those that it starts find no GPU. Call it before torch is imported."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    detect.cache_clear()


def environment(machine: Hardware) -> dict[str, str]:
    """Environment variables with which CUDA shows a process the GPUs of ``machine`` and no others.

    GPUs are given by their number in nvidia-smi's list, which DeepSpeed reads; MIG slices only have a name.
    """
    if not machine.gpus:
        return {"CUDA_VISIBLE_DEVICES": ""}  # torch may see a GPU that the driver did not list
    found = {ORDER: "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(machine.names)}
    if not any(name in os.environ for name in ALLOCATOR) and not any(gpu.unified for gpu in machine.gpus):
        # The length of sequences differs from step to step: blocks that can grow avoid fragmentation.
        found[ALLOCATOR[0]] = "expandable_segments:True"
    return found


def main(arguments: list[str]) -> int:
    """Print the hardware of this machine as JSON; takes no arguments."""
    if arguments:
        print("hydraft hardware: takes no arguments", file=sys.stderr)
        return EXIT_REFUSED
    print(json.dumps(detect().to_dict()))
    return 0


if __name__ == "__main__":  # run over ssh or srun
    sys.exit(main(sys.argv[1:]))

"""What this machine has, asked without torch: GPUs of the driver, memory of the system, and torch's build of its files."""

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
from hydraft.system.driver.query import ask

__all__ = ["Gpu", "Hardware", "detect", "environment", "parse_memory"]

UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
"""What a size of memory may be given in; cards are sold and listed in GiB, whatever the box says."""

ORDER = "CUDA_DEVICE_ORDER"
"""By default CUDA counts the fastest card first; nvidia-smi, and with it all here, counts by the PCI bus."""

ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Torch's settings of its allocator, under both names."""


@dataclass(frozen=True)
class Hardware:
    """The machine a command was started on."""

    gpus: tuple[Gpu, ...] = ()
    cpus: int = 1
    """Cores this process may use."""
    memory: int = 0
    """Bytes of main memory."""
    machine: str = ""
    driver: str = ""
    """Version of the NVIDIA driver; empty without one, and in what older versions wrote."""
    driver_cuda: str = ""
    """The newest CUDA version that the driver runs."""
    torch: str = ""
    """Version of the installed torch, on a machine with GPUs."""
    torch_cuda: str | None = None
    """The CUDA version that this was built for; empty for none, None where it is not known."""
    trouble: str = ""
    """What is wrong with the cards or with the choice of them, for which there are no ``gpus``."""

    @property
    def count(self) -> int:
        """GPUs that may be used."""
        return len(self.gpus)

    @property
    def names(self) -> list[str]:
        """What CUDA_VISIBLE_DEVICES calls each GPU."""
        return [
            gpu.uuid if gpu.is_slice else str(place if gpu.index is None else gpu.index)
            for place, gpu in enumerate(self.gpus)
        ]

    @property
    def unusable(self) -> str:
        """Why torch cannot use the cards that are here, and what to do about it; empty where it can, and without cards."""
        if self.trouble:
            return self.trouble
        return torch_build.unfit(self.gpus, self.driver, self.driver_cuda, self.torch, self.torch_cuda)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for environment.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """What ``to_dict`` gave, in this or another version."""
        return cls(**{**_known(cls, values), "gpus": tuple(Gpu(**_known(Gpu, gpu)) for gpu in values["gpus"])})


def _known(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def parse_memory(text: str, setting: str) -> int:
    """Bytes of a size such as ``24GiB``.

    Raises:
        ConfigError: names ``setting``; it is no number with a unit, or nothing at all.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", text.strip())
    size = round(float(match[1]) * UNITS[match[2]]) if match and match[2] in UNITS else 0
    if size == 0:
        raise ConfigError(f"{setting}={text}: must be a number with one of the units {', '.join(UNITS)}, such as 24GiB")
    return size


@cache
def detect() -> Hardware:
    """Look at this machine, once a process."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpus = len(os.sched_getaffinity(0))
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # no card is to be used: none is asked for
        return Hardware((), cpus, memory, platform.machine())
    found = ask()
    gpus, trouble = visible.chosen(found.cards, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if os.environ.get(ORDER) == "FASTEST_FIRST" and len({card.gpu.name for card in found.cards}) > 1:
        gpus, trouble = (
            (),
            f"{ORDER}=FASTEST_FIRST: only CUDA knows that order, and the cards differ: use {ORDER}=PCI_BUS_ID",
        )
    torch, torch_cuda = torch_build.installed() if gpus else ("", None)
    return Hardware(
        gpus, cpus, memory, platform.machine(), found.driver, found.cuda, torch, torch_cuda, found.failure or trouble
    )  # fmt: skip


def environment(machine: Hardware) -> dict[str, str]:
    """What a process needs for CUDA to give it the cards of ``machine``, this one, and no others.

    Cards go by their number in nvidia-smi's list, which DeepSpeed reads; CUDA has MIG slices by their name alone.
    """
    if not machine.gpus:
        return {"CUDA_VISIBLE_DEVICES": ""}  # torch may see a card where the driver does not show one
    found = {ORDER: "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(machine.names)}
    if not any(name in os.environ for name in ALLOCATOR) and not any(gpu.unified for gpu in machine.gpus):
        # Rows of tokens differ in length from step to step: blocks that can grow leave no holes.
        found[ALLOCATOR[0]] = "expandable_segments:True"
    return found


def main(arguments: list[str]) -> int:
    """Print what ``detect`` finds as JSON; it takes no arguments."""
    if arguments:
        print("hydraft hardware: takes no arguments", file=sys.stderr)
        return EXIT_REFUSED
    print(json.dumps(detect().to_dict()))
    return 0


if __name__ == "__main__":  # from another machine
    sys.exit(main(sys.argv[1:]))

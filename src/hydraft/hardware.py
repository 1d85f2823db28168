"""What this machine has, asked without torch: GPUs through the driver's own tool, memory from the system."""

import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Self

from hydraft.config import ConfigError

UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
"""What a size of memory may be given in; cards are sold and listed in GiB, whatever the box says."""


@dataclass(frozen=True)
class Gpu:
    """A card as the driver names it."""

    name: str
    memory: int
    """Bytes."""
    compute_capability: float


@dataclass(frozen=True)
class Hardware:
    """The machine a command was started on."""

    gpus: tuple[Gpu, ...] = ()
    cpus: int = 1
    """Cores this process may use."""
    memory: int = 0
    """Bytes of main memory."""
    machine: str = ""

    @property
    def count(self) -> int:
        """GPUs that may be used."""
        return len(self.gpus)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for environment.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """What ``to_dict`` gave."""
        return cls(**{**values, "gpus": tuple(Gpu(**gpu) for gpu in values["gpus"])})


def _visible_gpus() -> tuple[Gpu, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shutil.which("nvidia-smi") is None or visible == "":
        return ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return ()
    gpus = []
    for line in done.stdout.strip().splitlines():
        name, mebibytes, capability = (part.strip() for part in line.rsplit(",", 2))
        gpus.append(Gpu(name, int(mebibytes) * 2**20, float(capability)))
    if visible is None:
        return tuple(gpus)
    chosen = [part.strip() for part in visible.split(",")]
    if all(part.isdigit() for part in chosen):
        return tuple(gpus[int(part)] for part in chosen if int(part) < len(gpus))
    return tuple(gpus[: len(chosen)])  # GPU-… names: how many is what matters here


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
    return Hardware(_visible_gpus(), len(os.sched_getaffinity(0)), memory, platform.machine())


if __name__ == "__main__":  # asked from another machine
    print(json.dumps(detect().to_dict()))

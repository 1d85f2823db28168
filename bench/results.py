"""Result files of the benches with device and versions: ``bench/results/<name>-<card or cpu>.json``."""

import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydraft.system import hardware

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "deepspeed", "bitsandbytes")


def card() -> str:
    """The name of the first visible GPU (``CUDA_VISIBLE_DEVICES``), or ``cpu``. Does not import torch."""
    gpus = hardware.detect().gpus
    return gpus[0].name if gpus else "cpu"


def device() -> str:
    """The default device of a bench: ``cuda`` if there is a usable GPU, else ``cpu``."""
    return "cuda" if hardware.detect().gpus else "cpu"


def slug(name: str) -> str:
    """``name`` as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def driver() -> str | None:
    """The version of the GPU driver; None if nvidia-smi does not report it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    except OSError:
        return None
    return found[0] if found else None


def described(measured: str | None = None) -> dict[str, Any]:
    """What the figures were measured on: device (``cuda`` or ``cpu``), its name, driver, versions, date."""
    measured = measured or device()
    return {
        "device": measured,
        "card": card() if measured == "cuda" else "cpu",
        "driver": driver() if measured == "cuda" else None,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write(name: str, figures: Any, measured: str | None = None) -> Path:
    """Write the figures and return the file.

    Args:
        measured: ``cuda`` or ``cpu``, the device that was measured; None for ``device()``. Figures of the CPU are saved
            as those of a CPU even on a machine with a GPU.
    """
    FOLDER.mkdir(exist_ok=True)
    about = described(measured)
    target = FOLDER / f"{name}-{slug(about['card'])}.json"
    target.write_text(json.dumps({**about, "figures": figures}, indent=2) + "\n", encoding="utf-8")
    return target

"""Results of a bench, saved with the device and the versions: ``bench/results/<name>-<card or cpu>.json``."""

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
    """The name of the first GPU that may be used (``CUDA_VISIBLE_DEVICES``), or ``cpu``; without torch."""
    gpus = hardware.detect().gpus
    return gpus[0].name if gpus else "cpu"


def device() -> str:
    """The default device of a bench: ``cuda`` if there is a usable GPU, else ``cpu``."""
    return "cuda" if hardware.detect().gpus else "cpu"


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def driver() -> str | None:
    """The version of the GPU's driver; None where nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    except OSError:
        return None
    return found[0] if found else None


def described(measured: str | None = None) -> dict[str, Any]:
    """What figures are of: the device that was measured (``cuda`` or ``cpu``), its name, driver, versions, date."""
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
    """Write them, and return where.

    Args:
        measured: ``cuda`` or ``cpu``, the device that the figures are of; None for ``device()``. What was measured on the CPU of
            a machine with a GPU is the CPU's.
    """
    FOLDER.mkdir(exist_ok=True)
    about = described(measured)
    target = FOLDER / f"{name}-{slug(about['card'])}.json"
    target.write_text(json.dumps({**about, "figures": figures}, indent=2) + "\n", encoding="utf-8")
    return target

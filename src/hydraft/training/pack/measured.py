"""What is measured once on a machine and kept in the cache."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock

from hydraft.system import files

T = TypeVar("T")


def once(subject: dict[str, Any], read: Callable[[Any], T | None], measure: Callable[[], T]) -> T:
    """What ``measure`` has found for ``subject``, now or earlier.

    Args:
        subject: all that the finding depends on.
        read: makes a finding of what its JSON has; None or a ValueError for what is none.
        measure: its findings can be written as JSON. An error of it is raised, and nothing is kept.
    """
    known = json.dumps(subject, sort_keys=True, default=str)
    folder = files.cache_folder("passes")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{hashlib.sha256(known.encode()).hexdigest()[:16]}.json"
    with FileLock(file.with_suffix(".lock")):
        found = _read(file, read)
        if found is None:
            found = measure()
            files.write_json(file, {"found": found, "subject": json.loads(known)})
    return found


def _read(file: Path, read: Callable[[Any], T | None]) -> T | None:
    try:
        return read(json.loads(file.read_text(encoding="utf-8"))["found"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def device_name(device: torch.device) -> str:
    """Of a GPU or, with the number of threads, of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_cpu()} x {torch.get_num_threads()}"


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")

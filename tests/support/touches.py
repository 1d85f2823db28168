"""Finds the modules that touch CUDA's driver on import; each is imported in its own process, with a simulated GPU.

    python tests/support/touches.py [module …]

By default it checks the modules that ``hydraft.launch.local.preload`` imports; the result belongs in CLEAN and TOUCHING
of ``hydraft.launch.local.fork_server``.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from hydraft.launch.local.fork_server import CLEAN, TOUCHING

ROOT = Path(__file__).parents[2]
PRETENCE = ROOT / "tests" / "support" / "pretend_cuda"


def environment(log: Path) -> dict[str, str]:
    """Environment of a process with a simulated GPU; calls that would touch its driver are written to ``log``."""
    return {
        "PYTHONPATH": os.pathsep.join([str(PRETENCE), str(ROOT / "src")]),
        "PATH": os.pathsep.join([str(PRETENCE), os.environ["PATH"]]),
        "PRETEND_CUDA_LOG": str(log),
        "CUDA_VISIBLE_DEVICES": "0",
        "HYDRAFT_DRIVER_CHECK": "0",  # the installed torch is a CPU build
    }


def calls(log: Path) -> list[dict[str, object]]:
    """The calls in ``log``."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def touching(*modules: str, **more: str) -> list[dict[str, object]]:
    """The calls to the driver of a process that imports ``modules`` as a fork server does."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        server = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "DS_ACCELERATOR": "cuda", **more}
        command = [sys.executable, "-c", "".join(f"import {module}\n" for module in modules)]
        done = subprocess.run(
            command, env={**os.environ, **environment(log), **server}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return calls(log)


def main(modules: list[str]) -> None:
    """Print a line per module."""
    for module in modules or (*CLEAN, *TOUCHING):
        found = touching(module)
        by = (
            next((frame for frame in found[0]["stack"] if "/torch/" not in frame and "pretend_cuda" not in frame), "")
            if found
            else ""
        )  # type: ignore[attr-defined]
        print(f"{module:50} {f'touches the driver: {by}' if found else 'does not touch the driver'}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Runs of train.py under another launcher, or with the variables that one sets."""

import os
import socket
import sys
from pathlib import Path

from hydraft.system.source_tree import ROOT

BIN = Path(sys.executable).parent
TRAIN = str(ROOT / "train.py")


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """A shell with the virtual environment on its path, on a machine without cards."""
    return {
        **os.environ,
        "PATH": f"{BIN}:/usr/sbin:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_WAIT_POLICY": "PASSIVE",
        **more,
    }


def the_run(folder: Path) -> Path:
    """The only run below ``folder``."""
    (config,) = folder.glob("outputs/*/*/config.yaml")
    assert len(list(config.parent.parent.iterdir())) == 1
    return config.parent

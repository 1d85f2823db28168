"""Figures of a bench, kept with what they were measured on: ``bench/results/<name>-<card>.json``."""

import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "deepspeed", "bitsandbytes")


def card() -> str:
    """The first GPU's name, or ``cpu``; without torch."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    except OSError:
        names = []
    return names[0].strip() if names else "cpu"


def write(name: str, figures: Any) -> Path:
    """Write them, and return where."""
    FOLDER.mkdir(exist_ok=True)
    where = card()
    target = FOLDER / f"{name}-{re.sub(r'[^a-z0-9]+', '-', where.lower()).strip('-')}.json"
    measured = {
        "card": where,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "figures": figures,
    }
    target.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    return target

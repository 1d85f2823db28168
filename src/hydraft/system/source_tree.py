"""Paths of this working copy, and PYTHONPATH for processes that import it. No torch."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of the package's source."""

ROOT = PACKAGE.parents[1]
"""The project's folder, which contains conf/ and data/."""

TINY = PACKAGE / "models" / "tiny"
"""The embedded model."""


def own_code_first() -> str:
    """PYTHONPATH with which a process imports this working copy, whatever else is installed."""
    paths = [str(PACKAGE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(filter(None, dict.fromkeys(paths)))

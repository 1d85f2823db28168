"""Where this working copy lies, and how processes below this one import it. No torch."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of this package's source."""

ROOT = PACKAGE.parents[1]
"""The project's folder: conf/ and data/ are in it."""

TINY = PACKAGE / "models" / "tiny"
"""The embedded model."""


def own_code_first() -> str:
    """PYTHONPATH for a process that is to import this working copy, whatever else is installed."""
    paths = [str(PACKAGE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(filter(None, dict.fromkeys(paths)))

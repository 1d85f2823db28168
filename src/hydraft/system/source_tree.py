"""Paths of this working copy or installed package, and PYTHONPATH for processes that import it. No torch."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of the package's source."""

SHIPPED = PACKAGE / "shipped"
"""In an installed package, what a working copy has beside src/ (setup.py puts it there); a working copy has no such folder."""

INSTALLED = SHIPPED.is_dir()
"""Whether this is an installed package, and no working copy."""

ROOT = SHIPPED if INSTALLED else PACKAGE.parents[1]
"""The folder that contains train.py, infer.py, conf/ and data/: the project's, in a working copy."""

TINY = PACKAGE / "models" / "tiny"
"""The embedded model."""


def own_code_first() -> str:
    """PYTHONPATH with which a process imports this working copy, whatever else is installed; unchanged for an installed package."""
    own = [] if INSTALLED else [str(PACKAGE.parent)]  # site-packages must not come before the standard library
    paths = [*own, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(filter(None, dict.fromkeys(paths)))


def portable(text: str) -> str:
    """``text`` with the paths of what is shipped as they are for every user, wherever it is installed."""
    return text.replace(str(ROOT), "ROOT").replace(str(PACKAGE), "ROOT/src/hydraft")

"""A folder of wheels put on the path, for a machine without a virtual environment or a network. Standard library alone."""

import subprocess
import sys
from pathlib import Path

UNSLOTH = "unsloth"
"""Wheels in a folder of this name go to a place of their own: peft imports torchao wherever there is one, and unsloth brings it."""


def install(wheels: Path, target: Path) -> None:
    """Unpack every wheel of ``wheels`` into ``target``, once.

    Raises:
        SystemExit: there are none, or pip refuses one.
    """
    found = sorted(wheels.glob("*.whl"))
    done = target / ".done"
    if done.exists():
        return
    if not found:
        sys.exit(f"WHEELS={wheels}: no *.whl in it")
    flags = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(target)]
    code = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", *flags, *map(str, found)], check=False
    ).returncode
    if code:
        sys.exit(f"WHEELS={wheels}: pip ended with code {code}")
    done.touch()


def paths(wheels: Path | None, site: Path, unsloth: bool) -> tuple[list[str], list[str]]:
    """What goes on the path of every step, and what goes there for unsloth's steps alone; wheels are installed below ``site``."""
    if wheels is None:
        return [], []
    install(wheels, site / "all")
    apart = wheels / UNSLOTH
    if not (unsloth and apart.is_dir()):
        return [str(site / "all")], []
    install(apart, site / UNSLOTH)
    return [str(site / "all")], [str(site / UNSLOTH)]

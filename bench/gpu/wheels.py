"""Installs a folder of wheels on a machine without a virtual environment or a network. Standard library only."""

import subprocess
import sys
from pathlib import Path

UNSLOTH = "unsloth"
"""Wheels in a subfolder of this name are installed separately: they include torchao, which peft imports if it can."""


def install(wheels: Path, target: Path) -> None:
    """Install every wheel of ``wheels`` into ``target``, once.

    Raises:
        SystemExit: there are no wheels, or pip fails.
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
    """Install the wheels below ``site``; return the paths for every step, and those only for unsloth's steps."""
    if wheels is None:
        return [], []
    install(wheels, site / "all")
    separate = wheels / UNSLOTH
    if not (unsloth and separate.is_dir()):
        return [str(site / "all")], []
    install(separate, site / UNSLOTH)
    return [str(site / "all")], [str(site / UNSLOTH)]

"""What a compiled op was built from: it is built again when one of these changes. No torch.

ninja compares the command lines and the times of the sources, but not the headers of torch and Python, which are system headers to it,
nor the version of the compiler; and where it has to build again, a rank does so, while the others wait.
"""

import hashlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path
from shutil import which
from typing import Any

from hydraft.system import files

NAME = ".built"


def inputs(op: Path) -> dict[str, str]:
    """What the op in the folder ``op`` is built from on this machine, for comparison."""
    python = sysconfig.get_path("include", "posix_prefix")
    return {
        "folder": str(op.resolve()),
        "torch": f"{files.version_of('torch')} in {_package('torch')}",
        "deepspeed": f"{files.version_of('deepspeed')} in {_package('deepspeed')}",
        "python": f"{sys.version} in {python}",
        "compiler": _program(os.environ.get("CXX", "c++")),
        "flags": json.dumps({name: os.environ.get(name, "") for name in ("CFLAGS", "LDFLAGS")}),
        "cpu": cpu(),
    }


def cpu() -> str:
    """What ``-march=native`` stands for here."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0]
    except OSError:
        return platform.machine()
    told = sorted(
        line for line in text.splitlines() if line.startswith(("model name", "flags", "Features", "CPU part"))
    )
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def read(op: Path) -> dict[str, Any] | None:
    """What the op in the folder ``op`` was built from; None if it was not built completely, empty if that is not known."""
    try:
        return dict(json.loads((op / NAME).read_text() or "{}"))
    except (OSError, ValueError, TypeError):
        return None


def is_current(op: Path) -> bool:
    """Whether the op in the folder ``op`` is complete, and nothing has to be built again."""
    known = read(op)
    if known is None or not (op / f"{op.name}.so").is_file():
        return False
    if not known:  # of an earlier version, which wrote an empty file
        if not (_is_of_these_packages(op) and _has_no_work(op)):
            return False
        write(op)
        return True
    return known == {**inputs(op), "build": _sum(op / "build.ninja")} and _has_no_work(op)


def write(op: Path) -> None:
    """Note that the op in the folder ``op`` is complete."""
    try:
        files.write_json(op / NAME, {**inputs(op), "build": _sum(op / "build.ninja")})
    except OSError:
        if not (op / NAME).exists():  # a folder that can only be read keeps the empty one
            raise


def search_path() -> str:
    """PATH with this environment's programs, ninja among them."""
    path, scripts = os.environ.get("PATH", ""), sysconfig.get_path("scripts")
    return path if scripts in path.split(os.pathsep) else f"{scripts}{os.pathsep}{path}"


def _is_of_these_packages(op: Path) -> bool:
    """Whether the op was built from the packages that this process would import, as far as its files tell."""
    try:
        text, built = (op / "build.ninja").read_text(errors="replace"), (op / f"{op.name}.so").stat().st_mtime
        packages = [_package(name) for name in ("torch", "deepspeed")]
        versions = [packages[0] / "version.py", packages[1] / "git_version_info_installed.py"]
        return all(f"{package}/" in text for package in packages) and all(
            file.stat().st_mtime <= built for file in versions if file.exists()
        )
    except OSError:
        return False


def _has_no_work(op: Path) -> bool:
    """Whether ninja has nothing to build, by the times of sources and objects; nothing is built here."""
    ninja = which("ninja", path=search_path())  # the one that builds: another version reads no log of it
    if ninja is None:
        return True
    done = subprocess.run([ninja, "-n", "-C", str(op)], capture_output=True, text=True, check=False)
    return done.returncode == 0 and "no work to do" in done.stdout


def _package(name: str) -> Path:
    """The folder of a package, which is not imported."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin or ".").resolve().parent if spec is not None else Path()


def _program(name: str) -> str:
    """A compiler: where it is, and which build of it."""
    found = which(name)
    if found is None:
        return name
    about = Path(found).resolve().stat()
    return f"{Path(found).resolve()} {about.st_size} {about.st_mtime_ns}"


def _sum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""

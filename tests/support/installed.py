"""hydraft installed from a wheel in a virtual environment of its own, which sees the packages of the project's."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from conftest import ROOT, SCALE

SOURCES = (
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "train.py",
    "infer.py",
    "conf",
    "data",
    "docs/zh/settings.yaml",
    "src",
)
"""What a wheel is built from."""

IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")

LEFTOVERS = (
    "conf/local/default.yaml",
    "conf/local/infer.yaml",
    "data/tiny_corpus.jsonl",
    "dist/hydraft-0.0.1-py3-none-any.whl",
    "outputs/2026-01-01/10-00-00/config.yaml",
    "src/hydraft/__pycache__/errors.cpython-311.pyc",
    "src/hydraft/models/tiny/.DS_Store",
    "src/hydraft/models/notes.txt",
    "build/lib/hydraft/gone.py",
    "tests/test_all.py",
)
"""What a working copy may also have, and a wheel must not."""


@dataclass(frozen=True)
class Installed:
    """An installed hydraft, and a folder to work in."""

    wheel: Path
    environment: Path
    """The virtual environment."""
    folder: Path
    """Empty at first; its path has a space."""

    @property
    def command(self) -> Path:
        """The console script."""
        return self.environment / "bin" / "hydraft"

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        return next(self.environment.glob("lib/python*/site-packages"))

    def variables(self, **more: str) -> dict[str, str]:
        """The environment of a shell in which the virtual environment is active."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HYDRAFT_COMMAND")}
        return {**kept, "PATH": f"{self.environment / 'bin'}:{kept['PATH']}", **more}

    def run(self, *arguments: str, folder: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """``hydraft arguments`` as a person types it, in ``folder``."""
        return subprocess.run(
            [str(self.command), *arguments], cwd=folder or self.folder, env=self.variables(**more),
            capture_output=True, text=True, timeout=300 * SCALE, check=False,
        )  # fmt: skip


def build(folder: Path) -> Path:
    """A wheel of this working copy, built from a copy of it without the network."""
    source = folder / "source"
    for name in SOURCES:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=IGNORED)
        else:
            shutil.copyfile(ROOT / name, target)
    for name in LEFTOVERS:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("{}\n")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    _run([*pip, "-w", str(folder), str(source)])
    shutil.rmtree(source)
    (wheel,) = folder.glob("hydraft-*.whl")
    return wheel


def install(folder: Path) -> Installed:
    """Build a wheel and install it in a new virtual environment below ``folder``."""
    wheel, environment = build(folder), folder / "environment"
    venv.create(environment, symlinks=True, with_pip=False)
    work = folder / "a folder"
    work.mkdir()
    made = Installed(wheel, environment, work)
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "install", "-q"]
    _run([*pip, "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)])
    # Packages of the project's environment, but not the working copy, which a .pth file in there names.
    (made.packages / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    ops = Path(sys.prefix) / "torch_extensions"  # the same packages: the ops need not be built again
    ops.mkdir(exist_ok=True)
    (environment / ops.name).symlink_to(ops)
    return made


@contextmanager
def warm(made: Installed, folder: Path) -> Iterator[Path]:
    """A folder with ``hydraft`` and ``python`` that do what those of the environment do, with the libraries in memory."""
    from warm_python import WarmPython

    folder.mkdir()
    with WarmPython(folder, {"PYTHONPATH": ""}, str(made.environment / "bin" / "python")) as python:
        script = folder / "hydraft"
        script.write_text(f"#!{python.path}\nfrom hydraft.__main__ import command\ncommand()\n")
        script.chmod(0o755)
        yield folder


def _run(command: list[str]) -> None:
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # else pip finds the working copy
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    assert done.returncode == 0, done.stdout + done.stderr

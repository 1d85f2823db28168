"""How this user starts this program: in commands that are printed and in those that are recorded. No torch.

``python train.py`` in a working copy, ``hydraft train`` of an installed package or if it was started so.
"""

import os
import re
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from hydraft.system.source_tree import INSTALLED

VARIABLE = "HYDRAFT_COMMAND"
"""Environment variable, set by the command ``hydraft`` for itself and all that it starts: how it was typed."""

AS_MODULE = "python -m hydraft"
TYPED = ("hydraft", AS_MODULE)

PIP = "pip install 'hydraft" if INSTALLED else "pip install -e '."
"""The command that installs an extra, up to its name in brackets."""

SCRIPT = re.compile(r"python (train|infer)\.py\b(?P<rest>.*?)(?P<space> {3,}|$)", re.MULTILINE)
"""A command in a text with columns."""

SOURCE = "wheel" if INSTALLED else "working copy"
"""What this program comes from."""


def begin(as_module: bool, environ: MutableMapping[str, str] = os.environ) -> None:
    """Record that this process was started with the command ``hydraft``, or as ``python -m hydraft``."""
    environ[VARIABLE] = AS_MODULE if as_module else "hydraft"


def _command() -> str | None:
    """``hydraft`` as typed; None for ``python train.py``."""
    typed = os.environ.get(VARIABLE)
    return typed if typed in TYPED else "hydraft" if INSTALLED else None


def typed(script: str) -> str:
    """The command that starts ``train`` or ``infer``."""
    command = _command()
    return f"python {script}.py" if command is None else f"{command} {script}"


def command(name: str) -> str:
    """The command that starts one of the commands beside ``train`` and ``infer``."""
    return f"{_command() or AS_MODULE} {name}"


def named(script: str) -> str:
    """The name of ``train`` or ``infer`` before its messages: ``train.py`` or ``hydraft train``."""
    return f"{script}.py" if _command() is None else f"hydraft {script}"


def without_name(line: str, script: str) -> str:
    """A message of ``train`` or ``infer`` without the name before it."""
    return line.removeprefix(f"{named(script)}: ")


def name() -> str:
    """The name of this process before its messages."""
    file = Path(sys.argv[0]).name
    return named(file.removesuffix(".py")) if file in ("train.py", "infer.py") else file


def under(module_flag: str = "-m") -> str:
    """What another launcher starts in place of a command; ``module_flag``: its option for a module."""
    return "train.py" if _command() is None else f"{module_flag} hydraft train"


def words() -> list[str]:
    """The command line of this process, for a record: ``train.py …`` or ``hydraft train …``."""
    command = _command()
    script = Path(sys.argv[0]).name.removesuffix(".py")
    if command is None or script not in ("train", "infer"):
        return list(sys.argv)
    return [*command.split(), script, *sys.argv[1:]]


def as_line(recorded: Sequence[str]) -> list[str]:
    """The words of a recorded command as they are typed in a shell: Python before a script."""
    return list(recorded) if recorded[:1] == ["hydraft"] or recorded[:1] == ["python"] else ["python", *recorded]


def arguments(recorded: Sequence[str]) -> list[str]:
    """The arguments in a recorded command."""
    before = next((number for number, word in enumerate(recorded) if word in ("train", "infer")), 0)
    begun = recorded[:1] in (["hydraft"], ["python"]) and list(recorded[:before]) in [one.split() for one in TYPED]
    return list(recorded[before + 1 if begun else 1 :])


def as_typed(text: str) -> str:
    """A text with commands as this user types them; what follows a command after three spaces stays in its column."""

    def replaced(found: re.Match[str]) -> str:
        command = f"{typed(found[1])}{found['rest']}"
        width = len(found[0].rstrip(" ")) + len(found["space"])
        return command if not found["space"] else f"{command.ljust(width - 2)}  "

    return text if _command() is None else SCRIPT.sub(replaced, text)


def install(extra: str) -> str:
    """The command that installs an extra, such as ``mlflow``."""
    return f"{PIP}[{extra}]'"


def set_up() -> str:
    """What to do on a machine that has not this program, or not its packages."""
    return "install the same hydraft there" if INSTALLED else "run make setup there"


def with_packages() -> str:
    """What to do here, where a package that this program needs is missing."""
    if INSTALLED:
        return "install hydraft's wheel with its dependencies: pip install hydraft-….whl"
    return "run make setup, then .venv/bin/hydraft"

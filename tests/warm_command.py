"""A command in a process that was forked from one with the stack in memory."""

import os
import runpy
import sys
from pathlib import Path

from hydraft.launch.lifeline import die_with_parent


def run(root: Path, script: str, arguments: tuple[str, ...], environment: dict[str, str], streams: str) -> None:
    """What ``python script arguments`` does in ``root``; its output goes to files in ``streams``."""
    die_with_parent()
    os.chdir(root)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, name in ((0, os.devnull), (1, f"{streams}/out"), (2, f"{streams}/err")):
        handle = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
        os.dup2(handle, descriptor)
        os.close(handle)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
    sys.argv = [str(root / script), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")

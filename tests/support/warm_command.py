"""Runs a command in a fork of a process that has imported PyTorch and the other libraries."""

import os
import runpy
import signal
import sys
import traceback
from collections.abc import Sequence
from multiprocessing import util
from pathlib import Path

from hydraft.system.parent_death import die_with_parent

_spawn = util.spawnv_passfds


def run(root: Path, script: str, arguments: tuple[str, ...], environment: dict[str, str], streams: str) -> None:
    """Run ``python script arguments`` in ``root``; its output is written to files in ``streams``."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the server has inherited
    for number in (signal.SIGTERM, signal.SIGUSR1):  # the server ignores them
        signal.signal(number, signal.SIG_DFL)
    os.chdir(root)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, name in ((0, os.devnull), (1, f"{streams}/out"), (2, f"{streams}/err")):
        handle = os.open(name, os.O_RDWR | os.O_CREAT, 0o644)
        os.dup2(handle, descriptor)
        os.close(handle)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
    sys.argv = [str(root / script), *arguments]
    util.spawnv_passfds = _fork_server
    runpy.run_path(sys.argv[0], run_name="__main__")


def _fork_server(path: bytes, arguments: Sequence[str], descriptors: Sequence[int]) -> int:
    """Start a sweep's fork server as a fork of this command, so that it need not import the libraries."""
    code = arguments[-1]
    if "multiprocessing.forkserver" not in code:
        return _spawn(path, arguments, descriptors)
    child = os.fork()
    if child:
        return child
    try:
        die_with_parent()
        sys.modules.pop(
            "hydraft.launch.local.server_preload", None
        )  # else it would not import what this server is to have
        exec(code, {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)

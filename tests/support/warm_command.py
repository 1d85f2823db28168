"""Runs a command in a fork of a process that has imported PyTorch and the other libraries."""

import contextlib
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing import util
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from hydraft.launch.external import rank
from hydraft.system.parent_death import die_with_parent

_spawn = util.spawnv_passfds


def run(
    folder: Path, script: Path, arguments: tuple[str, ...], environment: dict[str, str], streams: str | Path
) -> None:
    """Run ``python script arguments`` in ``folder``; its output is written to files in ``streams``."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the server has inherited
    for number in (signal.SIGTERM, signal.SIGUSR1):  # the server ignores them
        signal.signal(number, signal.SIG_DFL)
    if files := int(environment.get("TEST_OPEN_FILES", "0")):  # as after `ulimit -n`
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # TMPDIR is read again
    multiprocessing.current_process()._config.pop("tempdir", None)  # type: ignore[attr-defined]
    for descriptor, name in ((0, os.devnull), (1, f"{streams}/out"), (2, f"{streams}/err")):
        handle = os.open(name, _mode(name), 0o644)
        os.dup2(handle, descriptor)
        os.close(handle)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode) for number, mode in enumerate("rww"))
    sys.argv = [str(script), *arguments]
    util.spawnv_passfds = _fork_server
    rank.subprocess = SUBPROCESS  # type: ignore[assignment]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _mode(name: str) -> int:
    """How a stream is opened: a test may have put a pipe in the place of a file."""
    return os.O_WRONLY if Path(name).is_fifo() else os.O_RDWR | os.O_CREAT


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
        _leave(set(descriptors))
        sys.modules.pop(
            "hydraft.launch.local.server_preload", None
        )  # else it would not import what this server is to have
        exec(code, {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _leave(kept: set[int]) -> None:
    """Give up the files that exec would have closed: a pipe ends when the last process that holds it has."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept | {0, 1, 2}:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.fstat(int(name))
                os.dup2(nowhere, int(name), inheritable=False)


class ForkedPython:
    """A fork of this command, in place of a new interpreter: a part of Popen."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], stdout: IO[bytes] | None, session: bool) -> None:
        arguments = (list(command[1:]), dict(env), None if stdout is None else stdout.fileno(), session)
        self.process = multiprocessing.get_context("fork").Process(target=_run, args=arguments)
        self.process.start()
        self.kill = self.process.kill

    def __enter__(self) -> "ForkedPython":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.join()

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """Negative: the signal that ended it; None if it runs."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """``returncode``."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it has ended."""
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a fork", timeout or 0)


def popen(
    command: Sequence[str], *, env: Mapping[str, str], stdout: IO[bytes] | None = None, start_new_session: bool = False, **options: Any
) -> Any:  # fmt: skip
    """Popen; a Python is a fork, which has no stdin, and whose stderr is its stdout if that is given."""
    if command[0] == sys.executable:
        return ForkedPython(command, env, stdout, start_new_session)
    return subprocess.Popen(command, env=env, stdout=stdout, start_new_session=start_new_session, **options)


SUBPROCESS = SimpleNamespace(
    Popen=popen, TimeoutExpired=subprocess.TimeoutExpired, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT
)
"""In place of the module ``subprocess``."""


def _run(arguments: list[str], environment: dict[str, str], output: int | None, session: bool) -> None:
    """What ``python`` does with these arguments and this environment."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):  # exec would reset their handlers
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if session:
        os.setsid()
    if output is not None:
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
    os.environ.clear()
    os.environ.update(environment)
    option, *rest = arguments
    sys.argv = rest if option == "-m" else ["-c", *rest[1:]] if option == "-c" else arguments
    if option == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        exec(rest[0], {"__name__": "__main__"})
    else:
        runpy.run_path(option, run_name="__main__")

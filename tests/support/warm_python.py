"""A Python that has the libraries in memory: a program that does what ``python`` does, but whose imports were done before.

``WarmPython.path`` is a small program that takes the arguments of ``python``. It passes its arguments, directory, environment, streams and
namespaces to a server, a fork of which runs the code, and ends as that fork ends. A signal that it receives is sent on, and if it is
killed, so is the fork. ``sys.executable`` there is the program again, so that launchers start their ranks with it too, whether
torchrun, ssh or Slurm start it. A variable that is read on import, such as TRITON_INTERPRET, has the value that it had for the server.
"""

import atexit
import ctypes
import importlib
import json
import multiprocessing
import multiprocessing.context
import multiprocessing.process
import multiprocessing.spawn  # before sys.executable is set: a spawned process is a new interpreter
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import util
from pathlib import Path
from typing import Any, NoReturn, Self

import psutil

import warm_command
from hydraft.launch.external import rank
from hydraft.launch.local import elastic
from hydraft.system.hardware import detect
from hydraft.system.parent_death import die_with_parent

CLIENT = """#!{python} -IS
import json, os, resource, signal, socket, sys
SENT_ON = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
ignored = [int(number) for number in SENT_ON if signal.getsignal(number) == signal.SIG_IGN]
signal.pthread_sigmask(signal.SIG_BLOCK, SENT_ON)
link = socket.socket(socket.AF_UNIX)
link.connect({socket!r})
request = json.dumps(dict(
    arguments=sys.argv[1:], folder=os.getcwd(), environment=dict(os.environ), pid=os.getpid(), ignored=ignored,
)).encode()
socket.send_fds(link, [len(request).to_bytes(4, "big")], [0, 1, 2])
link.sendall(request)
replies = link.makefile("r")
fork = int(replies.readline() or 0)
if not fork:
    sys.exit("the server of {python} has ended")
def send_on(number, _):
    try:
        os.kill(fork, number)
    except ProcessLookupError:
        pass
for number in SENT_ON:  # also those ignored here: the fork ignores them too, unless its code asks for them
    signal.signal(number, send_on)
signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT_ON)
code = int(replies.readline() or 1)
if code < 0:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""

NAMESPACES = ("net", "mnt")


class WarmPython:
    """``with WarmPython(folder) as python``: ``python.path`` is the program.

    With ``environment``, the server is a new process of ``interpreter``, which imports the libraries with these variables.
    """

    def __init__(
        self, folder: Path, environment: Mapping[str, str] | None = None, interpreter: str = sys.executable
    ) -> None:
        self.interpreter = interpreter
        self.path = folder / "python"
        self.socket = folder / "socket"
        self.environment = environment

    def __enter__(self) -> Self:
        self.path.write_text(CLIENT.format(python=self.interpreter, socket=str(self.socket)))
        self.path.chmod(0o755)
        arguments = str(self.path), str(self.socket)
        self.process: subprocess.Popen[bytes] | multiprocessing.context.ForkServerProcess
        if self.environment is not None:
            variables = {**os.environ, **self.environment}
            self.process = subprocess.Popen([self.interpreter, __file__, *arguments], env=variables)
        else:
            elastic.start_fork_server(detect())
            self.process = multiprocessing.get_context("forkserver").Process(target=serve, args=arguments)
            self.process.start()
        while not self.socket.exists():
            time.sleep(0.02)
            assert psutil.Process(self.process.pid).status() != psutil.STATUS_ZOMBIE, "the server has ended"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # its forks end with it
        self.process.wait() if isinstance(self.process, subprocess.Popen) else self.process.join()

    def forks(self) -> list[psutil.Process]:
        """All that runs in place of the program, then all below."""
        server = psutil.Process(self.process.pid)
        direct = server.children()
        return direct + [process for process in server.children(recursive=True) if process not in direct]

    def fork(self, client: int) -> psutil.Process:
        """What runs in place of the program with the process id ``client``."""
        pid = int((self.socket.parent / f"{client}.fork").read_text())
        return psutil.Process(pid)


def serve(program: str, address: str) -> NoReturn:
    """Run a fork for each connection, until this process is killed."""
    die_with_parent()
    os.setsid()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(64)
    Path(f"{address}.new").rename(address)
    forks: dict[socket.socket, tuple[int, int]] = {}  # each connection's fork, and its pidfd
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    opened = [listener, selector, *forks, *(pidfd for _, pidfd in forks.values())]
                    try:
                        forks[connection] = started = _start(connection, program, Path(address).parent, opened)
                    except EOFError:
                        connection.close()
                        continue
                    selector.register(connection, selectors.EVENT_READ)
                    selector.register(started[1], selectors.EVENT_READ, connection)
                    continue
                connection = key.data or key.fileobj
                if connection not in forks:  # its other event has come first
                    continue
                pid, pidfd = forks.pop(connection)
                if key.data is None:  # the program has ended: it was killed
                    os.kill(pid, signal.SIGKILL)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                for end in (pidfd, connection):
                    selector.unregister(end)
                with suppress(OSError):
                    connection.sendall(f"{code}\n".encode())
                os.close(pidfd)
                connection.close()


def _start(connection: socket.socket, program: str, folder: Path, opened: list[Any]) -> tuple[int, int]:
    """Fork for ``connection``: the fork's process id and a pidfd. ``opened`` is what the fork must not hold."""
    request, streams = _received(connection)
    pid = os.fork()
    if pid == 0:
        for end in (*opened, connection):
            os.close(end) if isinstance(end, int) else end.close()
        _run(program, request, streams)
    for stream in streams:
        os.close(stream)
    (folder / f"{request['pid']}.fork").write_text(str(pid))
    with suppress(OSError):
        connection.sendall(f"{pid}\n".encode())
    return pid, os.pidfd_open(pid)


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request, and the three streams that came with it.

    Raises:
        EOFError: the program has been killed before it had sent all of it.
    """
    length, streams, _, _ = socket.recv_fds(connection, 4, 3)
    raw = b""
    while len(raw) < int.from_bytes(length, "big") or not length:
        if not (piece := connection.recv(1 << 20)):
            for stream in streams:
                os.close(stream)
            raise EOFError
        raw += piece
    return json.loads(raw), streams


def _run(program: str, request: dict[str, Any], streams: list[int]) -> NoReturn:
    """Do in this fork what ``python`` does with the request."""
    code = 1
    try:
        _become(program, request, streams)
        code = _exit_code(request["arguments"])
    except BaseException:
        traceback.print_exc()
    for step in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):  # type: ignore[attr-defined]
        with suppress(Exception):
            step()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code)


def _become(program: str, request: dict[str, Any], streams: list[int]) -> None:
    """Take over what a child of the client would inherit from it."""
    die_with_parent()
    os.setsid()
    libc = ctypes.CDLL(None, use_errno=True)
    for name in NAMESPACES:
        theirs = f"/proc/{request['pid']}/ns/{name}"
        if os.stat(theirs).st_ino != os.stat(f"/proc/self/ns/{name}").st_ino:
            entry = os.open(theirs, os.O_RDONLY)
            if libc.setns(entry, 0):
                raise OSError(ctypes.get_errno(), theirs)
            os.close(entry)
    os.chdir(request["folder"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    sys.stdin = sys.__stdin__ = os.fdopen(0, closefd=False)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # type: ignore[misc]
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # TMPDIR is read again
    multiprocessing.process.ORIGINAL_DIR = request["folder"]  # type: ignore[attr-defined]
    multiprocessing.current_process()._config.pop("tempdir", None)  # type: ignore[attr-defined]
    sys.modules.pop(elastic.LIBRARIES, None)  # as a new interpreter it has a fork server for its ranks
    util.spawnv_passfds = warm_command._fork_server
    rank.subprocess = warm_command.SUBPROCESS  # type: ignore[assignment]
    sys.executable = program


def _exit_code(arguments: list[str]) -> int:
    """Run the code that ``arguments`` name: the exit code; negative for a signal."""
    rest = [*arguments]
    while rest[0] == "-u":
        rest.pop(0)
    option, *others = rest
    sys.argv = others if option == "-m" else ["-c", *others[1:]] if option == "-c" else rest
    try:
        if option == "-m":
            sys.path.insert(0, str(Path.cwd()))
            runpy.run_module(others[0], run_name="__main__", alter_sys=True)
        elif option in ("-c", "-"):
            exec(others[0] if option == "-c" else sys.stdin.read(), {"__name__": "__main__"})
        else:
            sys.path.insert(0, str(Path(option).parent.resolve()))
            runpy.run_path(option, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    importlib.import_module(elastic.LIBRARIES)
    serve(*sys.argv[1:])

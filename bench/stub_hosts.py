"""Many hosts on this machine, for the launcher: real agents, a program named ``ssh`` that leads to them, and stub ranks.

    python bench/stub_hosts.py serve FOLDER      # forks an agent for each connection
    python bench/stub_hosts.py launch FOLDER NODES RANKS GRACE LINK_TIMEOUT SOFT_LIMIT HARD_LIMIT

Everything between the launcher and the ranks is real: the launcher (``launch/run.py`` and what it starts), the channels, the agents'
two processes, the probe of addresses. An agent is forked from a server that has imported it, and a rank is a thread that writes
its heartbeat, so that 64 hosts with 8 ranks each fit into one small machine. What happens to a host is said by files in ``FOLDER``:

* ``late-NAME`` holds seconds: it answers that much later
* ``drop-NAME`` holds a number: so many connections to it are dropped before the login, as a busy sshd does
* ``die-NAME`` holds a rank (of that host): that rank raises
* ``finish``: the ranks are done
"""

import array
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import psutil

ROOT = Path(__file__).parents[1]

SSH = """#!{python} -SsE
import contextlib, os, pathlib, select, signal, socket, sys, time
folder = pathlib.Path({folder!r})
name = sys.argv[sys.argv.index("--") + 1]
def number(what):
    try:
        return float((folder / (what + "-" + name)).read_text())
    except (OSError, ValueError):
        return 0
if number("drop") > 0:
    (folder / ("drop-" + name)).write_text(str(number("drop") - 1))
    sys.stderr.write("kex_exchange_identification: Connection closed by remote host\\n")
    sys.exit(255)
(folder / "ssh" / name).write_text(str(os.getpid()))
time.sleep(number("late"))
control = socket.socket(socket.AF_UNIX)
control.connect(str(folder / "socket"))
socket.send_fds(control, [name.encode()], [2])
_, (link,), _, _ = socket.recv_fds(control, 1, 1)
link = socket.socket(fileno=link)
open_ends = [0, link]
while link in open_ends:
    for end in select.select(open_ends, [], [])[0]:
        try:
            data = os.read(end if end == 0 else end.fileno(), 1 << 16)
        except ConnectionResetError:  # the agent has ended without reading everything
            data = b""
        if not data:
            open_ends.remove(end)
            if end == 0:
                with contextlib.suppress(OSError):
                    link.shutdown(socket.SHUT_WR)
        elif end == 0:
            with contextlib.suppress(OSError):
                link.sendall(data)
        else:
            while data:
                data = data[os.write(1, data):]
code = int(control.recv(16) or b"255")
sys.exit(255 if code < 0 else code)
"""
"""As OpenSSH's client does: it passes stdin, stdout and the exit code on, and ends with 255 for a lost connection."""

LOST = "[gloo/transport/tcp/pair.cc:525] Connection closed by peer"
"""What ranks raise when another one has gone."""


class StubHosts:
    """``with StubHosts(folder, 64, 8) as hosts``: a server of agents and the ``ssh`` that reaches them."""

    def __init__(self, folder: Path, nodes: int, ranks: int) -> None:
        self.folder = folder
        self.nodes, self.ranks = nodes, ranks
        self.names = [f"node-{number:03}" for number in range(nodes)]

    def __enter__(self) -> Self:
        for name in ("bin", "ssh", "agents", "started", "tmp"):
            (self.folder / name).mkdir(parents=True)
        ssh = self.folder / "bin" / "ssh"
        ssh.write_text(SSH.format(python=sys.executable, folder=str(self.folder)))
        ssh.chmod(0o755)
        self.server = self._python("serve", str(self.folder))
        self.wait(lambda: (self.folder / "socket").exists(), 60)
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.processes(), psutil.Process(self.server.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.server.wait()

    def _python(self, *arguments: str, **more: Any) -> "subprocess.Popen[str]":
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "TMPDIR": str(self.folder / "tmp"), "PYTHONPATH": str(ROOT / "src")}
        return subprocess.Popen(
            [sys.executable, str(Path(__file__)), *arguments],
            env=environment,
            text=True,
            start_new_session=True,
            **more,
        )

    def launch(
        self, grace: float = 0, link_timeout: float = 10, limits: tuple[int, int] = (0, 0)
    ) -> "subprocess.Popen[str]":
        """Start a run on all hosts; ``limits``: open files that the launcher may have, soft and hard; 0 for those of here."""
        for old in [*(self.folder / "started").iterdir(), *self.folder.glob("die-*"), self.folder / "finish"]:
            old.unlink(missing_ok=True)
        shape = (self.nodes, self.ranks, grace, link_timeout, *limits)
        arguments = ["launch", str(self.folder), *map(str, shape)]
        return self._python(*arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def tell(self, what: str, value: object = "") -> None:
        """Write one of the files that say what happens."""
        target = self.folder / what
        target.with_name(f".{what}").write_text(str(value))
        target.with_name(f".{what}").rename(target)

    def started(self) -> bool:
        """Whether the ranks of all hosts run."""
        return len(list((self.folder / "started").iterdir())) == self.nodes

    def wait(self, condition: Callable[[], bool], seconds: float) -> float:
        """Wait until ``condition`` holds; returns how many seconds that took."""
        begun = time.monotonic()
        while not condition():
            if time.monotonic() - begun > seconds:
                raise TimeoutError(f"not within {seconds:.0f} s")
            time.sleep(0.05)
        return time.monotonic() - begun

    def processes(self) -> list[psutil.Process]:
        """All processes of all hosts: agents and what is below them."""
        return list(psutil.Process(self.server.pid).children(recursive=True))

    def of(self, name: str) -> list[psutil.Process]:
        """The processes of one host."""
        agent = psutil.Process(int((self.folder / "agents" / name).read_text()))
        return [agent, *agent.children(recursive=True)]

    def stop(self, name: str) -> None:
        """Stop a host: nothing on it runs."""
        for process in self.of(name):
            process.suspend()

    def cut(self, name: str) -> None:
        """Cut the connection to a host, which both sides find out on their own."""
        os.kill(int((self.folder / "ssh" / name).read_text()), signal.SIGSTOP)

    def left(self) -> list[str]:
        """Processes and temporary files that a run has left."""
        names = [f"{process.pid} {process.status()}" for process in self.processes()]
        return names + [path.name for path in (self.folder / "tmp").iterdir()]


def serve(folder: Path) -> NoReturn:
    """Fork an agent for each connection, and report its exit code there."""
    from hydraft.launch.remote import agent, node

    node._prepare = lambda *_: None
    node.elastic.start = lambda ranks, hardware, shutdown: StubRanks(folder, ranks).run(shutdown)  # type: ignore[attr-defined]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / ".socket"))
    listener.listen(1024)
    (folder / ".socket").rename(folder / "socket")
    listener.settimeout(0.05)
    connections: dict[int, socket.socket] = {}
    while True:
        with suppress(TimeoutError):
            connection, _ = listener.accept()
            connection.setblocking(True)
            pid = _fork_agent(folder, connection, agent.main)
            connections[pid] = connection
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                with suppress(OSError), connections.pop(ended[0]) as connection:
                    connection.sendall(str(os.waitstatus_to_exitcode(ended[1])).encode())


def _fork_agent(folder: Path, connection: socket.socket, main: Callable[[], int]) -> int:
    name, (errors,), _, _ = socket.recv_fds(connection, 256, 1)
    here, there = socket.socketpair()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            for number in (0, 1):
                os.dup2(here.fileno(), number)
            os.dup2(errors, 2)
            os.closerange(3, 1024)
            (folder / "agents" / name.decode()).write_text(str(os.getpid()))
            code = main()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    connection.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [there.fileno()]))])
    for end in (here, there):
        end.close()
    os.close(errors)
    return pid


@dataclass
class StubRanks:
    """The ranks of one host."""

    folder: Path
    ranks: Any
    """The ``LocalRanks`` that torch's elastic agent would start."""

    def run(self, shutdown: Any) -> None:
        """Write heartbeats until the run is done, a rank raises, or a signal arrives."""
        from hydraft.errors import Failure, FailureReason, RankFailed
        from hydraft.launch.local.shutdown import Preempted

        name, first = os.environ["HYDRAFT_HOST"], self.ranks.node.node_rank * self.ranks.count
        received: list[int] = []

        def request(number: int) -> bool:
            received.append(number)
            return True

        with shutdown.forwarding(request):
            (self.folder / "started" / name).touch()
            while not (self.folder / "finish").exists():
                self._beat(first)
                if (dead := self._dead(name)) is not None:
                    where, rank = dead
                    message = "the record is not what it seems" if where == name else LOST
                    number = first + (rank if where == name else 0)
                    raise RankFailed(Failure(FailureReason.raised, message, rank=number, exception="RuntimeError"))
                if received:
                    raise Preempted(step=7, number=received[0])
                time.sleep(0.2)

    def _beat(self, first: int) -> None:
        """What a rank does in a thread of its own; here one after another."""
        for rank in range(first, first + self.ranks.count):
            if not (note := self.ranks.notes / f"{rank}.pid").exists():  # as a whole, as a rank writes it
                note.with_name(f".{rank}.pid").write_text(str(os.getpid()))
                note.with_name(f".{rank}.pid").rename(note)
            note.with_suffix(".beat").touch()

    def _dead(self, name: str) -> tuple[str, int] | None:
        """The rank that is told to die. On other hosts its peers find out a moment earlier, which must not matter."""
        for file in self.folder.glob("die-*"):
            where = file.name.removeprefix("die-")
            if where == name:
                time.sleep(0.3)
            return where, int(file.read_text())
        return None


def launch(folder: Path, nodes: int, ranks: int, seconds: tuple[float, float], limits: tuple[int, int]) -> int:
    """What ``python train.py cluster.hosts=[…]`` does once the run is planned; returns its exit code."""
    import logging
    import resource

    from hydraft.config.cluster import ClusterConfig
    from hydraft.config.schema import Config, saved
    from hydraft.errors import EXIT_REFUSED, ConfigError, RunFailed, RunStopped
    from hydraft.launch import run
    from hydraft.system import files

    logging.getLogger("hydraft").setLevel(logging.INFO)  # as Hydra does
    if limits[1]:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    names = [f"node-{number:03}" for number in range(nodes)]
    config = Config(cluster=ClusterConfig(nodes=nodes, ranks_per_node=ranks, hosts=names))
    config.train.grace, config.cluster.link_timeout = seconds
    target = folder / "run"
    target.mkdir(exist_ok=True)
    files.write_text(target / "config.yaml", saved(config))
    try:
        run.run(config, target)
    except (RunFailed, RunStopped) as error:
        print(error, flush=True)
        return error.code
    except ConfigError as error:
        print(error, flush=True)
        return EXIT_REFUSED
    return 0


def main(arguments: list[str]) -> int:
    """Serve or launch."""
    match arguments:
        case ["serve", folder]:
            serve(Path(folder))
        case ["launch", folder, nodes, ranks, grace, link_timeout, soft, hard]:
            seconds, limits = (float(grace), float(link_timeout)), (int(soft), int(hard))
            return launch(Path(folder), int(nodes), int(ranks), seconds, limits)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

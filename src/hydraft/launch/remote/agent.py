"""Agent of one host, which connects the launcher to this host's ranks: ``python -m hydraft.launch.remote.agent``.

It reads a launch specification on stdin; ``protocol.py`` describes the messages. It consists of two processes. This one imports no
torch, so it always responds: it reports the state of the ranks every second, and when its stdin closes or carries no heartbeat, it
kills all processes below it. The other (``node.py``) prepares and runs torch's elastic agent.
"""

import fcntl
import json
import os
import pty
import selectors
import signal
import struct
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

from hydraft.errors import Failure, FailureReason
from hydraft.launch.local.elastic import own_code_first
from hydraft.launch.local.hang import RankMonitor
from hydraft.launch.remote import node, probe
from hydraft.launch.remote.protocol import LaunchSpec, failed, line, pieces
from hydraft.runs import consistency
from hydraft.system import streams, temporary
from hydraft.system.parent_death import die_with_parent
from hydraft.system.signals import SHUTDOWN_SIGNALS

STATUS_SECONDS = 1.0
STOP_SECONDS = 3.0
"""From ending the ranks by a signal to killing them: a process that is stopped (SIGSTOP) handles no signal."""
CHUNK = 1 << 16


class Agent:
    """Connects a launcher to the ranks of this host."""

    def __init__(self, spec: LaunchSpec, events: int) -> None:
        """``events``: the file descriptor that the launcher reads."""
        self.spec = spec
        self.events = events
        self.notes = temporary.make("notes")
        self.shared = _read(Path(spec.folder) / ".launch") == spec.token
        self.folder = Path(spec.folder) if self.shared else temporary.make("run", kept=True)
        self.monitor = RankMonitor(self.notes)
        self.probe: probe.ProbeServer | None = None
        self.probed, self.probes = os.pipe()
        """Carries the event ``reached`` from the thread that tries the addresses."""
        self.screen = self.slave = -1
        self.child = 0
        """Process id of the node."""
        self.final = False
        """Whether the node's final event has been passed on."""
        self.stopping_since: float | None = None
        """When the command ``stop`` arrived."""
        self.commands = -1
        """File descriptor of the node's commands."""
        self.buffers: dict[int, bytes] = {}

    def send(self, event: str, **values: Any) -> None:
        """Send an event."""
        self.send_line(line(event=event, node=self.spec.here, **values))

    def send_line(self, raw: bytes) -> None:
        """Send a complete line."""
        view = memoryview(raw if self.spec.node is not None else pieces(raw, self.spec.here))
        while view:
            view = view[os.write(self.events, view) :]

    def run(self) -> int:
        """Serve until the node has ended; returns the exit code."""
        signal.signal(signal.SIGALRM, lambda *_: self.kill_all())  # interrupts a write to a lost connection too
        self.postpone_timeout()
        self.send_line(b"\n")  # a login script may have begun a line
        self.send("hello", about=consistency.about(), shared=self.shared, folder=str(self.folder))
        node_events = self.start_node(self.open_screen())
        for number in SHUTDOWN_SIGNALS:  # a whole Slurm job may receive it; it is for the ranks
            signal.signal(number, lambda received, _: os.kill(self.child, received))
        with selectors.DefaultSelector() as selector:
            for source in (0, node_events, self.probed, *([self.screen] if self.screen >= 0 else [])):
                selector.register(source, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(STATUS_SECONDS):
                    if key.fd == 0:
                        self.handle_commands()
                    elif key.fd == self.probed:
                        self.send_line(os.read(self.probed, CHUNK))
                    elif key.fd == self.screen:
                        self.forward_screen()
                    elif not self.forward_events(node_events):
                        return self.end()
                self.send("status", ranks=self.monitor.status())
                if self.stopping_since is not None and time.monotonic() - self.stopping_since > STOP_SECONDS:
                    self.monitor.kill()

    def postpone_timeout(self) -> None:
        """The launcher has sent something: start the connection's timeout anew."""
        signal.setitimer(signal.ITIMER_REAL, self.spec.link_timeout)

    def open_screen(self) -> str | None:
        """What rank 0 prints to: a terminal of the size of the launcher's, or a pipe."""
        if self.spec.here != 0 or self.spec.quiet:
            return os.devnull
        if self.spec.terminal is None:
            pipe = self.notes / "screen"
            os.mkfifo(pipe)
            self.screen = os.open(
                pipe, os.O_RDWR | os.O_NONBLOCK
            )  # always has a writer, so reading never meets its end
            return str(pipe)
        self.screen, self.slave = pty.openpty()
        tty.setraw(self.slave)
        columns, lines = self.spec.terminal
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        os.set_blocking(self.screen, False)
        return os.ttyname(self.slave)

    def start_node(self, terminal: str | None) -> int:
        """Fork the node's process; returns the file descriptor of its events."""
        commands, self.commands = os.pipe()
        reading, writing = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # needed for ``stop`` even if the launcher ignores it (nohup)
            die_with_parent()
            os.close(self.commands)
            os.close(reading)
            os.close(self.events)
            nowhere = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nowhere, 0)
            node.run(node.NodeRun(self.spec, self.folder, self.shared, self.notes, terminal), commands, writing)
        os.close(commands)
        os.close(writing)
        return reading

    def handle_commands(self) -> None:
        """Handle the commands that have arrived; at the end of stdin, kill everything."""
        for command in self.read_messages(0, self.kill_all):
            self.postpone_timeout()
            match command["do"]:
                case "probe":
                    self.probe_addresses(command["port"], command["addresses"])
                case "go":
                    listen = ""
                    if self.probe is not None:
                        self.probe.close()
                        listen = self.probe.listen_at(command["endpoint"].rpartition(":")[0])
                    os.write(self.commands, line(**command, listen=listen))
                case "dump":
                    self.send("stacks", ranks=self.monitor.stacks(self.folder))
                case "finish" if not self.final:
                    os.kill(self.child, command["signal"])
                case "stop" if self.stopping_since is None and not self.final:
                    self.stopping_since = time.monotonic()
                    os.kill(self.child, signal.SIGHUP)

    def probe_addresses(self, port: int, addresses: list[str]) -> None:
        """Report which of the first node's addresses can be reached from here, without waiting for it: that takes seconds, in which
        the launcher needs the events of this process, and this process the launcher's heartbeat."""

        def try_all() -> None:
            found = probe.reached(addresses, port, self.spec.token)
            os.write(self.probes, line(event="reached", node=self.spec.here, addresses=found))

        if self.spec.here != 0:
            threading.Thread(target=try_all, daemon=True).start()

    def forward_events(self, source: int) -> bool:
        """Forward the node's events; False once it has ended."""
        ended: list[bool] = []
        for event in self.read_messages(source, lambda: ended.append(True)):
            if event["event"] == "prepared":
                self.send_ready()
                continue
            if event["event"] in ("done", "failed"):
                self.forward_screen()  # rank 0 has ended: this is all that it printed
                self.final = True
            self.send_line(line(**event, node=self.spec.here))
        return not ended

    def send_ready(self) -> None:
        """Report that model and ops are prepared; the first node also starts its probe server."""
        if self.spec.here != 0:
            self.send("ready")
            return
        try:
            at = probe.first_at(self.spec.hosts, self.spec.address)
            self.probe = probe.ProbeServer(at, self.spec.port or 0, self.spec.token)
        except OSError as error:
            message = (
                f"cluster.port={self.spec.port}: {error.strerror}; use another, or cluster.port=null for any free one"
            )
            self.send(**failed(Failure(FailureReason.config, message, exception="ConfigError")))
            self.kill_all()
        self.send("ready", port=self.probe.port, addresses=probe.addresses())

    def forward_screen(self) -> None:
        """Forward what rank 0 has printed so far."""
        while self.screen >= 0:
            try:
                data = os.read(self.screen, CHUNK)
            except OSError:
                return
            if not data:
                return
            self.send("screen", data=data)

    def read_messages(self, source: int, at_end: Callable[[], object]) -> list[dict[str, Any]]:
        """The messages that have arrived; ``at_end`` is called if no more will."""
        raw = os.read(source, CHUNK)
        if not raw:
            at_end()
        *lines, rest = (self.buffers.get(source, b"") + raw).split(b"\n")
        self.buffers[source] = rest
        return [json.loads(message) for message in lines]

    def end(self) -> int:
        """The node has ended: report it if it was killed, and clean up; returns the exit code."""
        _, status = os.waitpid(self.child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            message = f"the process that runs its ranks was killed by {signal.Signals(-code).name}"
            self.send(**failed(Failure(FailureReason.killed, message, signal=-code)))
        temporary.remove(self.notes)
        if not self.shared:
            temporary.remove(self.folder)
        return 0 if code == 0 else 1

    def kill_all(self) -> NoReturn:
        """Kill every process below this one, and its own process group. A temporary run folder is kept, for its logs."""
        processes = psutil.Process().children(recursive=True)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, STOP_SECONDS)  # one that is still ending may write another note
        temporary.remove(self.notes)
        os.killpg(0, signal.SIGKILL)
        raise AssertionError("a process survived SIGKILL")


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None


def main() -> int:
    """Read the launch specification and serve."""
    streams.guard()
    streams.go_on()
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    events = os.dup(1)
    os.dup2(2, 1)  # stdout carries events only
    raw = b""
    while not raw.endswith(b"\n"):  # byte by byte: what follows the line must be left for select
        if not (byte := os.read(0, 1)):
            return 1
        raw += byte
    try:
        spec = LaunchSpec.from_line(raw)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    os.environ.update(spec.environment)
    own_code_first()
    os.environ["HYDRAFT_HOST"] = spec.hosts[spec.here]
    return Agent(spec, events).run()


if __name__ == "__main__":
    sys.exit(main())

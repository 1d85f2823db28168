"""One host's part of a run: ``python -m hydraft.launch.remote.agent`` reads a job on stdin (see ``job.py``) and keeps the link.

Two processes. This one imports no torch, so that nothing ever keeps it from answering: it tells how the ranks are every second,
and when its stdin closes or falls silent it kills all below it. The other (``node.py``) prepares, and runs the elastic agent.
"""

import fcntl
import json
import os
import pty
import selectors
import shutil
import signal
import struct
import sys
import tempfile
import termios
import time
import tty
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

from hydraft.launch.local.elastic import own_code_first
from hydraft.launch.local.hang import Watch
from hydraft.launch.remote import node, rendezvous
from hydraft.launch.remote.protocol import Job, line, pieces
from hydraft.runs import consistency
from hydraft.system.parent_death import die_with_parent
from hydraft.system.signals import ASKING

TICK_SECONDS = 1.0
STOP_SECONDS = 3.0
"""From asking ranks to end to killing them: one that was stopped hears nothing."""
CHUNK = 1 << 16


class Keeper:
    """The link between a launcher and this host's ranks."""

    def __init__(self, job: Job, events: int) -> None:
        """``events``: the file descriptor that the launcher reads."""
        self.job = job
        self.events = events
        self.notes = Path(tempfile.mkdtemp(prefix="hydraft-notes-"))
        self.shared = _reads(Path(job.folder) / ".launch") == job.token
        self.folder = Path(job.folder) if self.shared else Path(tempfile.mkdtemp(prefix="hydraft-run-"))
        self.watch = Watch(self.notes)
        self.door: rendezvous.Door | None = None
        self.screen = self.slave = -1
        self.child = 0
        self.spoken = False
        """Whether the node's last word has been passed on."""
        self.stopping: float | None = None
        """When it was asked to stop."""
        self.commands = -1
        self.buffers: dict[int, bytes] = {}

    def tell(self, event: str, **more: Any) -> None:
        """Send an event."""
        self.send(line(event=event, node=self.job.here, **more))

    def send(self, raw: bytes) -> None:
        """Send a line that is whole."""
        view = memoryview(raw if self.job.node is not None else pieces(raw, self.job.here))
        while view:
            view = view[os.write(self.events, view) :]

    def run(self) -> int:
        """Keep the link until the node's work is done."""
        signal.signal(signal.SIGALRM, lambda *_: self.end_all())  # interrupts a write to a dead link too
        self.heard()
        self.send(b"\n")  # a login script may have begun a line
        self.tell("hello", about=consistency.about(), shared=self.shared, folder=str(self.folder))
        terminal = self.open_screen()
        told = self.start_node(terminal)
        for number in ASKING:  # for the ranks: a whole job may get it
            signal.signal(number, lambda asked, _: os.kill(self.child, asked))
        with selectors.DefaultSelector() as ready:
            for source in (0, told, *([self.screen] if self.screen >= 0 else [])):
                ready.register(source, selectors.EVENT_READ)
            while True:
                for key, _ in ready.select(TICK_SECONDS):
                    if key.fd == 0:
                        self.listen()
                    elif key.fd == self.screen:
                        self.show()
                    elif not self.pass_on(told):
                        return self.end()
                self.tell("status", ranks=self.watch.status())
                if self.stopping is not None and time.monotonic() - self.stopping > STOP_SECONDS:
                    self.watch.kill()

    def heard(self) -> None:
        """The launcher is there: put off the end."""
        signal.setitimer(signal.ITIMER_REAL, self.job.link_timeout)

    def open_screen(self) -> str | None:
        """What rank 0 writes its bar to: a terminal of the launcher's size, or a pipe."""
        if self.job.here != 0 or self.job.quiet:
            return os.devnull
        if self.job.terminal is None:
            pipe = self.notes / "screen"
            os.mkfifo(pipe)
            self.screen = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # a writer is there always: no end between two
            return str(pipe)
        self.screen, self.slave = pty.openpty()
        tty.setraw(self.slave)
        columns, lines = self.job.terminal
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        os.set_blocking(self.screen, False)
        return os.ttyname(self.slave)

    def start_node(self, terminal: str | None) -> int:
        """Fork the process that does the work; returns where it tells its events."""
        commands, self.commands = os.pipe()
        told, telling = os.pipe()
        self.child = os.fork()
        if self.child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the launcher ignores it: see ``listen``
            die_with_parent()
            os.close(self.commands)
            os.close(told)
            os.close(self.events)
            nowhere = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nowhere, 0)
            node.run(self.job, self.folder, self.shared, self.notes, terminal, commands, telling)
        os.close(commands)
        os.close(telling)
        return told

    def listen(self) -> None:
        """Do what the launcher says; the end of its words is the end of the run."""
        for command in self.lines(0, self.end_all):
            self.heard()
            match command["do"]:
                case "reach":
                    self.reach(command["port"], command["addresses"])
                case "go":
                    if self.door is not None:
                        self.door.close()
                    os.write(self.commands, line(**command))
                case "dump":
                    self.tell("stacks", ranks=self.watch.stacks(self.folder))
                case "finish" if not self.spoken:
                    os.kill(self.child, command["signal"])
                case "stop" if self.stopping is None and not self.spoken:
                    self.stopping = time.monotonic()
                    os.kill(self.child, signal.SIGHUP)

    def reach(self, port: int, addresses: list[str]) -> None:
        """Tell which of the first node's addresses lead to it from here."""
        if self.job.here != 0:
            self.tell("reached", addresses=[a for a in addresses if rendezvous.reaches(a, port, self.job.token)])

    def pass_on(self, told: int) -> bool:
        """Pass the node's events on; False once it has ended."""
        ended: list[bool] = []
        for event in self.lines(told, lambda: ended.append(True)):
            if event["event"] == "prepared":
                self.ready()
                continue
            if event["event"] in ("done", "failed"):
                self.show()  # rank 0 is gone: all it showed is here
                self.spoken = True
            self.send(line(**event, node=self.job.here))
        return not ended

    def ready(self) -> None:
        """Model and ops are there; the first node opens its door to the others too."""
        if self.job.here != 0:
            self.tell("ready")
            return
        try:
            self.door = rendezvous.Door(self.job.port or 0, self.job.token)
        except OSError as error:
            cause = (
                f"cluster.port={self.job.port}: {error.strerror}; use another, or cluster.port=null for any free one"
            )
            self.tell("failed", kind="config", rank=None, cause=cause)
            self.end_all()
        self.tell("ready", port=self.door.port, addresses=rendezvous.addresses())

    def show(self) -> None:
        """Pass on what rank 0 has shown so far."""
        while self.screen >= 0:
            try:
                shown = os.read(self.screen, CHUNK)
            except OSError:
                return
            if not shown:
                return
            self.tell("screen", data=shown)

    def lines(self, source: int, at_end: Any) -> list[dict[str, Any]]:
        """The messages that are there; ``at_end`` is called if there will be no more."""
        raw = os.read(source, CHUNK)
        if not raw:
            at_end()
        *whole, rest = (self.buffers.get(source, b"") + raw).split(b"\n")
        self.buffers[source] = rest
        return [json.loads(message) for message in whole]

    def end(self) -> int:
        """The node's process has ended: so does this one."""
        _, status = os.waitpid(self.child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            name = signal.Signals(-code).name
            self.tell("failed", kind="killed", rank=None, cause=f"the agent's process was killed by {name}")
        shutil.rmtree(self.notes, ignore_errors=True)
        if not self.shared:
            shutil.rmtree(self.folder, ignore_errors=True)
        return 0 if code == 0 else 1

    def end_all(self) -> NoReturn:
        """Kill every process below this one, and its group, itself among them. A stand-in for the run's folder stays, with its logs."""
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(self.notes, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)
        raise AssertionError("a process survived SIGKILL")


def _reads(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None


def main() -> int:
    """Read the job and keep it."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    events = os.dup(1)
    os.dup2(2, 1)  # what anything else prints is no event
    raw = b""
    while not raw.endswith(b"\n"):  # not a byte more than the job: select has to see the next
        if not (byte := os.read(0, 1)):
            return 1
        raw += byte
    try:
        job = Job.from_line(raw)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    os.environ.update(job.environment)
    own_code_first()
    os.environ["HYDRAFT_HOST"] = job.hosts[job.here]
    return Keeper(job, events).run()


if __name__ == "__main__":
    sys.exit(main())

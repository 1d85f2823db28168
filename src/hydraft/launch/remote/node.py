"""The ranks of one host, in a process that its agent has forked: prepares model and ops, then runs torch's elastic agent.

Its events go to the agent, and from there to the launcher. No torch at module level.
"""

import io
import json
import logging
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from hydraft.config.schema import load_config
from hydraft.errors import ConfigError, Failure, FailureReason, RankFailed
from hydraft.launch.local import elastic
from hydraft.launch.local.shutdown import Preempted, ShutdownHandler, Stopped
from hydraft.launch.remote.protocol import LaunchSpec, failed, line
from hydraft.models import prepare, quantised_copy
from hydraft.plan import swap_space
from hydraft.runs.consistency import canonical
from hydraft.system import files, hardware, limits, temporary
from hydraft.system.plain_console import PlainConsole
from hydraft.system.source_tree import INSTALLED, ROOT
from hydraft.training import deepspeed_ops

PIECE = 1 << 20
"""Bytes of a file that are sent at once."""


@dataclass(frozen=True)
class NodeRun:
    """The part of a run on one host."""

    spec: LaunchSpec
    folder: Path
    """The run's folder, or a temporary one in its place if this host does not see it."""
    shared: bool
    """Whether it is the run's folder."""
    notes: Path
    """Where ranks leave process ids, heartbeats and failures."""
    terminal: str | None
    """What rank 0 prints to."""


class EventStream(io.TextIOBase):
    """A text stream whose lines are sent as events for the screen."""

    def __init__(self, events: int) -> None:
        self.events = events
        self.incomplete = ""

    def write(self, text: str) -> int:
        *lines, self.incomplete = (self.incomplete + text).split("\n")
        for text_line in filter(str.strip, lines):
            _send(self.events, event="say", text=text_line)
        return len(text)


def run(node: NodeRun, commands: int, events: int) -> NoReturn:
    """Run the ranks of this host; never returns.

    Args:
        node: the part of the run on this host.
        commands: file descriptor from which the command ``go`` is read.
        events: file descriptor to which events are written.
    """
    code, final = 1, {}
    try:
        final = _run(node, commands, events)
        code = 0
    except RankFailed as error:
        final = failed(error.failure)
    except Stopped as error:
        by_agent = error.number == signal.SIGHUP
        reason = FailureReason.stopped if by_agent else FailureReason.interrupted
        final = failed(Failure(reason, str(error), signal=error.number))
    except BaseException as error:
        if not isinstance(error, ConfigError):
            traceback.print_exc()  # the launcher writes it to train.log
        final = failed(Failure.from_exception(error))
    if not node.shared:
        _send_files(node.folder, events, everything=node.spec.here == 0)
    _send(events, **final)
    sys.stderr.flush()
    os._exit(code)  # this process is a fork of the agent: it must not continue the agent's main()


def _run(node: NodeRun, commands: int, events: int) -> dict[str, Any]:
    """Prepare, wait for the command ``go``, and run the ranks; returns the event ``done``."""
    spec = node.spec
    with ShutdownHandler(spec.grace) as shutdown:
        _prepare(node, events)
        _send(events, event="prepared")
        with os.fdopen(commands) as stream:
            go = json.loads(stream.readline())
        config = elastic.NodeConfig(len(spec.hosts), spec.here, go["endpoint"], go["listen"], spec.token)
        ranks = elastic.LocalRanks(node.folder, node.notes, spec.ranks, node.terminal, config)
        try:
            elastic.start(ranks, hardware.detect(), shutdown)
        except Preempted as error:
            return {"event": "done", "step": error.step, "signal": error.number}
    return {"event": "done"}


def _prepare(node: NodeRun, events: int) -> None:
    """Prepare what the ranks need: config, model, ops and fork server.

    Raises:
        ConfigError: this host cannot run them.
    """
    spec, folder = node.spec, node.folder
    limits.raise_open_files(spec.ranks)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    if Path(spec.cwd).is_dir():
        os.chdir(spec.cwd)
    elif not INSTALLED:
        os.chdir(ROOT)
    if not node.shared:
        files.write_text(folder / "config.yaml", spec.config)
    config = load_config(folder / "config.yaml")
    if canonical(config) != spec.config:
        raise ConfigError(f"{folder}/config.yaml differs from the launcher's config: is another run in that folder?")
    machine = hardware.detect()
    if machine.unusable:
        raise ConfigError(machine.unusable)
    if machine.gpus and machine.count < spec.ranks:
        raise ConfigError(f"cluster.ranks_per_node={spec.ranks}: it has {machine.count} GPUs")
    os.environ.update(deepspeed_ops.environment(machine))
    # Beside another busy process, threads that spin while they wait slow a run on a CPU a hundredfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    screen = EventStream(events)
    files.check_cache()
    prepare.check(config.model)
    swap_space.check(config)
    console = PlainConsole(file=cast(IO[str], screen), width=200)
    prepare.native(config.model, config.seed, console, storage=quantised_copy.of_run(config))
    for built in deepspeed_ops.prepare(deepspeed_ops.needed(config, machine), machine):
        screen.write(f"{built}\n")
    elastic.start_fork_server(machine)


def _send_files(folder: Path, events: int, everything: bool) -> None:
    """Send the files of ``folder`` to the launcher; from a node without rank 0, only its ranks' logs."""
    for file in sorted(folder.rglob("*" if everything else "rank-*.log")):
        if not file.is_file() or file.name in ("config.yaml", ".launch") or file.name.startswith(temporary.OWNER):
            continue
        with file.open("rb") as source:
            while True:
                piece = source.read(PIECE)
                last = len(piece) < PIECE
                _send(events, event="file", name=str(file.relative_to(folder)), data=piece, last=last)
                if last:
                    break


def _send(events: int, **event: Any) -> None:
    view = memoryview(line(**event))
    while view:
        view = view[os.write(events, view) :]

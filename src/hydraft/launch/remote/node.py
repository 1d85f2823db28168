"""One host's work, in a process of its own: model and ops are prepared, then the elastic agent runs the ranks.

Its events go to the agent that forked it, and from there to the launcher. No torch at module level.
"""

import io
import json
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from rich.console import Console

from hydraft.config.schema import load_config
from hydraft.errors import ConfigError, RankFailed
from hydraft.launch.local import elastic
from hydraft.launch.local.shutdown import Preempted, Stopped, Wish
from hydraft.launch.remote import rendezvous
from hydraft.launch.remote.protocol import Job, line
from hydraft.models import prepare
from hydraft.runs.consistency import canonical
from hydraft.system import files, hardware
from hydraft.system.source_tree import ROOT
from hydraft.training import deepspeed_ops

PIECE = 1 << 20
"""Bytes of a file that travel at once."""


class Told(io.TextIOBase):
    """A stream whose lines become events for the screen."""

    def __init__(self, events: int) -> None:
        self.events = events
        self.rest = ""

    def write(self, text: str) -> int:
        *whole, self.rest = (self.rest + text).split("\n")
        for said in filter(str.strip, whole):
            _tell(self.events, event="say", text=said)
        return len(text)


def run(
    job: Job, folder: Path, shared: bool, notes: Path, terminal: str | None, commands: int, events: int
) -> NoReturn:
    """Do this host's part of ``job``; never returns.

    Args:
        job: what to do.
        folder: the run's folder, or its stand-in where the launcher's file system is another.
        shared: which of the two.
        notes: where ranks leave word of themselves.
        terminal: what rank 0 shows itself on.
        commands: a file descriptor to read ``go`` from.
        events: a file descriptor to tell events to.
    """
    code = 1
    try:
        with Wish(job.grace) as wish:
            _prepare(job, folder, shared, events)
            _tell(events, event="prepared")
            with os.fdopen(commands) as told:
                endpoint = json.loads(told.readline())["endpoint"]
            place = elastic.Place(len(job.hosts), job.here, endpoint, job.token, rendezvous.environment(endpoint))
            elastic.start(folder, notes, job.ranks, hardware.detect(), wish, terminal, place)
        outcome: dict[str, Any] = {"event": "done"}
        code = 0
    except Preempted as error:
        outcome = {"event": "done", "step": error.step, "signal": error.number}
        code = 0
    except RankFailed as error:
        config_error = error.cause.startswith("ConfigError: ")
        outcome = {
            "event": "failed", "kind": "config" if config_error else error.kind, "rank": error.rank,
            "cause": error.cause.removeprefix("ConfigError: "),
        }  # fmt: skip
    except ConfigError as error:
        outcome = {"event": "failed", "kind": "config", "rank": None, "cause": str(error)}
    except Stopped as error:
        kind = "stopped" if error.number == signal.SIGHUP else "asked"  # by the agent, or by a signal from outside
        outcome = {"event": "failed", "kind": kind, "rank": None, "cause": str(error), "signal": error.number}
    except BaseException as error:
        traceback.print_exc()  # the launcher keeps it in train.log
        outcome = {"event": "failed", "kind": "raised", "rank": None, "cause": f"{type(error).__name__}: {error}"}
    if not shared:
        _bring_home(folder, events, everything=job.here == 0)
    _tell(events, **outcome)
    sys.stderr.flush()
    os._exit(code)  # not through what main() would still do: this is a fork of it


def _prepare(job: Job, folder: Path, shared: bool, events: int) -> None:
    """Put all in place that the ranks will look for.

    Raises:
        ConfigError: this host cannot run it.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    os.chdir(job.cwd if Path(job.cwd).is_dir() else ROOT)
    if not shared:
        files.write_text(folder / "config.yaml", job.config)
    config = load_config(folder / "config.yaml")
    if canonical(config) != job.config:
        raise ConfigError(f"{folder}/config.yaml is not the launcher's: is another run in that folder?")
    machine = hardware.detect()
    if machine.unusable:
        raise ConfigError(machine.unusable)
    if machine.gpus and machine.count < job.ranks:
        raise ConfigError(f"cluster.ranks_per_node={job.ranks}: it has {machine.count} GPUs")
    os.environ.update(deepspeed_ops.environment(machine))
    # Beside another busy process, threads that spin while they wait slow a run on a CPU a hundredfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    screen = Told(events)
    prepare.check(config.model)
    prepare.native(config.model, config.seed, Console(file=cast(IO[str], screen), width=200))
    for said in deepspeed_ops.prepare(deepspeed_ops.needed(config, machine), machine):
        screen.write(f"{said}\n")
    elastic.warm(machine)


def _bring_home(folder: Path, events: int, everything: bool) -> None:
    """Send the files of ``folder`` to the launcher; of a node without rank 0, its ranks' logs."""
    for file in sorted(folder.rglob("*" if everything else "rank-*.log")):
        if not file.is_file() or file.name in ("config.yaml", ".launch"):
            continue
        with file.open("rb") as source:
            while True:
                piece = source.read(PIECE)
                _tell(events, event="file", name=str(file.relative_to(folder)), data=piece)
                if len(piece) < PIECE:
                    break


def _tell(events: int, **event: Any) -> None:
    view = memoryview(line(**event))
    while view:
        view = view[os.write(events, view) :]

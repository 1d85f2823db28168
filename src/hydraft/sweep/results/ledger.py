"""What a sweep knows of its jobs: ``ledger.jsonl``, a line an event, only ever appended to. No torch.

The last event of a job is its state. Any process of any machine that sees the folder may write: a line is written whole,
under a lock, and one that was cut off by a crash or a full disk is passed over. Whoever works on a job holds a lock of the
job's own, which the kernel takes back from the dead: so a job that is "running" and whose lock is free is not running.
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hydraft.config.schema import Config, saved
from hydraft.config.sweep import SweepConfig
from hydraft.errors import ConfigError
from hydraft.system import files
from hydraft.system.source_tree import ROOT

FILE = "ledger.jsonl"
ABOUT = "sweep.json"
MARK = "hydraft sweep"
FORMAT = 1
"""Of ledger.jsonl and sweep.json."""

ADDED_SECTIONS = ("objective",)
"""Sections that earlier versions did not have. At their default they are not part of a job's identity, so that the jobs of an older
sweep keep theirs."""

Objective = float | list[float]


class State(Enum):
    pending = "pending"
    running = "running"
    done = "done"
    failed = "failed"
    refused = "refused"
    pruned = "pruned"
    interrupted = "interrupted"


OVER = (State.done, State.failed, State.refused, State.pruned)
"""Not to be run again, unless a person asks for it."""


@dataclass
class Job:
    """One run of a sweep."""

    key: str
    """Hash of its config, less what does not matter."""
    name: str
    """Its folder, below the sweep's."""
    overrides: list[str] = field(default_factory=list)
    """Its whole command line."""
    state: State = State.pending
    objective: Objective | None = None
    error: str | None = None
    """Why it failed or was refused, in a line."""
    attempt: int = 0
    """How often it was begun."""
    host: str | None = None
    pid: int | None = None
    """Of the process that last told of it."""
    time: float = 0.0
    """Of its last event, in seconds since 1970."""
    started: float | None = None
    """When its last attempt began."""


def key_of(config: Config) -> str:
    """The identity of a job: a hash of its config, independent of where the project's folder is."""
    config = replace(config, resume=None, sweep=SweepConfig())
    default = Config()
    unused = [name for name in ADDED_SECTIONS if getattr(config, name) == getattr(default, name)]
    text = saved(config, leave_out=unused).replace(str(ROOT), "ROOT")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Ledger:
    """The ledger of the sweep in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / FILE
        self._names: dict[str, str] = {}

    def jobs(self) -> dict[str, Job]:
        """Every job by its key, in the order in which they were added."""
        found: dict[str, Job] = {}
        for event in self.events():
            job = found.setdefault(event["job"], Job(event["job"], event["name"]))
            job.state = State(event["state"])
            job.overrides = event.get("overrides", job.overrides)
            job.objective, job.error = event.get("objective"), event.get("error")
            job.host, job.pid, job.time = event["host"], event["pid"], event["time"]
            if job.state is State.running:
                job.attempt, job.started = job.attempt + 1, job.time
        return found

    def events(self) -> Iterator[dict[str, Any]]:
        """Every event that was written whole, oldest first."""
        try:
            lines = self.file.read_bytes().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                event = json.loads(line)
                if isinstance(event, dict) and "job" in event:
                    yield event
            except ValueError:  # cut off
                continue

    def add(self, jobs: Sequence[Job]) -> list[Job]:
        """New jobs, each with a folder name that no other has.

        Returns:
            The jobs as they are known; whoever came first has named them.
        """
        with self._lock():
            known = self.jobs()
            taken = {job.name.casefold() for job in known.values()}
            for job in jobs:
                if job.key in known:
                    continue
                if job.name.casefold() in taken or (self.folder / job.name).exists():
                    job.name = f"{job.name}~{job.key[:8]}"
                self._append(job.key, job.name, job.state, overrides=job.overrides, error=job.error)
                known[job.key] = job
                taken.add(job.name.casefold())
            return [known[job.key] for job in jobs]

    def tell(self, key: str, state: State, **more: Any) -> None:
        """An event: ``more`` is ``objective`` or ``error``.

        Raises:
            OSError: it could not be written (a full disk); the ledger is as it was.
        """
        with self._lock():
            if key not in self._names:
                self._names = {job.key: job.name for job in self.jobs().values()}
            self._append(key, self._names[key], state, **more)

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Have a job to oneself, as long as this process or one forked from it lives; False where another has it."""
        (self.folder / ".locks").mkdir(exist_ok=True)
        lock = FileLock(self.folder / ".locks" / key)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def is_claimed(self, key: str) -> bool:
        """Whether some process is at work on a job."""
        with self.claim(key) as free:
            return not free

    def _lock(self) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".ledger.lock")

    def _append(self, key: str, name: str, state: State, **more: Any) -> None:
        event = {"time": time.time(), "job": key, "name": name, "state": state.value}
        event |= {name: value for name, value in more.items() if value is not None}
        event |= {"host": socket.gethostname(), "pid": os.getpid()}
        line = (json.dumps(event, ensure_ascii=False) + "\n").encode()
        handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line  # after what a crash has cut off
            try:
                if os.write(handle, line) != len(line):
                    raise OSError(28, "No space left on device")
            except OSError:
                os.ftruncate(handle, size)
                raise
        finally:
            os.close(handle)


def begin(folder: Path, about: dict[str, Any]) -> None:
    """Make ``folder`` a sweep's: write ``sweep.json``, or see that what is there is one.

    Raises:
        ConfigError: something else is in it, or a sweep that this version cannot read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".ledger.lock"):
        if (folder / ABOUT).exists():
            known = read_about(folder)
            axes = list(dict.fromkeys([*known.get("axes", []), *about.get("axes", [])]))
            if axes != known.get("axes", []):
                files.write_json(folder / ABOUT, {**known, "axes": axes})
            return
        strange = [
            entry.name for entry in folder.iterdir() if entry.name not in (".ledger.lock", "multirun.yaml", "optuna")
        ]
        if strange:
            raise ConfigError(
                f"{folder}: holds something other than a sweep ({sorted(strange)[0]}): name another folder"
            )
        files.write_json(folder / ABOUT, {"mark": MARK, "format": FORMAT, **about})


def read_about(folder: Path) -> dict[str, Any]:
    """What ``sweep.json`` says.

    Raises:
        ConfigError: it is not there, or not one that this version can read.
    """
    try:
        known = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: not a sweep's folder (no {ABOUT} in it)") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / ABOUT}: cannot be read ({error})") from None
    if not isinstance(known, dict) or known.get("mark") != MARK:
        raise ConfigError(f"{folder / ABOUT}: was not written by hydraft")
    if known.get("format") != FORMAT:
        raise ConfigError(f"{folder / ABOUT}: has format {known.get('format')}, and this version reads {FORMAT}")
    return known

"""The ledger of a sweep, ``ledger.jsonl``: one line per event of a job, append-only. No torch.

The last event of a job is its state. Any process on any machine that can access the folder may write: each line is written at
once, under a lock, and a line that was cut off by a crash is skipped, and removed before the next one is written. The process that runs a job holds a lock of
that job, which the kernel releases when the process ends: so a job with state "running" and a free lock is not running.
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
from operator import attrgetter
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hydraft.config.schema import Config, saved
from hydraft.config.sweep import SweepConfig
from hydraft.errors import ConfigError
from hydraft.system import files, line_file
from hydraft.system.source_tree import portable

FILE = "ledger.jsonl"
ABOUT = "sweep.json"
MARK = "hydraft sweep"
BEFORE_A_SWEEP = (".ledger.lock", "multirun.yaml", "optuna", "lost+found")
"""What may be in the folder of a new sweep: files of a start that failed, and what file systems make."""
FORMAT = 1
"""Version of the format of ledger.jsonl and sweep.json."""

ADDED = (
    "objective", "model.hub", "data.thinking", "data.columns", "data.labels", "data.on_bad_record",
    "model.cache_quantised", "model.rope", "model.rope_factor", "data.eval_seed", "sweep.replicas", "sweep.decide", "sweep.max_replicas", "sweep.budget", "sweep.stop_at",
    "lora.start", "train.patience", "train.min_delta", "train.best_by", "train.keep", "train.show_answers", "tracker.name", "tracker.notes",
    "debug", "data.benchmark", "data.benchmark_shots", "data.benchmark_limit", "data.benchmark_chat",
    "train.profile",
    "optimizer.kind", "optimizer.momentum", "optimizer.lora_plus",
    "train.min_learning_rate", "train.warmup_steps", "train.decay_ratio", "train.decay_power", "train.neftune_alpha", "train.label_smoothing",
    "lora.exclude_modules", "lora.layers", "lora.rank_pattern", "lora.alpha_pattern", "lora.modules_to_save",
    "zero.nvme_path", "zero.aio", "zero.hpz_partition_size", "zero.quantized_weights", "zero.quantized_gradients",
)  # fmt: skip
"""Sections and settings that earlier versions did not have. At their default they are not part of a job's identity, so that the jobs of
an older sweep keep theirs."""

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
"""States of jobs that are not run again, except failed ones with ``sweep.retry_failed``."""


@dataclass
class Job:
    """A run of a sweep."""

    key: str
    """Its identity: ``key_of`` its config."""
    name: str
    """Its folder below the sweep's."""
    overrides: list[str] = field(default_factory=list)
    """All overrides of its command line."""
    state: State = State.pending
    objective: Objective | None = None
    error: str | None = None
    """Why it failed or was refused, in one line."""
    attempt: int = 0
    """How often it was started."""
    host: str | None = None
    pid: int | None = None
    """Of the process that recorded its last event."""
    time: float = 0.0
    """Time of its last event, in seconds since 1970."""
    started: float | None = None
    """When its last attempt started."""


def key_of(config: Config) -> str:
    """The identity of a job: a hash of its config, independent of where the project's folder is."""
    config = replace(config, resume=None, sweep=SweepConfig())
    default = Config()
    unused = [name for name in ADDED if attrgetter(name)(config) == attrgetter(name)(default)]
    text = portable(saved(config, leave_out=unused, earlier=True))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Ledger:
    """The ledger of the sweep in ``folder``. Each event is read once: a ledger of 10,000 jobs has 30,000."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / FILE
        self._known: dict[str, Job] = {}
        self._offset = 0
        """Bytes whose events are in ``_known``."""

    def jobs(self) -> dict[str, Job]:
        """Every job by its key, in the order in which they were added."""
        self._catch_up()
        return {key: Job(**vars(job)) for key, job in self._known.items()}

    def job(self, key: str) -> Job:
        """One job."""
        self._catch_up()
        return Job(**vars(self._known[key]))

    def _catch_up(self) -> None:
        """Apply the events that were written since the last call."""
        for event in self._new_events():
            job = self._known.setdefault(event["job"], Job(event["job"], event["name"]))
            job.state = State(event["state"])
            job.overrides = event.get("overrides", job.overrides)
            job.objective, job.error = event.get("objective"), event.get("error")
            job.host, job.pid, job.time = event["host"], event["pid"], event["time"]
            if job.state is State.running:
                job.attempt, job.started = job.attempt + 1, job.time

    def _new_events(self) -> Iterator[dict[str, Any]]:
        """Every complete event after ``_offset``, oldest first."""
        try:
            with self.file.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._offset:  # written anew, or a line was taken back
                    self._known, self._offset = {}, 0
                file.seek(self._offset)
                found = file.read()
        except FileNotFoundError:
            self._known, self._offset = {}, 0
            return
        for line in found.splitlines(keepends=True):
            try:
                event = json.loads(line)
            except ValueError:  # cut off, or not complete yet
                event = None
            if event is None and not line.endswith(b"\n"):
                return
            self._offset += len(line)
            if isinstance(event, dict) and "job" in event:
                yield event

    def add(self, jobs: Sequence[Job]) -> list[Job]:
        """Add new jobs, each with a unique folder name.

        Returns:
            The jobs as they are in the ledger; one that was added before keeps its name.
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

    def record(self, key: str, state: State, **more: Any) -> None:
        """Append an event; ``more`` is ``objective`` or ``error``.

        Raises:
            OSError: it could not be written (a full disk); the ledger is unchanged.
        """
        with self._lock():
            if key not in self._known:
                self._catch_up()
            self._append(key, self._known[key].name, state, **more)

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Lock a job for this process and those forked from it; False if another process holds the lock."""
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

    def is_claimed(self, key: str, seconds: float = 0.0) -> bool:
        """Whether a process runs a job; ``seconds``: how long to wait for its last processes, which end after it was killed."""
        deadline = time.monotonic() + seconds
        while True:
            with self.claim(key) as free:
                if free or time.monotonic() >= deadline:
                    return not free
            time.sleep(0.05)

    def _lock(self) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".ledger.lock")

    def _append(self, key: str, name: str, state: State, **more: Any) -> None:
        event = {"time": time.time(), "job": key, "name": name, "state": state.value}
        event |= {name: value for name, value in more.items() if value is not None}
        event |= {"host": socket.gethostname(), "pid": os.getpid()}
        line_file.append(self.file, event)


def begin(folder: Path, about: dict[str, Any]) -> None:
    """Write ``sweep.json`` into ``folder``, or check the one that is there.

    Raises:
        ConfigError: the folder holds something else, or a sweep that this version cannot read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".ledger.lock"):
        if (folder / ABOUT).exists():
            known = read_about(folder)
            axes = list(dict.fromkeys([*known.get("axes", []), *about.get("axes", [])]))
            replicas = max(known.get("replicas", 1), about.get("replicas", 1))
            before = known.get("replicas", 1)
            if axes != known.get("axes", []) or replicas != before:
                looks = known.get("looks", 1) + (1 < before < replicas)  # more seeds, after what the first have shown
                files.write_json(folder / ABOUT, {**known, "axes": axes, "replicas": replicas, "looks": looks})
            return
        refuse_others(folder, str(folder))
        files.write_json(folder / ABOUT, {"mark": MARK, "format": FORMAT, **about})


def refuse_others(folder: Path, place: str) -> None:
    """Refuse the folder of a new sweep, ``place`` in messages, if something else is in it.

    Raises:
        ConfigError: names what is there, or why it cannot be looked into.
    """
    try:
        other = sorted({entry.name for entry in folder.iterdir()} - set(BEFORE_A_SWEEP))
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}: name another folder") from None
    if other:
        raise ConfigError(f"{place}: holds something other than a sweep ({other[0]}): name another folder")


def read_about(folder: Path) -> dict[str, Any]:
    """The content of ``sweep.json``.

    Raises:
        ConfigError: there is none, or this version cannot read it.
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

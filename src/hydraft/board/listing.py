"""Every run and sweep below the roots, read again as often as the page asks, at the cost of what has changed. No torch."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydraft.board import process
from hydraft.board.record import LIVE, Run
from hydraft.board.roots import Root
from hydraft.board.settings import differing
from hydraft.errors import ConfigError
from hydraft.sweep.results import ledger
from hydraft.sweep.results.progress import Follower
from hydraft.system import program
from hydraft.system.redaction import redact_line, redact_text

DEPTH = 8
"""Folders below a root in which runs are looked for."""
MOST_FOLDERS = 20_000
EVERY = 0.5
"""Seconds for which what was read is not read again."""
SETTLED = 2.0
"""Seconds after which a folder's modification time tells whether anything has been added to it."""
MARKS = ("metrics.jsonl", "result.json", "plan.json", "train.log")
"""Files of a run; a folder with one of them and no config.yaml is shown as damaged."""


@dataclass
class Sweep:
    """A sweep's folder and what was read of it."""

    id: str
    folder: Path
    follower: Follower
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the ledger says of a job, by the name of its folder."""
    about: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None

    def read(self) -> None:
        """Read the ledger's new events."""
        try:
            self.about, self.reason = ledger.read_about(self.folder), None
        except ConfigError as error:
            known = (self.folder / ledger.ABOUT).exists()  # else it is one of Hydra's own launcher, which has no ledger
            self.about, self.reason = {}, redact_text(str(error)) if known else None
        try:
            self.follower.read()
            self.jobs = {job.name: self._job(job) for job in self.follower.jobs.values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.reason = redact_text(f"{ledger.FILE}: {type(error).__name__}: {error}")

    def _job(self, job: ledger.Job) -> dict[str, Any]:
        alive = process.is_alive(job.host or "", job.pid or 0, job.time) if job.state is ledger.State.running else None
        return {"state": job.state.value, "error": job.error, "started": job.started, "time": job.time, "alive": alive}

    def show(self, runs: list[Run]) -> dict[str, Any]:
        """What the table shows of it."""
        counts = Counter(run.shown["state"] for run in runs)
        live = [run for run in runs if run.shown["state"] in LIVE]
        active = any(run.shown["state"] != "queued" for run in live) or (bool(live) and process.runs_sweep(self.folder))
        left = self.follower.all_left() if active else None
        command = self.about.get("command")
        state = "unreadable" if self.reason else "running" if active else "interrupted" if live else "completed"
        started = [run.shown["started"] for run in runs if run.shown["started"]]
        return {
            "id": self.id,
            "name": str(self.about.get("name") or self.folder.name),
            "state": state,
            "counts": dict(counts),
            "jobs": len(runs),
            "left": None if left is None else round(left, 1),
            "started": self.about.get("created") or min(started, default=None),
            "moved": max((run.shown["moved"] for run in runs), default=0),
            "objective": self.about.get("objective") or [],
            "direction": self.about.get("direction") or [],
            "command": redact_line(command) if isinstance(command, str) else "",
            "note": self.reason or "",
        }


class Listing:
    """What is below the roots; ``changes`` may be called by any thread."""

    def __init__(self, roots: list[Root]) -> None:
        self.roots = roots
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.notes: dict[str, str] = {}
        """Why a folder is not shown as a run, by its id."""
        self.keys: list[str] = []
        """The settings that differ between the runs."""
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._version = 0
        self._entries: dict[Path, tuple[int, list[tuple[str, bool]]]] = {}
        self._published: dict[str, tuple[int, dict[str, Any]]] = {}
        """By kind and id, the version of the last change and what is shown."""
        self._gone: dict[str, int] = {}

    def changes(self, since: int = 0) -> dict[str, Any]:
        """What has changed after a version; 0 for everything."""
        with self._lock:
            if time.monotonic() - self._read_at > EVERY:
                self._read()
                self._read_at = time.monotonic()
            whole = since <= 0 or since > self._version
            found: dict[str, list[Any]] = {"run": [], "sweep": [], "note": []}
            for name, (version, shown) in self._published.items():
                if whole or version > since:
                    found[name.partition(":")[0]].append(shown)
            gone = [] if whole else [name for name, version in self._gone.items() if version > since]
            return {
                "version": self._version, "whole": whole, "keys": self.keys, "runs": found["run"], "sweeps": found["sweep"],
                "notes": found["note"], "gone": gone, "now": round(time.time(), 1),
                "command": program.typed("train"),
                "roots": [{"label": root.label, "folder": str(root.folder), "exists": root.folder.is_dir()} for root in self.roots],
            }  # fmt: skip

    def run(self, name: str) -> Run | None:
        """A run by its id, once it has been listed."""
        with self._lock:
            return self.runs.get(name)

    def _read(self) -> None:
        found: dict[str, tuple[Path, str | None]] = {}
        sweeps: dict[str, Path] = {}
        self.notes, self._left = {}, MOST_FOLDERS
        for root in self.roots:
            for kind, name, folder, of in self._walk(root.folder, root.label, None, 0):
                if kind == "sweep":
                    sweeps[name] = folder
                else:
                    found[name] = folder, of
        self.sweeps = {name: self.sweeps.get(name) or Sweep(name, at, Follower(at)) for name, at in sweeps.items()}
        for sweep in self.sweeps.values():
            sweep.read()
            for job in sweep.jobs:  # also those that have not begun
                if "/" not in job and job not in (".", ".."):
                    found.setdefault(f"{sweep.id}/{job}", (sweep.folder / job, sweep.id))
        self.runs = {name: self.runs.get(name) or Run(name, at, parent) for name, (at, parent) in found.items()}
        changed = False
        for run in self.runs.values():
            group = self.sweeps.get(run.sweep or "")
            changed |= run.read(group.jobs.get(run.folder.name) if group else None)
        if changed:
            self.keys = differing([run.config for run in self.runs.values() if run.config])
        self._publish()

    def _publish(self) -> None:
        by_sweep: dict[str, list[Run]] = {}
        for run in self.runs.values():
            by_sweep.setdefault(run.sweep or "", []).append(run)
        now: dict[str, dict[str, Any]] = {}
        for name, run in self.runs.items():
            now[f"run:{name}"] = {
                **run.shown,
                "settings": {key: run.config[key] for key in self.keys if key in run.config},
            }
        for name, sweep in self.sweeps.items():
            now[f"sweep:{name}"] = sweep.show(by_sweep.get(name, []))
        for name, note in self.notes.items():
            now[f"note:{name}"] = {"id": name, "note": note}
        different = {
            name for name, shown in now.items() if name not in self._published or self._published[name][1] != shown
        }
        gone = self._published.keys() - now.keys()
        if different or gone:
            self._version += 1
        self._gone = {name: version for name, version in self._gone.items() if name not in now}
        self._gone.update(dict.fromkeys(gone, self._version))
        self._published = {
            name: (self._version, shown) if name in different else self._published[name] for name, shown in now.items()
        }

    def _walk(
        self, folder: Path, name: str, sweep: str | None, depth: int
    ) -> Iterator[tuple[str, str, Path, str | None]]:
        """Runs and sweeps at and below a folder: kind, id, folder, and the sweep that a run belongs to. Links are not followed."""
        self._left -= 1
        if self._left < 0 or depth > DEPTH:
            self.notes[name] = (
                "too many folders: name one further down" if self._left < 0 else "too deep below the folder"
            )
            return
        try:
            entries = self._entries_of(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            self.notes[name] = str(error.strerror)
            return
        files = {entry for entry, is_folder in entries if not is_folder}
        if "config.yaml" in files:
            yield "run", name, folder, sweep
            return
        if files & {ledger.ABOUT, ledger.FILE, "multirun.yaml"}:
            yield "sweep", name, folder, None
            sweep = name
        elif any(mark in files for mark in MARKS) and sweep is None:
            self.notes[name] = "no config.yaml in it"
            return
        for entry, is_folder in entries:
            if is_folder and not entry.startswith("."):
                yield from self._walk(folder / entry, f"{name}/{entry}", sweep, depth + 1)

    def _entries_of(self, folder: Path) -> list[tuple[str, bool]]:
        """Names in a folder, and whether each is a folder; from memory if nothing was added or removed since."""
        changed = os.stat(folder).st_mtime_ns
        known = self._entries.get(folder)
        if known is not None and known[0] == changed:
            return known[1]
        with os.scandir(folder) as found:
            entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)
        entries = [(name, is_folder) for name, is_folder in entries if _is_text(name)]
        if time.time() - changed / 1e9 > SETTLED:
            self._entries[folder] = changed, entries
        return entries


def _is_text(name: str) -> bool:
    """Whether a name can be sent as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True

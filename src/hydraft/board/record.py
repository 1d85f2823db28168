"""What the table shows of one run, read from the files in its folder. No torch."""

import math
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydraft.board import lines, process
from hydraft.board.settings import settings
from hydraft.sweep.results.progress import Progress
from hydraft.system import files
from hydraft.system.redaction import redact_text

ENDS = {
    "completed": "completed",
    "failed": "failed",
    "diverged": "diverged",
    "preempted": "stopped",
    "interrupted": "stopped",
}
"""States by the ``status`` in result.json. A run that a signal ended is ``stopped``; ``interrupted`` is one whose process is gone."""

LIVE = ("queued", "starting", "running", "evaluating", "saving")
"""States of a run that has not ended."""

TAIL = 1 << 14
"""Bytes at the end of metrics.jsonl that are read of a run that has ended."""

SILENT = 3600.0
"""Seconds without a logged step after which a run on another host is no longer believed to run: a container that is gone leaves the
name of its host behind."""

UNSEEN = 600.0
"""Seconds for which a job that another host has begun is believed to start, before it holds the lock of its run."""

WATCHED = ("config.yaml", "plan.json", "result.json", "metrics.jsonl", process.HOLDER)


@dataclass
class Run:
    """A run and what was read of it."""

    id: str
    folder: Path
    sweep: str | None = None
    """The id of the sweep that it is a job of."""
    config: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    """Why its folder cannot be read."""
    shown: dict[str, Any] = field(default_factory=dict)
    """What the table shows."""
    _seen: dict[str, tuple[int, int, int] | None] = field(default_factory=dict)
    _result: dict[str, Any] = field(default_factory=dict)
    _plan: dict[str, Any] = field(default_factory=dict)
    _last: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    """The last training step and the last evaluation in metrics.jsonl."""
    _told: dict[str, Any] | None = None
    """What the ledger said."""
    _files: dict[str, str] = field(default_factory=dict)

    def read(self, job: dict[str, Any] | None = None) -> bool:
        """Read what has changed; ``job`` is what the sweep's ledger says of it.

        Returns:
            Whether its config has changed.
        """
        self._files = self._files or {name: str(self.folder / name) for name in WATCHED}
        now = {name: _signature(file) for name, file in self._files.items()}
        before, self._seen = self._seen, now
        if before == now and job == self._told and not now[process.HOLDER] and self.shown["state"] != "starting":
            return False
        self._told = job
        changed = [name for name in WATCHED if not before or now[name] != before[name]]
        if "config.yaml" in changed:
            self._read_config()
        if "result.json" in changed:
            self._result = files.read_object(self.folder / "result.json") if now["result.json"] else {}
        if "plan.json" in changed:
            self._plan = files.read_object(self.folder / "plan.json") if now["plan.json"] else {}
        if "metrics.jsonl" in changed:
            self._last = lines.ends(self.folder / "metrics.jsonl", TAIL) if now["metrics.jsonl"] else ({}, {})
        self._show(process.holder(self.folder) if now[process.HOLDER] else None, job or {})
        return "config.yaml" in changed

    def _read_config(self) -> None:
        self.config, self.reason = {}, None
        try:
            handle = os.open(self.folder / "config.yaml", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(handle, "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ValueError("it is no file")
                self.config = settings(file.read(1 << 20).decode("utf-8"))
        except FileNotFoundError:
            self.reason = None  # a job that has not begun
        except (OSError, ValueError, RecursionError) as error:
            text = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
            self.reason = redact_text(f"config.yaml: {text}")

    def _show(self, holder: dict[str, Any] | None, job: dict[str, Any]) -> None:
        result, (trained, evaluated) = self._result, self._last
        step, steps = _count(trained.get("step")), _count(self._plan.get("steps"))
        state = self._state(holder, job, (step, steps, _count(evaluated.get("step"))))
        live, error = state in LIVE, result.get("error")
        after = {} if live else _numbers(result.get("after"))
        scores = after or {
            key.removeprefix("eval_"): value for key, value in _numbers(evaluated).items() if key != "step"
        }
        cause = (error.get("cause") if isinstance(error, dict) else None) if not live else None
        note = job.get("error") or cause or self.reason or ""
        end = _number(result.get("ended")) if not live else None
        self.shown = {
            "id": self.id,
            "name": self.folder.name if self.sweep else self.id.partition("/")[2] or self.id,
            "sweep": self.sweep,
            "state": state,
            "step": step if step is not None or live else _count(result.get("steps")),
            "steps": steps,
            "loss": _number(trained.get("loss")),
            "scores": scores,
            "tokens": _count(trained.get("tokens")),
            "speed": _number(trained.get("tokens_per_second")) if live else _speed(result),
            "left": self._left(trained, steps) if state == "running" else None,
            "started": _number(job.get("started"))
            or _number(result.get("started") if not live else None)
            or self._began(),
            "ended": end,
            "moved": round(self._moved() or _number(job.get("time")) or 0, 1),
            "peak": _count(result.get("peak_memory_bytes")),
            "planned": _planned(self._plan),
            "host": holder["host"] if holder and holder["alive"] is None else None,
            "signal": result.get("signal") if state == "stopped" else None,
            "note": redact_text(" ".join(str(note).split()))[:500],
        }

    def _moved(self) -> float:
        """When anything of it was last written."""
        return max((seen[1] for name, seen in self._seen.items() if seen and name != "plan.json"), default=0) / 1e9

    def _state(self, holder: dict[str, Any] | None, job: dict[str, Any], at: tuple[int | None, ...]) -> str:
        """The state, by who holds the run's lock, how it ended, and what the ledger of its sweep says."""
        if holder is not None and (
            holder["alive"] or (holder["alive"] is None and time.time() - self._moved() < SILENT)
        ):
            return self._phase(*at)
        told, status = job.get("state"), str(self._result.get("status"))
        if told in ("pruned", "refused", "failed") and not (told == "failed" and status == "diverged"):
            return str(told)
        if told == "pending":
            return "queued"
        lately = job.get("alive") or (job.get("alive") is None and time.time() - (job.get("time") or 0) < UNSEEN)
        if told == "running" and lately and status == "None":
            return "starting"  # its lock is not held yet
        if status in ENDS:
            return ENDS[status]
        if told == "done":
            return "completed"
        if self.reason is not None:
            return "unreadable"
        if not any(self._last) and (self.folder / "job.sbatch").exists():
            return "queued"
        return "interrupted"

    def _phase(self, step: int | None, steps: int | None, evaluated: int | None) -> str:
        """What a run does whose lock is held."""
        evaluates = self.config.get("data.eval") is not None
        if step is None:
            return "starting" if evaluated is None else "running"
        every = self.config.get("train.eval_every")
        due = evaluates and type(every) is int and step % every == 0
        if steps is not None and step >= steps:
            return "saving" if not evaluates or evaluated == step else "evaluating"
        return "evaluating" if due and evaluated != step else "running"

    def _left(self, trained: dict[str, Any], steps: int | None) -> float | None:
        """Seconds until its last step at its current speed, as the table of a running sweep reckons them."""
        progress = Progress(self.folder, total=steps, step=_count(trained.get("step")) or 0)
        progress.tokens, progress.speed = _count(trained.get("tokens")) or 0, _number(trained.get("tokens_per_second"))
        found = progress.training_left
        return None if found is None else round(found, 1)

    def _began(self) -> float | None:
        """When its config was written."""
        seen = self._seen.get("config.yaml")
        return None if seen is None else round(seen[1] / 1e9, 1)


def _signature(file: str) -> tuple[int, int, int] | None:
    try:
        found = os.lstat(file)
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def _numbers(value: Any) -> dict[str, float]:
    found = value.items() if isinstance(value, dict) else ()
    return {str(key): number for key, one in found if (number := _number(one)) is not None}


def _number(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None


def _count(value: Any) -> int | None:
    return value if type(value) is int else None


def _speed(result: dict[str, Any]) -> float | None:
    tokens, seconds = _number(result.get("tokens")), _number(result.get("train_seconds"))
    return round(tokens / seconds, 1) if tokens and seconds else None


def _planned(plan: dict[str, Any]) -> int | None:
    """Planned bytes of the training phase of a rank, in the memory that it trains in."""
    cost = plan.get("cost")
    memory = cost.get("memory") if isinstance(cost, dict) else None
    parts = memory.get("training" if plan.get("gpu_memory") else "host_training") if isinstance(memory, dict) else None
    return int(sum(_numbers(parts).values())) if isinstance(parts, dict) else None

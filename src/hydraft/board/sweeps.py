"""A sweep's report for the page: what report.html of the sweep shows, from its files as they are now. No torch."""

import os
import threading
from pathlib import Path
from typing import Any

from hydraft.errors import ConfigError
from hydraft.infer.serve.errors import ApiError
from hydraft.system.redaction import redact, redact_text

_lock = threading.Lock()
_reports: dict[Path, tuple[tuple[tuple[int, int] | None, ...], dict[str, Any]]] = {}

MOST = 20
"""Reports that are kept in memory."""


def report(folder: Path) -> dict[str, Any]:
    """The content of report.html, of the sweep in ``folder``; read again if its ledger or a job has changed.

    Raises:
        ApiError: there is no sweep in it that this version can read.
        OSError: a file cannot be read.
    """
    from hydraft.sweep.results import html, reading

    now = _state(folder)
    with _lock:
        if folder in _reports and _reports[folder][0] == now:
            return _reports[folder][1]
        try:
            found = redact(html.content(reading.read(folder)))
        except ConfigError as error:
            raise ApiError(404, redact_text(str(error))) from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ApiError(
                500, redact_text(f"The sweep's files are damaged: {type(error).__name__}: {error}")
            ) from None
        while len(_reports) >= MOST:
            del _reports[next(iter(_reports))]
        _reports[folder] = now, found
        return dict(found)


def _state(folder: Path) -> tuple[tuple[int, int] | None, ...]:
    """What changes with the sweep: its ledger, its jobs, and what they log."""
    jobs = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    names = ["ledger.jsonl", *(f"{job}/{name}" for job in jobs for name in ("metrics.jsonl", "result.json"))]
    return tuple(_signature(folder / name) for name in names)


def _signature(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns

"""One run, or a few side by side: settings, memory, answers, commands and files. No torch."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydraft.board.record import Run
from hydraft.board.roots import file_in
from hydraft.board.settings import is_column
from hydraft.config import printed, text
from hydraft.config.schema import Config
from hydraft.evaluation import answers
from hydraft.sweep.results.axes import flat
from hydraft.system import files
from hydraft.system.redaction import redact, redact_command, redact_text

PHASES = (
    ("loading", "peak_memory_loading_bytes"),
    ("training", "peak_memory_bytes"),
    ("scoring", "peak_memory_scoring_bytes"),
)
"""Phases of the plan, and the measured peak of each in result.json."""

MOST_ANSWERS = 500


def run(one: Run) -> dict[str, Any]:
    """Everything about a run but its curves and logs."""
    folder = one.folder
    result, environment = (files.read_object(folder / name) for name in ("result.json", "environment.json"))
    default = _defaults()
    return {
        **one.shown,
        "folder": str(folder),
        "config": {key: _shown(value) for key, value in one.config.items()},
        "changed": [key for key, value in one.config.items() if is_column(key) and default.get(key, value) != value],
        "result": redact(files.finite({key: result[key] for key in result if key not in ("divergence",)})),
        "environment": redact(files.finite(environment)),
        "command": _command(environment),
        "resume": printed.command("train", printed.override("resume", _typed(folder))),
        "memory": memory(one),
        "logs": logs_in(folder),
        "has_answers": file_in(folder, answers.FILE) is not None,
        "checkpoints": sorted(_folders(folder / "checkpoints")),
    }


def memory(one: Run) -> dict[str, Any] | None:
    """Planned bytes of one rank by phase and part, beside the measured peak of the rank with the highest.

    On a GPU, neither has the memory of the driver and the allocator's unused memory; on a CPU it is resident memory at the end.
    None if there is no plan.
    """
    plan, result = (files.read_object(one.folder / name) for name in ("plan.json", "result.json"))
    cost = plan.get("cost")
    memory = cost.get("memory") if isinstance(cost, dict) else None
    if not isinstance(memory, dict):
        return None
    on_gpu = plan.get("gpu_memory") is not None
    phases = []
    for phase, key in PHASES if on_gpu else PHASES[1:2]:
        parts = memory.get(phase if on_gpu else f"host_{phase}")
        if not isinstance(parts, dict):
            continue
        kept = {
            name: size
            for name, size in parts.items()
            if type(size) is int and size > 0 and not (on_gpu and name == "overhead")
        }
        measured = result.get(key)
        phases.append(
            {
                "phase": phase,
                "parts": kept,
                "planned": sum(kept.values()),
                "measured": measured if type(measured) is int else None,
            }
        )
    limit = plan.get("gpu_memory" if on_gpu else "host_memory")
    return {"gpu": on_gpu, "phases": phases, "limit": limit if type(limit) is int else None, "fits": plan.get("fits")}


def configs(runs: Sequence[Run]) -> dict[str, Any]:
    """The settings of runs side by side; ``None`` where a run does not have a setting."""
    keys = list(dict.fromkeys(key for one in runs for key in one.config))
    default = _defaults()
    rows = []
    for key in keys:
        values = [_shown(one.config[key]) if key in one.config else None for one in runs]
        known = {value for value in values if value is not None}
        rows.append(
            {
                "key": key,
                "values": values,
                "differs": len(known) > 1 and is_column(key),
                "default": _shown(default[key]) if key in default else None,
            }
        )
    return {"runs": [one.id for one in runs], "rows": rows}


def side_by_side(runs: Sequence[Run], step: int | None) -> dict[str, Any]:
    """The answers of one run before and after training, or of two runs after it (or at ``step``), to the same records.

    Raises:
        OSError: the answers cannot be read.
    """
    by_run = [answers.read(one.folder) if file_in(one.folder, answers.FILE) else {} for one in runs]
    steps = [list(found) for found in by_run]
    if not all(by_run):
        return {"steps": steps, "rows": [], "at": []}
    if len(runs) == 1:
        at = [steps[0][0], step if step in by_run[0] else steps[0][-1]]
        chosen = [by_run[0][one] for one in at]
    else:
        at = [step if step in found else list(found)[-1] for found in by_run]
        chosen = [found[one] for found, one in zip(by_run, at, strict=True)]
    pairs = answers.paired(chosen[0], chosen[1])[:MOST_ANSWERS]
    rows = [
        {
            "record": pair.first.record, "task": pair.first.task, "prompt": redact_text(pair.first.prompt),
            "reference": redact_text(pair.first.reference),
            "answers": [{"text": redact_text(line.answer), "right": line.is_right, "scores": files.finite(line.scores)} for line in (pair.first, pair.second)],
        }
        for pair in pairs
    ]  # fmt: skip
    return {"steps": steps, "at": at, "rows": rows}


def logs_in(folder: Path) -> list[str]:
    """The names of the logs in a run's folder: that of the run first, then those of its ranks."""
    try:
        found = [
            name for name in os.listdir(folder) if name.endswith((".log", ".out", ".err")) and file_in(folder, name)
        ]
    except OSError:
        return []
    return sorted(found, key=lambda name: (name != "train.log", name != "job.log", len(name), name))


def _command(environment: dict[str, Any]) -> str:
    command = environment.get("command")
    words = [str(word) for word in command] if isinstance(command, list) else []
    return shlex.join(["python", *redact_command(words)]) if words else ""


def _typed(folder: Path) -> str:
    """A folder as one would type it in the working directory."""
    here = Path.cwd()
    return str(folder.relative_to(here)) if here in folder.parents else str(folder)


def _defaults() -> dict[str, Any]:
    """The schema's own values by dotted name."""
    return flat(text.plain(Config()))


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as found:
            return [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []

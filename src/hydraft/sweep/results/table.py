"""The ranked table of a sweep for the terminal, and ``summary.csv``. No torch."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from hydraft.config import printed, score
from hydraft.evaluation import metrics
from hydraft.sweep.results.axes import Axis, number
from hydraft.sweep.results.ledger import State
from hydraft.sweep.results.objective import shown
from hydraft.sweep.results.outcome import Outcome, Sweep
from hydraft.system import files
from hydraft.system.redaction import redact

FILE = "summary.csv"
RUNS = "replicas.csv"
"""With several seeds: a line per job, while summary.csv has one per point."""

ROWS = 40
"""Rows of the table on the terminal; summary.csv has all jobs."""

WIDEST = 36
"""Most characters of a cell."""

LOOKS = {
    State.done: "green", State.running: "cyan", State.pending: "dim", State.failed: "red", State.refused: "red",
    State.pruned: "yellow", State.interrupted: "yellow",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column of the ranked table."""

    key: str
    label: str
    value: Callable[[Outcome], Any]
    """The value to sort by; None if a job has none."""
    show: Callable[[Any], str] = number
    word: bool = False
    """Whether it is text, which is aligned to the left."""
    spare: int = 0
    """Columns with the highest number are dropped first on a narrow terminal; 0 is never dropped."""

    def shown(self, outcome: Outcome) -> str:
        """A job's value as text."""
        value = self.value(outcome)
        return "" if value is None else self.show(value)


def columns(sweep: Sweep) -> list[Column]:
    """The columns of the table; of the settings only those that differ."""
    found = [Column("rank", "#", lambda outcome: outcome.rank, str)]
    found += [_setting(axis) for axis in sweep.axes]
    if not sweep.axes:
        found.append(Column("job", "job", lambda outcome: outcome.job.name, str, word=True))
    names = _scores(sweep)
    first = names[0] if names and names[0] != "loss" and names[0] not in sweep.objectives else None
    if first:
        found.append(
            Column(
                f"after/{first}", f"{first.replace('_', ' ')} after", _score("after", first), _shown_as(first), spare=1
            )
        )
    for which in range(len(sweep.objectives)):
        found.append(_objective(sweep, which))
        if sweep.runs:
            found.append(_interval(sweep, which))
    if sweep.runs:
        found.append(Column("seeds", "seeds", lambda outcome: outcome.seeds, str))
        found.append(Column("p", "p", lambda outcome: outcome.p, lambda p: f"{p:.3f}"))
    for name in names:
        label = name.replace("_", " ")
        found.append(Column(f"before/{name}", f"{label} before", _score("before", name), _shown_as(name), spare=3))
        if name != first and (name != "loss" or sweep.objectives != ["held-out loss"]):
            found.append(Column(f"after/{name}", f"{label} after", _score("after", name), _shown_as(name), spare=2))
    found += [
        Column("tokens_per_second", "tokens/s", lambda outcome: outcome.speed, lambda value: f"{value:,.0f}", spare=4),
        Column("peak_memory", "GiB", lambda outcome: outcome.peak, lambda value: f"{value / 2**30:.2f}", spare=5),
        Column("seconds", "time", lambda outcome: outcome.seconds, duration, spare=1),
        Column("state", "state", lambda outcome: outcome.job.state.value, str, word=True),
    ]
    return [column for column in found if any(column.value(o) is not None for o in sweep.outcomes) or not column.spare]


def show(sweep: Sweep, console: Console) -> None:
    """Print the ranked table, what failed, and the command of the best job."""
    table = columns(sweep)
    shown = sweep.outcomes[:ROWS]
    drawn = _drawn(sweep, table, shown)
    while _width(drawn, console) > console.width and any(column.spare for column in table):
        least = max(column.spare for column in table)
        table = [column for column in table if column.spare != least]
        drawn = _drawn(sweep, table, shown)
    console.print(drawn)
    if len(sweep.outcomes) > len(shown):
        console.print(f"… and {len(sweep.outcomes) - len(shown)} more in {FILE}", highlight=False, soft_wrap=True)
    causes: dict[str, int] = {}
    for outcome in sweep.outcomes:
        if outcome.job.state in (State.failed, State.refused):
            cause = f"{outcome.job.state.value}: {outcome.error or 'unknown cause'}"
            causes[cause] = causes.get(cause, 0) + 1
    for cause, count in causes.items():
        console.print(Text(f"{count} {cause}", style="red"), soft_wrap=True)
    for finding in sweep.findings:
        console.print(Text(finding), soft_wrap=True)
    if sweep.best:
        console.print(Text(f"to run the best again: {sweep.best.command}"), soft_wrap=True)
        for what, command in sweep.best.uses:
            console.print(Text(f"{what}: {command}"), soft_wrap=True)
    for command in uploads(sweep.folder):
        console.print(
            Text(f"the dashboard's files are on this machine; to upload those of all jobs: {command}"), soft_wrap=True
        )


def uploads(folder: Path) -> list[str]:
    """The commands that upload the offline runs of all jobs to their dashboards."""
    found = []
    for program, part in (("wandb", "wandb/offline-run-*"), ("swanlab", "swanlog/run-*")):
        if next(folder.glob(f"*/{part}"), None) is not None:
            found.append(f"{program} sync {printed.shell_word(printed.short_path(folder))}/*/{part}")
    return found


def write(sweep: Sweep) -> Path:
    """Write ``summary.csv``: one line per job or point, ranked, with unrounded numbers; with several seeds also ``replicas.csv``.

    Raises:
        OSError: it could not be written.
    """
    if sweep.runs:
        _write(replace(sweep, outcomes=sweep.runs, runs=[]), RUNS)
    return _write(sweep, FILE)


def _write(sweep: Sweep, name: str) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows(rows(sweep))
    target = sweep.folder / name
    files.write_text(target, text.getvalue())
    return target


def rows(sweep: Sweep) -> list[list[Any]]:
    """What ``summary.csv`` has: the names of the columns, then a row per job or point, without secrets."""
    scores = [
        (when, name)
        for when in ("after", "before", "best")
        for name in score.ordered(list(dict.fromkeys(name for o in sweep.outcomes for name in o.result.get(when, {}))))
    ]
    head = ["rank", "job", "state", *(axis.key for axis in sweep.axes), *sweep.objectives]
    pointwise = [f"{name} {end}" for name in sweep.objectives for end in ("low", "high")] + [
        "difference",
        "difference low",
        "difference high",
        "seeds",
        "p",
    ]
    head += pointwise if sweep.runs else []
    head += [f"{when}/{name}" for when, name in scores]
    head += ["train_loss", "steps", "tokens", "tokens_per_second", "peak_memory_bytes", "seconds", "error", "command"]
    found: list[list[Any]] = [head]
    for o in sweep.outcomes:
        goals = [o.objectives[i] if i < len(o.objectives) else None for i in range(len(sweep.objectives))]
        row = [o.rank, o.job.name, o.job.state.value, *(o.values.get(axis.key) for axis in sweep.axes), *goals]
        if sweep.runs:
            row += [end for ends in o.intervals or [None] * len(sweep.objectives) for end in ends or (None, None)]
            row += [*(o.difference or (None,) * 3), o.seeds, o.p]
        row += [o.result.get(when, {}).get(name) for when, name in scores]
        row += [o.result.get(name) for name in ("train_loss", "steps", "tokens")]
        found.append([redact(value) for value in (*row, o.speed, o.peak, o.seconds, o.error, o.command)])
    return found


def duration(seconds: float) -> str:
    """A duration as text: 48 s, 3:20, 2:05:00."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _drawn(sweep: Sweep, table: list[Column], outcomes: list[Outcome]) -> Table:
    drawn = Table(title=f"{sweep.folder}: {sweep.counts}", title_justify="left")
    for column in table:
        drawn.add_column(Text(column.label), justify="left" if column.word else "right", no_wrap=True, max_width=WIDEST)
    for outcome in outcomes:
        look = "bold" if outcome.rank == 1 else LOOKS[outcome.job.state] if outcome.rank is None else ""
        drawn.add_row(*(Text(column.shown(outcome)) for column in table), style=look)
    return drawn


def _width(drawn: Table, console: Console) -> int:
    """Terminal columns of a table in which nothing is cut."""
    return Measurement.get(console, console.options.update(width=10_000, max_width=10_000), drawn).maximum


def _setting(axis: Axis) -> Column:
    return Column(axis.key, axis.label, lambda outcome: outcome.values.get(axis.key), word=not axis.numeric)


def _objective(sweep: Sweep, which: int) -> Column:
    name = sweep.objectives[which]

    def value(outcome: Outcome) -> float | None:
        return outcome.objectives[which] if which < len(outcome.objectives) else None

    return Column(f"objective/{name}", name, value, lambda found: shown(name, found))


def _interval(sweep: Sweep, which: int) -> Column:
    name = sweep.objectives[which]

    def value(outcome: Outcome) -> str | None:
        ends = outcome.intervals[which] if which < len(outcome.intervals) else None
        return None if ends is None else " – ".join(shown(name, end) for end in ends)

    return Column(f"interval/{name}", "95 % interval", value, str, word=True)


def _score(when: str, name: str) -> Callable[[Outcome], Any]:
    return lambda outcome: (outcome.result.get(when) or {}).get(name)


def _shown_as(name: str) -> Callable[[Any], str]:
    return lambda value: metrics.shown(name, value)


def _scores(sweep: Sweep) -> list[str]:
    """The main held-out scores: the task's own, and the loss."""
    known = list(dict.fromkeys(name for o in sweep.outcomes for name in o.result.get("after") or {}))
    first, answers = score.main(known), [name for name in known if name not in ("loss", "empty")]
    loss = [name for name in known if name == "loss"]
    return loss + answers[:1] if first is None else [first, *loss]

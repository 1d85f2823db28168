"""``report.html`` of a sweep: one file that needs no network, in light and dark mode. No torch.

Its content is JSON that the page's script inserts as text, never as HTML. plotly.js is included gzipped, which makes the file about
2 MB, and a content security policy forbids network requests.
"""

import base64
import functools
import gzip
import json
import math
import string
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from hydraft.config import score
from hydraft.evaluation import answers, metrics
from hydraft.sweep.results import charts, charts_multi, scales
from hydraft.sweep.results.axes import number
from hydraft.sweep.results.ledger import State
from hydraft.sweep.results.objective import shown
from hydraft.sweep.results.outcome import Outcome, Sweep
from hydraft.sweep.results.plot_style import Chart, noun
from hydraft.sweep.results.table import columns, duration
from hydraft.system import files
from hydraft.system.redaction import redact

FILE = "report.html"

ANSWERS = 10
"""Held-out records whose answers are shown."""


def write(sweep: Sweep) -> Path:
    """Write ``report.html`` into the sweep's folder.

    Raises:
        OSError: it could not be written.
    """
    target = sweep.folder / FILE
    files.write_text(target, page(redact(content(sweep))))
    return target


def page(found: dict[str, Any]) -> str:
    """The whole file; characters that could end a script element are escaped as in JSON."""
    data = json.dumps(found, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter, spelled in (("<", "\\u003c"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):
        data = data.replace(letter, spelled)
    title = found["title"].replace("&", "&amp;").replace("<", "&lt;")
    return string.Template(_part("report.html")).substitute(
        title=title,
        style=_part("colours.css") + _part("report.css"),
        script=_part("charts.js") + _part("report.js"),
        data=data,
        plotly=plotly() if found["sections"] else "",
    )


@functools.cache
def plotly() -> str:
    """plotly.js, gzipped, as base64; plotly itself is not imported, which would take half a second."""
    script = resources.files("plotly").joinpath("package_data/plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(script, 9, mtime=0)).decode()


def content(sweep: Sweep) -> dict[str, Any]:
    """Everything that the page shows."""
    common = _common(sweep)
    table = columns(sweep)
    sections = list(_sections(sweep))
    return {
        "title": sweep.name,
        "subtitle": f"{len(sweep.jobs)} jobs: {sweep.counts}"
        + (f"; {len(sweep.outcomes)} points, each the mean of its seeds" if sweep.runs else ""),
        "findings": sweep.findings,
        "noun": noun(sweep),
        "command": sweep.command,
        "tiles": _tiles(sweep),
        "best": _best(sweep),
        "answers": _answers(sweep),
        "note": "" if sections else "There is nothing to plot yet.",
        "sections": sections,
        "failures": _failures(sweep),
        "columns": [{"key": column.key, "label": column.label, "word": column.word} for column in table],
        "rows": [
            {
                "name": outcome.job.name,
                "best": outcome.rank == 1,
                "text": f"{outcome.job.name} {outcome.job.state.value} {outcome.error}",
                "cells": [[_safe(column.value(outcome)), column.shown(outcome)] for column in table],
            }
            for outcome in sweep.outcomes
        ],
        "common": {key: _as_text(value) for key, value in common.items()},
        "jobs": {outcome.job.name: _job(outcome, common) for outcome in [*sweep.runs, *sweep.outcomes]},
    }


def _sections(sweep: Sweep) -> Iterator[dict[str, Any]]:
    several = len(sweep.objectives) > 1
    by_objective: list[Chart] = []
    crossed: list[Chart] = []
    for which, name in enumerate(sweep.objectives):
        by_objective += [{**chart, "choice": name} for chart in charts.against(sweep, which)]
        more = f"{name}: " if several else ""
        crossed += [{**chart, "choice": f"{more}{chart['choice']}"} for chart in charts_multi.heat(sweep, which)]
    goals = ", ".join(
        f"{name} ({'lower' if least else 'higher'} is better)"
        for name, least in zip(sweep.objectives, sweep.minimize, strict=True)
    )
    for title, select, found in (
        ("Objectives", "", charts_multi.front(sweep)),
        ("Differences", "", charts_multi.differences(sweep)),
        (f"Each setting against the {goals}", "objective", by_objective),
        ("All settings", "", charts_multi.parallel(sweep)),
        ("Pairs of settings", "pair", crossed),
        ("Training", "show", charts.curves(sweep)),
        ("Memory and speed", "", charts.cost(sweep)),
    ):
        if found:
            yield {"title": title, "select": select, "charts": [_with_stops(chart) for chart in found]}


def _with_stops(chart: Chart) -> Chart:
    for way in chart.get("recolor", []):
        if way["ramp"]:
            way["stops"] = [scales.shade(part / 4) for part in range(5)]
    return chart


def _tiles(sweep: Sweep) -> list[list[str]]:
    """The tiles at the top: name, value and note."""
    over = sweep.count(State.done)
    tiles = [["jobs done", f"{over} of {len(sweep.jobs)}", _rest(sweep)]]
    if sweep.best:
        scores = sweep.best.result.get("after") or {}
        first = score.main(scores)
        if first and first not in sweep.objectives:
            before = (sweep.best.result.get("before") or {}).get(first)
            note = "" if before is None else f"{metrics.shown(first, before)} before training"
            tiles.append([f"{first.replace('_', ' ')} of the best", metrics.shown(first, scores[first]), note])
        least = ["lowest" if least else "highest" for least in sweep.minimize]
        for name, value, word in zip(sweep.objectives, sweep.best.objectives, least, strict=False):
            tiles.append(
                [
                    f"{word} {name}" if len(sweep.objectives) == 1 else name,
                    shown(name, value),
                    _before(sweep.best, name),
                ]
            )
    seconds = [outcome.seconds for outcome in sweep.jobs if outcome.seconds]
    if seconds:
        tiles.append(["time of all jobs", duration(sum(seconds)), f"{duration(sum(seconds) / len(seconds))} a job"])
    tokens = sum(outcome.result.get("tokens") or 0 for outcome in sweep.jobs)
    if tokens:
        tiles.append(["tokens trained", f"{tokens:,}", ""])
    return tiles


def _rest(sweep: Sweep) -> str:
    left = [state for state in State if state is not State.done]
    return ", ".join(f"{sweep.count(state)} {state.value}" for state in left if sweep.count(state))


def _before(outcome: Outcome, name: str) -> str:
    before = outcome.result.get("before", {}).get("loss")
    return f"{number(before)} before training" if before is not None and name == "held-out loss" else ""


def _best(sweep: Sweep) -> dict[str, Any] | None:
    if sweep.best is None:
        return None
    what = ", ".join(f"{axis.key} {number(sweep.best.values.get(axis.key))}" for axis in sweep.axes)
    note = "This command runs it again. It is the best by the first objective among the jobs on the Pareto front."
    return {
        "title": f"The best of {sum(o.rank is not None for o in sweep.outcomes)}: {what or sweep.best.job.name}",
        "note": note if len(sweep.objectives) > 1 else "This command runs it again:",
        "command": sweep.best.command,
        "uses": [{"note": f"{what}:", "command": command} for what, command in sweep.best.uses],
    }


def _answers(sweep: Sweep) -> list[dict[str, Any]]:
    """The answers of the best job to the first ``ANSWERS`` held-out records, before and after training."""
    if sweep.best is None:
        return []
    try:
        found = answers.before_and_after(sweep.best.folder, ANSWERS)
    except OSError:
        return []
    return [
        {
            "prompt": pair.first.prompt,
            "reference": pair.first.reference,
            "answers": [[one.answer, one.is_right] for one in (pair.first, pair.second)],
        }
        for pair in found
    ]


def _failures(sweep: Sweep) -> list[dict[str, Any]]:
    """Jobs that did not complete, by their cause; the most frequent cause first."""
    found: dict[tuple[State, str], list[Outcome]] = {}
    for outcome in sweep.jobs:
        if outcome.job.state in (State.failed, State.refused, State.interrupted):
            found.setdefault((outcome.job.state, outcome.error), []).append(outcome)
    return [
        {
            "cause": cause or ("interrupted" if state is State.interrupted else "unknown cause"),
            "note": f"{len(jobs)} {state.value}; logs are in each job's folder: train.log, rank-0.log",
            "jobs": [outcome.job.name for outcome in jobs],
        }
        for (state, cause), jobs in sorted(found.items(), key=lambda pair: -len(pair[1]))
    ]


def _common(sweep: Sweep) -> dict[str, Any]:
    """The settings that all jobs share; the others are listed with each job."""
    configs = [outcome.config for outcome in sweep.outcomes if outcome.config]
    return {
        key: value
        for key, value in (configs[0] if configs else {}).items()
        if all(c.get(key) == value for c in configs)
    }


def _job(outcome: Outcome, common: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a job."""
    job, result = outcome.job, outcome.result
    facts = [
        ["state", job.state.value + (f", attempt {job.attempt}" if job.attempt > 1 else "")],
        ["folder", str(outcome.folder)],
    ]
    facts += [["error", outcome.error]] if outcome.error else []
    for when in ("before", "after"):
        known = result.get(when) or {}
        scores = {name: known[name] for name in score.ordered(known) if isinstance(known[name], (int, float))}
        facts += (
            [[f"held-out, {when}", ", ".join(f"{k.replace('_', ' ')} {number(v)}" for k, v in scores.items())]]
            if scores
            else []
        )
    facts += _best_evaluation(result)
    if result.get("ended"):
        facts.append(["ended", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(result["ended"]))])
    mine = {key: _as_text(value) for key, value in outcome.config.items() if key not in common}
    return {"facts": facts, "command": outcome.command, "config": mine}


def _best_evaluation(result: dict[str, Any]) -> Iterator[list[str]]:
    """Of which evaluation the weights are, and whether the training ended early."""
    if kept := result.get("kept"):
        name = str(kept["best_by"]).replace("_", " ")
        yield ["weights", f"of step {kept['step']:,}, the best held-out {name}, {number(kept['score'])}"]
    if early := result.get("ended_early"):
        yield ["ended early", f"step {early['step']:,} of {early['of']:,}, with train.patience={early['patience']}"]


def _as_text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _safe(value: Any) -> Any:
    """A value that JSON can represent."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _part(name: str) -> str:
    return resources.files("hydraft.sweep.results").joinpath("page", name).read_text(encoding="utf-8")

"""Charts of several settings or objectives: parallel coordinates, heat map and Pareto front. No torch."""

import itertools
import math
import statistics
from typing import Any

from hydraft.sweep.results import scales
from hydraft.sweep.results.axes import Axis, number
from hydraft.sweep.results.outcome import Outcome, Sweep
from hydraft.sweep.results.plot_style import (
    MARKS,
    Chart,
    error_bars,
    named,
    noun,
    scored,
    some,
    text,
    tick,
    upper,
    value_axis,
)  # fmt: skip

LINES = 200
"""Most lines of the parallel coordinates."""

ROWS = 30
"""Most points of the differences from the best."""

TOLD = 0.05
"""A difference with a lower p is told (``comparison.LEVEL``)."""

PAIRS = 15
"""Most pairs of axes with a heat map."""


def parallel(sweep: Sweep) -> list[Chart]:
    """Every job as a line through its settings to its objective."""
    jobs = [outcome for outcome in sweep.outcomes if outcome.objectives and all(map(math.isfinite, outcome.objectives))]
    if not jobs or not sweep.axes:
        return []
    ends = [Axis(name, tuple(sorted({o.objectives[i] for o in jobs}))) for i, name in enumerate(sweep.objectives)]
    columns = [*sweep.axes, *ends]
    traces: list[dict[str, Any]] = []
    drawn, more = some(jobs, LINES)
    for outcome in reversed(drawn):
        given = [*(outcome.values.get(axis.key) for axis in sweep.axes), *outcome.objectives]
        places = [scales.place(axis, value) for axis, value in zip(columns, given, strict=True)]
        for i, least in enumerate(sweep.minimize, len(sweep.axes)):
            places[i] = 1 - place if least and (place := places[i]) is not None else places[i]
        best = outcome.rank == 1
        goal = places[len(sweep.axes)]
        traces.append(
            {
                "type": "scatter", "mode": "lines", "x": list(range(len(columns))), "y": places,
                "name": text(outcome.job.name), "meta": outcome.job.name, "hoverinfo": "name",
                "hovertemplate": f"%{{fullData.name}}<br>{text(_reached(sweep, outcome))}<extra></extra>",
                "line": {
                    "width": 4 if best else 1.5,
                    "color": "var:accent" if best else scales.shade(1 - (goal or 0)),
                },
                "opacity": 1 if best else max(0.25, 0.8 - len(drawn) / 300),
            }
        )  # fmt: skip
    layout = {
        "xaxis": {
            "tickvals": list(range(len(columns))), "ticktext": [text(axis.key) for axis in columns], "side": "top",
            "range": [-0.25, len(columns) - 0.45], "showgrid": True, "zeroline": False, "fixedrange": True,
        },
        "yaxis": {"visible": False, "range": [-0.06, 1.06], "fixedrange": True},
        "annotations": [
            _tick(column, value, flip=column >= len(sweep.axes) and sweep.minimize[column - len(sweep.axes)], axis=axis)
            for column, axis in enumerate(columns)
            for value in _shown(axis)
        ],
    }  # fmt: skip
    note = f"Each line is a {noun(sweep)}, from its settings to its objective: the best is at the top on the right, and bold.{more}"
    return [
        {
            "title": f"Which settings lead to the best {noun(sweep)}s", "note": note, "traces": traces, "layout": layout,
            "height": 420,
            "least_width": 130 * len(columns),
        }
    ]  # fmt: skip


def differences(sweep: Sweep) -> list[Chart]:
    """With several seeds: how far the best points are from the best, and the interval of that."""
    known = [outcome for outcome in sweep.outcomes if outcome.difference is not None]
    if not known or sweep.best is None:
        return []
    drawn = known[:ROWS]
    apart = [outcome.p is not None and outcome.p < TOLD for outcome in drawn]
    more = f" The best {ROWS} of {len(known) + 1:,} points." if len(known) > ROWS else ""
    found = [outcome.difference or (0, 0, 0) for outcome in drawn]
    trace = {
        "type": "scatter", "mode": "markers", "x": [mean for mean, _, _ in found],
        "y": [text(outcome.job.name) for outcome in drawn], "customdata": [outcome.job.name for outcome in drawn],
        "text": [f"p = {outcome.p:.3f}" for outcome in drawn],
        "hovertemplate": "%{y}<br>%{x:.4f}, %{text}<extra></extra>",
        "marker": {"size": 9, "color": ["var:warm" if one else "var:accent" for one in apart]},
        "error_x": {
            "type": "data", "symmetric": False, "color": "var:muted", "thickness": 1.5, "width": 4,
            "array": [high - mean for mean, _, high in found], "arrayminus": [mean - low for mean, low, _ in found],
        },
    }  # fmt: skip
    return [
        {
            "title": f"Difference from the best, {sweep.best.job.name}",
            "note": f"Bars are 95 % intervals, paired by record and seed; orange points can be told from the best, the others cannot.{more}",
            "traces": [trace],
            "layout": {
                "xaxis": {"title": f"difference in {text(sweep.objectives[0])}", "zeroline": True, "zerolinewidth": 2},
                "yaxis": {**named([outcome.job.name for outcome in reversed(drawn)]), "showgrid": False},
            },
            "height": 130 + 26 * len(drawn),
        }
    ]  # fmt: skip


def heat(sweep: Sweep, which: int = 0) -> list[Chart]:
    """The mean objective for each pair of values of two axes; pairs whose axes explain most come first."""
    jobs = scored(sweep, which)
    name, least = sweep.objectives[which], sweep.minimize[which]
    weights = {}
    for axis in sweep.axes:
        share = scales.explained(axis, [o.values.get(axis.key) for o, _ in jobs], [s for _, s in jobs])
        weights[axis.key] = share or 0.0
    pairs = sorted(itertools.combinations(sweep.axes, 2), key=lambda p: -weights[p[0].key] - weights[p[1].key])
    charts = []
    for across, up in pairs[:PAIRS]:
        cells: dict[tuple[int, int], list[float]] = {}
        for outcome, score in jobs:
            x, y = scales.bin_of(across, outcome.values.get(across.key)), scales.bin_of(up, outcome.values.get(up.key))
            if x is not None and y is not None:
                cells.setdefault((y, x), []).append(score)
        if not cells:
            continue
        columns, rows = scales.bins(across), scales.bins(up)
        means = {cell: statistics.fmean(found) for cell, found in cells.items()}
        wide = min(means.values()) > 0 and max(means.values()) > 10 * min(means.values())
        grid = [[means.get((y, x)) for x in range(len(columns))] for y in range(len(rows))]
        counts = [[len(cells.get((y, x), [])) for x in range(len(columns))] for y in range(len(rows))]
        top = (min if least else max)(means, key=lambda cell: means[cell])
        charts.append(
            {
                "choice": f"{across.key} × {up.key}",
                "title": f"{upper(name)} by {across.key} and {up.key}",
                "note": f"Mean of the {noun(sweep)}s in a cell, dark is better; the best cell is {across.key} {columns[top[1]]} with {up.key} {rows[top[0]]}.",
                "traces": [
                    {
                        "type": "heatmap", "z": [[_logged(v) if wide else v for v in row] for row in grid],
                        "x": [text(v) for v in columns], "y": [text(v) for v in rows], "customdata": counts,
                        "text": [["" if v is None else f"{v:.3g}" for v in row] for row in grid],
                        "texttemplate": "%{text}", "hovertemplate": "%{x} · %{y}<br>%{text}, jobs: %{customdata}<extra></extra>",
                        "colorscale": [[0, "#14607a"], [0.5, "#86b8c6"], [1, "#f1e7d3"]], "reversescale": not least,
                        "showscale": False, "xgap": 2, "ygap": 2, "hoverongaps": False,
                    }
                ],
                "layout": {
                    "xaxis": {"title": text(across.key), "showgrid": False, **named(columns)},
                    "yaxis": {"title": text(up.key), "showgrid": False, **named(rows)},
                },
                "height": max(260, 120 + 44 * len(rows)),
            }
        )  # fmt: skip
    return charts


def front(sweep: Sweep) -> list[Chart]:
    """With several objectives: the first two against each other, and the Pareto front."""
    jobs = [o for o in sweep.outcomes if len(o.objectives) > 1 and all(map(math.isfinite, o.objectives))]
    if not jobs:
        return []
    best = sorted((o for o in jobs if o.on_front), key=lambda o: o.objectives[0])
    others, more = some([o for o in jobs if not o.on_front], MARKS)
    traces = []
    for part, mode, look in (
        (others, "markers", {"size": 8, "color": "var:muted", "opacity": 0.6}),
        (best, "lines+markers", {"size": 10, "color": "var:accent"}),
    ):
        traces.append(
            {
                "type": "scatter", "mode": mode, "x": [o.objectives[0] for o in part],
                "y": [o.objectives[1] for o in part],
                "text": [text(o.job.name) for o in part], "customdata": [o.job.name for o in part], "marker": look,
                "line": {"color": "var:accent", "width": 1, "dash": "dot"},
                **error_bars("error_x", part, 0), **error_bars("error_y", part, 1),
                "hovertemplate": "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
            }
        )  # fmt: skip
    first, second = ([o.objectives[i] for o in jobs] for i in (0, 1))
    return [
        {
            "title": f"{upper(sweep.objectives[1])} against {sweep.objectives[0]}",
            "note": f"{len(best)} of {len(jobs)} {noun(sweep)}s are on the line: no other {noun(sweep)} is better in both.{more}",
            "traces": traces,
            "layout": {
                "xaxis": value_axis(sweep.objectives[0], first),
                "yaxis": value_axis(sweep.objectives[1], second),
            },
            "height": 420,
        }
    ]


def _shown(axis: Axis) -> list[Any]:
    """Values with a label on an axis of the parallel coordinates, far enough apart to be read."""
    kept: list[Any] = []
    candidates = list(axis.values)
    if len(candidates) > scales.MANY:  # both ends, and the values nearest to the positions between
        aims = (0, 1, 0.5, 0.25, 0.75)
        candidates = [min(candidates, key=lambda value: abs((scales.place(axis, value) or 0) - aim)) for aim in aims]
    for value in candidates[:1] + candidates[:0:-1]:  # the ends first
        if all(abs((scales.place(axis, value) or 0) - (scales.place(axis, one) or 0)) > 0.05 for one in kept):
            kept.append(value)
    return kept


def _tick(column: int, value: Any, flip: bool, axis: Axis) -> dict[str, Any]:
    at = scales.place(axis, value) or 0.0
    return {
        "x": column, "y": 1 - at if flip else at, "text": tick(value), "showarrow": False, "xanchor": "left",
        "xshift": 4,
        "bgcolor": "var:panel", "borderpad": 1, "opacity": 0.9, "font": {"size": 11},
    }  # fmt: skip


def _reached(sweep: Sweep, outcome: Outcome) -> str:
    pairs = zip(sweep.objectives, outcome.objectives, strict=False)
    return ", ".join(f"{name} {number(value)}" for name, value in pairs)


def _logged(value: float | None) -> float | None:
    return None if value is None else math.log10(value)

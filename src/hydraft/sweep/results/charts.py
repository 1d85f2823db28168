"""Charts of a sweep's report, as dicts of plotly's traces and layouts; plotly is not imported. No torch."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from hydraft.sweep.results import scales
from hydraft.sweep.results.axes import Axis, number
from hydraft.sweep.results.outcome import Outcome, Sweep
from hydraft.sweep.results.plot_style import (
    MARKS,
    Chart,
    error_bars,
    log_ticks,
    marks,
    named,
    noun,
    scored,
    some,
    text,
    upper,
    value_axis,
)  # fmt: skip

POINTS = 150
"""Most points of a curve."""

CURVES = 150
"""Most curves of a chart."""


def curves(sweep: Sweep) -> list[Chart]:
    """Training and held-out loss of every job, step by step."""
    charts = []
    outcomes, note = some(sweep.outcomes, CURVES)
    for field, name in (("loss", "training loss"), ("eval_loss", "held-out loss")):
        drawn = [(outcome, _curve(outcome, field)) for outcome in reversed(outcomes)]
        drawn = [(outcome, points) for outcome, points in drawn if points]
        if not drawn:
            continue
        traces = [
            {
                "type": "scatter",
                "mode": "lines+markers" if field == "eval_loss" or len(points) < 4 else "lines",
                "x": [x for x, _ in points],
                "y": [y for _, y in points],
                "name": text(outcome.job.name),
                "meta": outcome.job.name,
                "opacity": 1 if outcome.rank == 1 or len(drawn) < 30 else 0.6,
                "line": {"width": 3 if outcome.rank == 1 else 1.5},
                "marker": {"size": 5},
                "hovertemplate": "%{fullData.name}<br>step %{x:,}: %{y:.4f}<extra></extra>",
            }
            for outcome, points in drawn
        ]
        values = [y for _, points in drawn for _, y in points]
        charts.append(
            {
                "choice": name,
                "title": f"{upper(name)} of each {noun(sweep)}",
                "note": f"Each line is a {noun(sweep)}{', the mean of its seeds' if sweep.runs else ''}, the best one is bold; a click on a line shows the {noun(sweep)}.{note}",
                "traces": traces,
                "layout": {"xaxis": {"title": "optimizer step"}, "yaxis": value_axis(f"{name} (nats a token)", values)},
                "recolor": _recolor(sweep, [outcome for outcome, _ in drawn]),
                "height": 420,
            }
        )
    return charts


def against(sweep: Sweep, which: int = 0) -> list[Chart]:
    """One objective against each axis; the axis that explains most comes first."""
    name, least = sweep.objectives[which], sweep.minimize[which]
    jobs = scored(sweep, which)
    charts: list[tuple[float, Chart]] = []
    for axis in sweep.axes:
        here = [
            (o, o.values.get(axis.key), s) for o, s in jobs if scales.place(axis, o.values.get(axis.key)) is not None
        ]
        if not here:
            continue
        groups: dict[str, list[float]] = {}
        for _, value, score in here:
            groups.setdefault(str(value), []).append(score)
        few = len(axis.values) <= scales.MANY
        medians = [(value, statistics.median(groups[str(value)])) for value in axis.values if str(value) in groups]
        best = (min if least else max)(medians, key=lambda pair: pair[1])[0]
        share = scales.explained(axis, [value for _, value, _ in here], [score for *_, score in here])
        at = (lambda value: value) if axis.numeric else text
        marked, note = some(here, MARKS)
        finding = f"Best median at {number(best)}" if len(medians) < len(here) and few else f"Best at {number(best)}"
        if share is not None:
            finding += f"; this setting explains {share:.0%} of the variance between jobs"
        traces: list[dict[str, Any]] = [
            {
                "type": "scatter", "mode": "markers", "x": [at(v) for _, v, _ in marked], "y": [s for *_, s in marked],
                "customdata": [o.job.name for o, *_ in marked], "text": [text(o.job.name) for o, *_ in marked],
                "hovertemplate": "%{text}<br>%{y:.4f}<extra></extra>",
                "marker": {"size": 8, "color": "var:accent", "opacity": 0.65},
                **error_bars("error_y", [o for o, *_ in marked], which),
            }
        ]  # fmt: skip
        if few and len(medians) > 1:
            traces.append(
                {
                    "type": "scatter", "mode": "lines", "x": [at(v) for v, _ in medians], "y": [m for _, m in medians],
                    "line": {"color": "var:warm", "width": 2}, "hovertemplate": "median %{y:.4f}<extra></extra>",
                }
            )  # fmt: skip
        chart = {
            "title": f"{upper(name)} against {axis.key}",
            "note": f"{finding}. {marks(sweep)}{', the line joins medians' if len(traces) > 1 else ''}.{note}",
            "traces": traces,
            "layout": {"xaxis": _setting_axis(axis), "yaxis": value_axis(name, [s for *_, s in here])},
            "height": 320,
        }
        charts.append((-1.0 if share is None else share, chart))
    return [chart for _, chart in sorted(charts, key=lambda pair: -pair[0])]


def cost(sweep: Sweep) -> list[Chart]:
    """Peak memory and throughput of each ZeRO stage."""
    charts = []
    for title, unit, of in (
        ("Peak memory of a rank by ZeRO stage", "GiB", lambda o: None if o.peak is None else o.peak / 2**30),
        ("Throughput by ZeRO stage", "tokens per second", lambda o: o.speed),
    ):
        found: dict[str, list[tuple[Outcome, float]]] = {}
        for outcome in sweep.outcomes:
            if outcome.zero and (value := of(outcome)):  # type: ignore[no-untyped-call]
                found.setdefault(outcome.zero, []).append((outcome, value))
        if not found:
            continue
        stages = sorted(found)
        medians = [statistics.median(value for _, value in found[stage]) for stage in stages]
        points, note = some(
            [(stage, outcome, value) for stage in stages for outcome, value in found[stage]], MARKS, False
        )
        traces: list[dict[str, Any]] = [
            {
                "type": "bar", "x": stages, "y": medians,
                "text": [f"{m:,.3g}" if m < 1000 else f"{m:,.0f}" for m in medians],
                "textposition": "inside", "insidetextfont": {"color": "var:panel"}, "insidetextanchor": "start",
                "width": 0.5,
                "hovertemplate": "median %{y:,.4g}<extra></extra>", "marker": {"color": "var:accent", "opacity": 0.75},
            },
            {
                "type": "scatter", "mode": "markers", "x": [s for s, *_ in points], "y": [v for *_, v in points],
                "text": [text(o.job.name) for _, o, _ in points], "customdata": [o.job.name for _, o, _ in points],
                "hovertemplate": "%{text}<br>%{y:,.4g}<extra></extra>", "marker": {"size": 6, "color": "var:warm"},
            },
        ]  # fmt: skip
        charts.append(
            {
                "title": title,
                "note": f"Bars are medians, marks are {noun(sweep)}s; {noun(sweep)}s of one stage may differ in other settings too.{note}",
                "traces": traces,
                "layout": {"xaxis": {"type": "category"}, "yaxis": {"title": unit, "rangemode": "tozero"}},
                "height": 320,
            }
        )
    return charts


def _recolor(sweep: Sweep, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Colours of the lines by each axis; the axis that explains most comes first."""
    jobs = scored(sweep, 0)
    ways = []
    for axis in sweep.axes:
        share = scales.explained(axis, [o.values.get(axis.key) for o, _ in jobs], [s for _, s in jobs])
        drawn, legend, ramp = scales.colours(axis, [outcome.values.get(axis.key) for outcome in outcomes])
        ways.append((share or 0.0, {"name": axis.key, "colours": drawn, "legend": legend, "ramp": ramp}))
    if not ways:
        return [{"name": "", "colours": ["var:accent"] * len(outcomes), "legend": [], "ramp": False}]
    return [way for _, way in sorted(ways, key=lambda pair: -pair[0])]


def _setting_axis(axis: Axis) -> dict[str, Any]:
    title = text(axis.key)
    if not axis.numeric:
        return {"title": title, **named(axis.values)}
    few = {"tickvals": list(axis.values), "ticktext": [text(value) for value in axis.values]}
    found = {"title": f"{title}, log scale", **log_ticks(axis.values)} if axis.geometric else {"title": title}
    return {**found, **(few if len(axis.values) <= scales.MANY else {})}


def _curve(outcome: Outcome, field: str) -> list[tuple[int, float]]:
    """Steps and values, at most ``POINTS``."""
    points = [(line["step"], line[field]) for line in outcome.metrics if "step" in line and _is_number(line.get(field))]
    stride = math.ceil(len(points) / POINTS) or 1
    return points[:-1:stride] + points[-1:]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)

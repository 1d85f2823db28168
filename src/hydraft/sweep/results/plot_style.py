"""Axes, labels and colours that all charts of a sweep's report share. No torch."""

import html
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from hydraft.sweep.results.axes import number
from hydraft.sweep.results.outcome import Outcome, Sweep

T = TypeVar("T")

MARKS = 1000
"""Most points of a chart."""

Chart = dict[str, Any]
"""``title`` and ``note`` are shown above it, ``traces`` and ``layout`` are for plotly, other keys for the page's script.

Colours named ``var:…`` are variables of the page's style sheet, which differ in light and dark mode.
"""


def text(value: Any) -> str:
    """A value as text that plotly does not read as HTML."""
    return html.escape(number(value) if isinstance(value, float) else str(value), quote=False)


def tick(value: Any, longest: int = 22) -> str:
    """A value as a tick label, shortened."""
    whole = number(value) if isinstance(value, float) else str(value)
    whole = " ".join(whole.split())
    return text(whole if len(whole) <= longest else f"{whole[: longest - 1]}…")


def named(values: Sequence[Any]) -> dict[str, Any]:
    """A category axis in the given order; labels are shortened, categories are not."""
    whole = [text(value) for value in values]
    ticks = {"tickvals": whole, "ticktext": [tick(value) for value in values]}
    return {"type": "category", "categoryorder": "array", "categoryarray": whole, **ticks}


def some(jobs: Sequence[T], most: int, best: bool = True) -> tuple[list[T], str]:
    """At most ``most`` of ``jobs`` and an addition to the chart's note: a page with thousands of lines would take minutes to open.

    With ``best`` they are sorted by rank, and the best half is among them; the others are taken at even distances.
    """
    if len(jobs) <= most:
        return list(jobs), ""
    first = most // 2 if best else 0
    chosen = [*range(first), *(first + i * (len(jobs) - first) // (most - first) for i in range(most - first))]
    which = f"the best {first:,} and others, taken evenly" if best else "taken evenly"
    return [jobs[index] for index in chosen], f" Of {len(jobs):,} jobs, {most:,} are drawn: {which}."


def scored(sweep: Sweep, which: int) -> list[tuple[Outcome, float]]:
    """Jobs with a finite objective, and that objective."""
    found = [(outcome, outcome.objectives[which]) for outcome in sweep.outcomes if len(outcome.objectives) > which]
    return [(outcome, score) for outcome, score in found if math.isfinite(score)]


def value_axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    """An axis of objectives; logarithmic if they differ by more than a factor of ten."""
    if not (min(values) > 0 and max(values) > 10 * min(values)):
        return {"title": text(title)}
    return {"title": f"{text(title)}, log scale", **log_ticks(values)}


def log_ticks(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis with ticks at round numbers."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    parts = (1, 2, 5) if high - low < 4 else (1,)
    ticks = [part * 10.0**power for power in range(low, high + 1) for part in parts]
    return {"type": "log", "tickvals": ticks, "ticktext": [number(tick) for tick in ticks]}


def noun(sweep: Sweep) -> str:
    """What the page compares."""
    return "point" if sweep.runs else "job"


def marks(sweep: Sweep) -> str:
    """What the marks of a chart are."""
    return "Points are means over seeds, bars their 95 % intervals" if sweep.runs else "Points are jobs"


def error_bars(name: str, outcomes: Sequence[Outcome], which: int) -> dict[str, Any]:
    """The intervals of an objective as ``error_x`` or ``error_y`` of a trace; nothing without intervals."""
    ends = [one.intervals[which] if which < len(one.intervals) else None for one in outcomes]
    if not any(ends):
        return {}
    pairs = list(zip(outcomes, ends, strict=True))
    return {
        name: {
            "type": "data", "symmetric": False, "color": "var:accent", "thickness": 1.5, "width": 4,
            "array": [0 if end is None else end[1] - one.objectives[which] for one, end in pairs],
            "arrayminus": [0 if end is None else one.objectives[which] - end[0] for one, end in pairs],
        }
    }  # fmt: skip


def upper(name: str) -> str:
    return name[:1].upper() + name[1:]

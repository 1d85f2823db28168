"""What all charts of a sweep's report are drawn with. No torch."""

import html
import math
from collections.abc import Sequence
from typing import Any

from hydraft.sweep.axes import number
from hydraft.sweep.outcome import Outcome, Sweep

Chart = dict[str, Any]
"""``title`` and ``note`` for people, ``traces`` and ``layout`` for plotly, and what the page does with them.

Colours named ``var:…`` are the page's own, for light and dark; the page puts them in.
"""


def text(value: Any) -> str:
    """Something of a config or a run, for plotly."""
    return html.escape(number(value) if isinstance(value, float) else str(value), quote=False)


def scored(sweep: Sweep, which: int) -> list[tuple[Outcome, float]]:
    """Jobs with a finite objective, and it."""
    found = [(outcome, outcome.objectives[which]) for outcome in sweep.outcomes if len(outcome.objectives) > which]
    return [(outcome, score) for outcome, score in found if math.isfinite(score)]


def value_axis(title: str, values: Sequence[float]) -> dict[str, Any]:
    """An axis of results; logarithmic where a few of them would press the rest together."""
    wide = min(values) > 0 and max(values) > 10 * min(values)
    return {"title": text(title) + (", log scale" if wide else ""), "type": "log" if wide else "linear"}


def upper(name: str) -> str:
    return name[:1].upper() + name[1:]

"""Position, colour and bin of a value on its axis, and the share of variance that an axis explains. No torch."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from hydraft.sweep.results.axes import Axis, number

WORDS = ("#3f7fd0", "#e0803a", "#3f9e5a", "#d0514f", "#8f63b8", "#2fa3a8", "#b58a2a", "#c75f9b")
"""Colours of up to eight values without an order, visible on white and on black."""

RAMP = ((64, 99, 216), (149, 88, 178), (209, 73, 91), (242, 165, 65))
"""Colours from the lowest to the highest value."""

MANY = 8
"""Axes with more values than this are divided into bins and coloured by the ramp."""


def place(axis: Axis, value: Any) -> float | None:
    """Position from 0 to 1 on the scale of the axis; None without a value."""
    if not axis.numeric:
        position = axis.positions.get(str(value))
        return None if position is None else position / max(1, len(axis.values) - 1)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    if len(axis.values) < 2:
        return 0.5
    low, high, here = (math.log(x) if axis.geometric else float(x) for x in (axis.values[0], axis.values[-1], value))
    return (here - low) / (high - low)


def shade(part: float) -> str:
    """The colour of the ramp at ``part``, from 0 to 1."""
    at = min(max(part, 0.0), 1.0) * (len(RAMP) - 1)
    below = min(int(at), len(RAMP) - 2)
    mixed = (round(a + (b - a) * (at - below)) for a, b in zip(RAMP[below], RAMP[below + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def colours(axis: Axis, values: Sequence[Any]) -> tuple[list[str], list[tuple[str, str]], bool]:
    """A colour for each of ``values``, the legend, and whether the legend is a ramp with two ends."""
    texts = [str(known) for known in axis.values]
    if axis.numeric and len(texts) > MANY:
        found = [place(axis, value) for value in values]
        ends = [(number(axis.values[0]), shade(0)), (number(axis.values[-1]), shade(1))]
        return ["var:muted" if part is None else shade(part) for part in found], ends, True
    if axis.numeric:
        known = {text: shade(index / max(1, len(texts) - 1)) for index, text in enumerate(texts)}
    else:
        known = {text: WORDS[index % len(WORDS)] for index, text in enumerate(texts)}
    legend = [(number(value), known[str(value)]) for value in axis.values]
    return [known.get(str(value), "var:muted") for value in values], legend, False


def bins(axis: Axis) -> list[str]:
    """The values of the axis as text, or eight parts of its range if it has many."""
    if not (axis.numeric and len(axis.values) > MANY):
        return [number(value) for value in axis.values]
    low, high = axis.values[0], axis.values[-1]

    def edge(part: float) -> float:
        if axis.geometric:
            return math.exp(math.log(low) + part * (math.log(high) - math.log(low)))
        return float(low + part * (high - low))

    return [f"{short(edge(i / MANY))} – {short(edge((i + 1) / MANY))}" for i in range(MANY)]


def bin_of(axis: Axis, value: Any) -> int | None:
    """Index in ``bins`` of a value."""
    part = place(axis, value)
    if part is None:
        return None
    if axis.numeric and len(axis.values) > MANY:
        return min(int(part * MANY), MANY - 1)
    return axis.positions[str(value)]


def short(value: float) -> str:
    """A number with two digits, for the edge of a bin."""
    return number(float(f"{value:.1e}"))


def explained(axis: Axis, values: Sequence[Any], scores: Sequence[float]) -> float | None:
    """Share of the objective's variance between the values of the axis, from 0 to 1; None if there are too few jobs."""
    groups: dict[int, list[float]] = {}
    for value, score in zip(values, scores, strict=True):
        if (found := bin_of(axis, value)) is not None:
            groups.setdefault(found, []).append(score)
    all_scores = [score for group in groups.values() for score in group]
    if len(groups) < 2 or len(all_scores) <= len(groups) or statistics.pvariance(all_scores) == 0:
        return None
    mean = statistics.fmean(all_scores)
    between = sum(len(group) * (statistics.fmean(group) - mean) ** 2 for group in groups.values())
    return between / (len(all_scores) * statistics.pvariance(all_scores))

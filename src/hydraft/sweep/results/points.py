"""The points of a sweep with several seeds (``sweep.replicas``): the jobs that differ in their seed alone, as one result. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import Any

from hydraft.sweep.results import outcome
from hydraft.sweep.results.axes import number
from hydraft.sweep.results.ledger import Job, State
from hydraft.sweep.results.outcome import Outcome, Sweep

SEED = "seed"
EVAL_SEED = "data.eval_seed"

NOT_DONE = [State.running, State.pending, State.interrupted, State.failed, State.refused, State.pruned, State.done]
"""The state of a point is the first of these that one of its jobs has."""


@dataclass
class Point(Outcome):
    """The jobs of a point, as one job whose numbers are means over those that are done."""

    members: list[Outcome] = field(default_factory=list)
    """By seed."""

    @property
    def done(self) -> list[Outcome]:
        """Those with a result."""
        return [one for one in self.members if one.objectives and one.job.state is State.done]

    @cached_property
    def objectives(self) -> list[float]:
        """Means; empty if no job has a result."""
        columns = zip(*(one.objectives for one in self.done), strict=True)
        return [fmean(column) for column in columns]

    @cached_property
    def config(self) -> dict[str, Any]:
        """That of the first job, with the seeds of all."""
        known = [one for one in self.members if one.config]
        if not known:
            return {}
        own = {key: value for key, value in known[0].config.items() if key != EVAL_SEED}
        return {**own, SEED: ", ".join(str(one.config[SEED]) for one in known)}

    @cached_property
    def result(self) -> dict[str, Any]:
        """The means of the numbers in result.json; the highest of the peaks of memory."""
        found = [one.result for one in self.done]
        if not found:
            return {}
        merged: dict[str, Any] = {
            when: _means([one.get(when) or {} for one in found]) for when in ("before", "best", "after")
        }
        merged |= _means([{key: value for key, value in one.items() if _is_number(value)} for one in found])
        peaks = [one["peak_memory_bytes"] for one in found if one.get("peak_memory_bytes") is not None]
        if peaks:
            merged["peak_memory_bytes"] = max(peaks)
        return {key: value for key, value in merged.items() if key not in ("started", "ended")}

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The mean of each number at the steps that all jobs have logged."""
        by_step: dict[Any, list[dict[str, Any]]] = {}
        some = [one.metrics for one in self.members if one.metrics]
        for lines in some:
            for line in lines:
                key = (line.get("step"), "eval_loss" in line)
                by_step.setdefault(key, []).append({name: value for name, value in line.items() if _is_number(value)})
        return [_means(lines) for lines in by_step.values() if len(lines) == len(some)]

    @property
    def seconds(self) -> float | None:
        """Of all jobs together."""
        known = [one.seconds for one in self.members if one.seconds is not None]
        return sum(known) if known else None


def merged(sweep: Sweep) -> Sweep:
    """``sweep`` with points for its jobs."""
    axes = [axis for axis in sweep.axes if axis.key not in (SEED, EVAL_SEED)]
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for one in sweep.outcomes:
        groups.setdefault(tuple(str(one.values.get(axis.key)) for axis in axes), []).append(one)
    points = [_point(members) for members in groups.values()]
    for point in points:
        point.values = {axis.key: point.members[0].values.get(axis.key) for axis in axes}
    ranked: list[Outcome] = outcome.rank(points, sweep.minimize)
    return replace(sweep, axes=axes, outcomes=ranked, runs=sweep.outcomes)


def label(sweep: Sweep, point: Outcome) -> str:
    """A point by its settings: ``lora.r=8, zero=stage2``."""
    return ", ".join(f"{axis.label}={number(point.values.get(axis.key))}" for axis in sweep.axes) or point.job.name


def _point(members: Sequence[Outcome]) -> Point:
    ordered = sorted(members, key=lambda one: (int(one.config.get(SEED, 0)), one.job.time))
    first, states = ordered[0], [one.job.state for one in ordered]
    state = next(one for one in NOT_DONE if one in states)
    error = next((one.error for one in ordered if one.error), None)
    name = ",".join(part for part in first.job.name.split(",") if not part.startswith(f"{SEED}=")) or "run"
    job = Job(
        first.job.key, name, list(first.job.overrides), state, None, error, max(one.job.attempt for one in ordered)
    )
    for one in ordered:  # ranks and fronts are those of points
        one.rank, one.on_front = None, False
    point = Point(job, first.folder, members=ordered)
    point.seeds = len(point.done)
    return point


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each number that all rows have."""
    names = [name for name in rows[0] if all(_is_number(row.get(name)) for row in rows)]
    found: dict[str, Any] = {}
    for name in names:
        values = [row[name] for row in rows]
        found[name] = values[0] if len(set(values)) == 1 else fmean(values)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

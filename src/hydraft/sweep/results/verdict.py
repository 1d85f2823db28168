"""What a sweep with several seeds tells: intervals, which points cannot be told apart from the best, and what would decide. No torch."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hydraft.evaluation.record_scores import FILE
from hydraft.sweep.results import comparison, ledger, points
from hydraft.sweep.results.comparison import LEVEL, POWER, Array, Estimate
from hydraft.sweep.results.outcome import Outcome, Sweep
from hydraft.sweep.results.points import SEED, Point
from hydraft.system import line_file

LOSS = ("held-out loss", "loss")

NUMBERS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

SHOWN = 8
"""Points that a sentence names."""


@dataclass(frozen=True)
class Scores:
    """The scores of a point for one objective."""

    seeds: tuple[int, ...]
    records: tuple[str, ...]
    """Hashes of the held-out records; empty if the objective has no value for each, such as BLEU, memory and seconds."""
    table: Array
    """(S, N); N is 1 without records."""

    def of(self, seeds: Sequence[int]) -> Array:
        """The rows of these seeds."""
        result: Array = self.table[[self.seeds.index(seed) for seed in seeds]]
        return result


@dataclass(frozen=True)
class Rival:
    """A point that is compared with the best."""

    point: Point
    difference: Estimate
    """Its score minus that of the best; over the seeds that both have, and the records."""
    p: float
    """Of no difference; adjusted for the number of points (Holm) and for how often seeds were added after a look (Bonferroni)."""
    needed: int | None
    """Seeds in all that would tell it apart with probability ``POWER``; None if no number of seeds does."""

    @property
    def is_apart(self) -> bool:
        """Whether it can be told apart."""
        return self.p < 1 - LEVEL

    @property
    def further(self) -> int | None:
        """Further seeds of it and of the best that would tell it apart."""
        return None if self.needed is None else max(1, self.needed - self.difference.seeds)


@dataclass(frozen=True)
class Verdict:
    """The comparison of all points with the best."""

    best: Point
    rivals: list[Rival]
    others: list[Point]
    """Those with other held-out records, which are not compared."""
    records: int
    """Held-out records that are compared; 0 if the objective has no score for each."""

    @property
    def close(self) -> list[Rival]:
        """Those that cannot be told apart from the best."""
        return [one for one in self.rivals if not one.is_apart]

    @property
    def smallest(self) -> Point:
        """Of the best and those like it: the one with the fewest trained parameters, then the least memory and time."""
        return min([self.best, *(one.point for one in self.close)], key=_size)


@dataclass(frozen=True)
class Plan:
    """What ``sweep.decide`` runs."""

    points: list[Point]
    """That get further seeds; empty if none would decide anything."""
    seeds: int
    """Seeds in all that these have then."""
    reason: str


def plan(sweep: Sweep, most: int) -> Plan:
    """The further seeds with which some points would probably be told from the best, with at most ``most`` seeds.

    All that cannot be told apart get them: a point with fewer seeds than the others might look best by chance alone.
    """
    verdict = compare(sweep)
    if verdict is None or not verdict.close:
        return Plan([], 0, "there is nothing to decide")
    would = [one for one in verdict.close if one.needed is not None and one.needed <= most]
    if not would:
        return Plan(
            [], 0, f"no point would probably be told from the best with sweep.max_replicas={most} seeds; none is added"
        )
    chosen = [verdict.best, *(one.point for one in verdict.close)]
    held = max(one.difference.seeds for one in would)
    seeds = min(most, max(held + (one.further or 0) for one in would))
    names = _listed([points.label(sweep, one) for one in chosen])
    return Plan(chosen, seeds, f"{seeds} seeds in all of: {names}")


def add(sweep: Sweep) -> None:
    """Give the points of ``sweep`` their intervals, and the sweep the sentences of its ``findings``."""
    known = _known(sweep)
    for which, name in enumerate(sweep.objectives):
        found = {id(point): scores(point, name, which) for point in known}
        estimated = _estimates([(one.table, bool(one.records) and name not in LOSS) for one in found.values()])
        for point, one in zip(known, estimated, strict=True):
            point.intervals.append((one.low, one.high))
    if (verdict := compare(sweep)) is not None:
        sweep.findings.extend(sentences(sweep, verdict))
        for rival in verdict.rivals:
            one = rival.difference
            rival.point.p, rival.point.difference = rival.p, (one.mean, one.low, one.high)


def compare(sweep: Sweep) -> Verdict | None:
    """The comparison with the best by the only objective; None with several, or without two points with several seeds."""
    known = _known(sweep)
    if len(sweep.objectives) > 1 or len(known) < 2:
        return None
    best, name = known[0], sweep.objectives[0]
    found = {id(point): scores(point, name, 0) for point in known}
    mine = found[id(best)]
    pairs: list[tuple[Point, Array]] = []
    others: list[Point] = []
    for point in known[1:]:
        its = found[id(point)]
        both = [seed for seed in mine.seeds if seed in its.seeds]
        if its.records != mine.records or len(both) < 2:
            others.append(point)
        else:
            pairs.append((point, its.of(both) - mine.of(both)))
    differences = _estimates([(table, False) for _, table in pairs])
    looks = int(ledger.read_about(sweep.folder).get("looks", 1))
    adjusted = [min(1.0, p * looks) for p in comparison.adjusted([one.p for one in differences])]
    close = sum(p >= 1 - LEVEL for p in adjusted)
    alpha = (1 - LEVEL) / max(1, close) / (looks + 1)
    rivals = [
        Rival(point, one, p, None if p < 1 - LEVEL else one.seeds_to_tell(alpha))
        for (point, _), one, p in zip(pairs, differences, adjusted, strict=True)
    ]
    return Verdict(best, rivals, others, len(mine.records))


def _known(sweep: Sweep) -> list[Point]:
    """The points with several seeds, none of which diverged."""
    points = [point for point in sweep.outcomes if isinstance(point, Point)]
    return [point for point in points if point.seeds > 1 and all(map(math.isfinite, point.objectives))]


def scores(point: Point, name: str, which: int) -> Scores:
    """The scores of a point by seed and record; only by seed if the objective has no value for each record."""
    seeds = tuple(int(one.config.get(SEED, index)) for index, one in enumerate(point.done))
    lines = [_lines(one) for one in point.done]
    records = [tuple(str(line["digest"]) for line in run) for run in lines]
    if all(records) and len(set(records)) == 1:
        if name in LOSS:
            sums, tokens = ([[float(line[key]) for line in run] for run in lines] for key in ("loss_sum", "tokens"))
            return Scores(seeds, records[0], comparison.loss_table(sums, tokens))
        has = [all(name in run[index]["scores"] for run in lines) for index in range(len(records[0]))]
        if any(has):
            kept = [[float(line["scores"][name]) for line, one in zip(run, has, strict=True) if one] for run in lines]
            hashes = tuple(one for one, there in zip(records[0], has, strict=True) if there)
            return Scores(seeds, hashes, comparison.table(kept))
    return Scores(seeds, (), comparison.table([[one.objectives[which]] for one in point.done]))


def sentences(sweep: Sweep, verdict: Verdict) -> list[str]:
    """What the comparison tells, in sentences."""
    close = verdict.close
    named = [points.label(sweep, one) for one in (verdict.best, *(rival.point for rival in close))]
    best, seeds = named[0], min((one.difference.seeds for one in verdict.rivals), default=0)
    found: list[str] = []
    if close:
        count = NUMBERS[len(named)] if len(named) < len(NUMBERS) else f"{len(named):,}"
        found.append(
            f"These {count} cannot be told apart (p = {_p(min(one.p for one in close))}): {_listed(named)}; the smallest of them is "
            f"{points.label(sweep, verdict.smallest)}."
        )
        found += _what_would_decide(sweep, best, close)
    elif verdict.rivals:
        found.append(
            f"{best} is better than every other point (p = {_p(max(one.p for one in verdict.rivals))}), over {seeds} seeds."
        )
    if verdict.others:
        names = _listed([points.label(sweep, one) for one in verdict.others])
        found.append(f"Not compared with the best, since their held-out records or their seeds are others: {names}.")
    if verdict.rivals:
        over = f"{verdict.records:,} records and {seeds} seeds" if verdict.records else f"{seeds} seeds"
        several = f"; p is adjusted for {len(verdict.rivals)} comparisons (Holm)" if len(verdict.rivals) > 1 else ""
        found.append(f"Intervals are of 95 %. Differences from the best are paired, over {over}{several}.")
    return found


def _what_would_decide(sweep: Sweep, best: str, close: list[Rival]) -> list[str]:
    found, power = [], f"power {POWER:.0%}"
    would = sorted((one for one in close if one.further is not None), key=lambda one: one.further or 0)
    for rival in would[:SHOWN]:
        more = f"{rival.further:,} further seed{'' if rival.further == 1 else 's'}"
        found.append(f"{more} of each would probably tell {points.label(sweep, rival.point)} from {best} ({power}).")
    never = [points.label(sweep, one.point) for one in close if one.further is None]
    if never:
        found.append(
            f"No number of seeds would probably tell {_listed(never)} from {best}: only more held-out records, if they differ at all."
        )
    return found


def _estimates(tables: Sequence[tuple[Array, bool]]) -> list[Estimate]:
    """The estimate of each table, with whether it is bounded; tables of one shape are computed together."""
    import numpy as np

    groups: dict[tuple[tuple[int, ...], bool], list[int]] = {}
    for index, (table, bounded) in enumerate(tables):
        groups.setdefault((table.shape, bounded), []).append(index)
    found: dict[int, Estimate] = {}
    for (_, bounded), members in groups.items():
        stacked = np.stack([tables[index][0] for index in members])
        found |= dict(zip(members, comparison.estimates(stacked, bounded=bounded), strict=True))
    return [found[index] for index in range(len(tables))]


def _lines(one: Outcome) -> list[dict[str, Any]]:
    """The lines of scores.jsonl; none if there is no such file."""
    try:
        return line_file.read(one.folder / FILE).values
    except OSError:
        return []


def _size(point: Point) -> tuple[float, float, float]:
    result = point.result
    return (
        float(result.get("trained_parameters") or 0), float(result.get("peak_memory_bytes") or 0),
        float(result.get("train_seconds") or 0),
    )  # fmt: skip


def _p(value: float) -> str:
    return "0.001 or less" if value <= 0.001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def _listed(names: Iterable[str]) -> str:
    kept = list(names)
    more = [f"{len(kept) - SHOWN:,} others"] if len(kept) > SHOWN else []
    return "; ".join([*kept[:SHOWN], *more])

"""Intervals over records and seeds, and what they tell: on synthetic scores whose truth is known, and against published figures."""

from statistics import NormalDist

import mpmath
import numpy as np
import pytest

from hydraft.sweep.results import comparison
from hydraft.sweep.results.comparison import Array

CASES = 1500
"""Synthetic points of each kind: a coverage of 95 % is found to within 0.6 %."""

VARIANCES = {
    "records": (1, 0.0, 0.3),
    "rest": (0.0, 0.0, 1),
    "records and some of seeds": (1, 0.1, 0.5),
    "records and seeds": (1, 0.3, 0.3),
    "seeds": (0.1, 1, 0.3),
}
"""Standard deviations of records, seeds and rest. The mean of 200 records has a seventh of the first."""


def synthetic(deviations: tuple[float, float, float], shape: tuple[int, int, int]) -> Array:
    """Scores around 0 with effects of records and of seeds."""
    generator = np.random.default_rng(1)
    points, seeds, records = shape
    sizes = ((points, 1, records), (points, seeds, 1), shape)
    return sum(
        (d * generator.standard_normal(size) for d, size in zip(deviations, sizes, strict=True)), np.zeros(shape)
    )


def covered(tables: Array, truth: float, bounded: bool = False) -> float:
    found = comparison.estimates(tables, draws=600, bounded=bounded)
    return sum(one.low <= truth <= one.high for one in found) / len(found)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("records", [30, 200])
@pytest.mark.parametrize("variances", VARIANCES.values(), ids=VARIANCES)
def test_intervals_of_95_percent_cover_the_truth(
    seeds: int, records: int, variances: tuple[float, float, float]
) -> None:
    assert 0.93 <= covered(synthetic(variances, (CASES, seeds, records)), 0.0) <= 0.97


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("share", "records"), [(0.3, 30), (0.5, 100), (0.9, 200)])
def test_so_do_those_of_scores_that_are_0_or_1(seeds: int, share: float, records: int) -> None:
    """An answer is right if a sum of normal effects is positive: the share of right ones is known."""
    of_record, of_seed = 1.0, 0.2
    threshold = NormalDist(0, (of_record**2 + of_seed**2 + 1) ** 0.5).inv_cdf(1 - share)
    tables = (synthetic((of_record, of_seed, 1), (CASES, seeds, records)) > threshold).astype(float)
    assert 0.93 <= covered(tables, share, bounded=True) <= 0.97
    for one in comparison.estimates(tables[:50], draws=1000, bounded=True):
        assert 0 <= one.low <= one.mean <= one.high <= 1


def test_without_records_it_is_students_t_test() -> None:
    """Against the t distribution as mpmath integrates it."""
    differences = np.random.default_rng(3).normal(1, 1, (20, 4, 1))
    for one, table in zip(comparison.estimates(differences, draws=200_000), differences[..., 0], strict=True):
        t = abs(table.mean()) / (table.std(ddof=1) / 2)
        p = float(mpmath.betainc(3 / 2, 1 / 2, 0, 3 / (3 + t**2), regularized=True))
        assert one.p == pytest.approx(p, rel=0.05, abs=0.002)
        assert (one.low <= 0 <= one.high) == (p >= 0.05) or p == pytest.approx(0.05, abs=0.003)


def test_the_parts_of_the_variance_are_those_of_the_two_way_layout() -> None:
    """Over many points, the estimates have the means that the model gives."""
    found = comparison.estimates(synthetic((1, 0.5, 2), (4000, 4, 50)), draws=10)
    seeds, records = (np.mean([getattr(one, name) for one in found]) for name in ("seed_variance", "record_variance"))
    assert seeds == pytest.approx(0.5**2 + 2**2 / 50, rel=0.03)
    assert records == pytest.approx(1 / 50, rel=0.05)


def test_holms_method_as_r_computes_it() -> None:
    """p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm") of R."""
    assert comparison.adjusted([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert comparison.adjusted([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert comparison.adjusted([]) == []


@pytest.mark.parametrize("of_seed", [0.05, 0.2])
def test_the_truly_best_point_is_among_those_that_cannot_be_told_apart(of_seed: float) -> None:
    """Six equally good points: the one that looks best is compared with the others, and the first is told from it in at most 5 %."""
    sweeps, points = 500, 6
    scores = synthetic((0.2, of_seed, 0.3), (sweeps * points, 3, 60)).reshape(sweeps, points, 3, 60)
    scores += synthetic((1, 0, 0), (sweeps, 1, 60))[:, None]  # records are as hard for all points
    looks_best = scores.mean((2, 3)).argmin(1)
    order = [[*range(best), *range(best + 1, points)] for best in looks_best]
    pairs = zip(scores, looks_best, order, strict=True)
    differences = np.concatenate([one[others] - one[best] for one, best, others in pairs])
    p = np.array([one.p for one in comparison.estimates(differences, draws=1000)]).reshape(sweeps, points - 1)
    told = [
        comparison.adjusted(row)[others.index(0)] < 0.05 for row, others in zip(p, order, strict=True) if 0 in others
    ]
    assert sum(told) / sweeps <= 0.05 < (p.min(1) < 0.05).mean()  # several looks without adjustment tell too often


def test_so_many_seeds_tell_a_difference_as_often_as_promised() -> None:
    """The number is computed from the true variances, and as many seeds are drawn."""
    of_record, of_seed, of_rest, difference, records = 0.3, 0.1, 0.5, 0.15, 100
    truth = comparison.Estimate(difference, 0, 0, 1, of_seed**2 + of_rest**2 / records, of_record**2 / records, seeds=3)
    needed = truth.seeds_to_tell(0.05)
    assert needed is not None and 4 <= needed <= 12
    told = [
        np.mean([one.p < 0.05 for one in comparison.estimates(tables + difference, draws=1000)])
        for tables in (synthetic((of_record, of_seed, of_rest), (CASES, seeds, records)) for seeds in (needed, 3))
    ]
    assert 0.77 <= told[0] <= 0.9 and told[1] < told[0]
    assert comparison.Estimate(0.05, 0, 0, 1, 0.01, of_record**2 / records, seeds=3).seeds_to_tell(0.05) is None


def test_the_loss_of_records_has_the_mean_over_tokens() -> None:
    losses, tokens = [[10.0, 2.0, 3.0], [9.0, 2.5, 4.0]], [[5.0, 1.0, 4.0]] * 2
    table = comparison.loss_table(losses, tokens)
    assert table.mean(1).tolist() == pytest.approx([1.5, 1.55])
    assert table[0].tolist() == pytest.approx([1.5 + 2.5 / (10 / 3), 1.5 + 0.5 / (10 / 3), 1.5 - 3 / (10 / 3)])

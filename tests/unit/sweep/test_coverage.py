"""Intervals over records and seeds cover the truth as often as they say, on synthetic scores whose truth is known."""

import numpy as np
import pytest

from hydraft.sweep.results import comparison

CASES = 2000
"""Synthetic sweeps each: a coverage of 95 % is found within 0.5 %."""

VARIANCES = {
    "records": (1, 0.0, 0.3),
    "records and rest": (1, 0.0, 1),
    "rest": (0.0, 0.0, 1),
    "a few seeds' worth": (1, 0.05, 0.3),
    "both": (1, 0.15, 0.5),
    "as much from seeds": (1, 0.4, 0.3),
    "seeds": (0.1, 1, 0.3),
}
"""Standard deviations of records, seeds and rest."""


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("records", [30, 200])
@pytest.mark.parametrize("variances", VARIANCES.values(), ids=VARIANCES)
def test_95_percent_intervals_cover_the_truth(seeds: int, records: int, variances: tuple[float, ...]) -> None:
    of_record, of_seed, of_rest = variances
    generator = np.random.default_rng(1)
    tables = 0.7 + of_record * generator.standard_normal((CASES, 1, records))
    tables = tables + of_seed * generator.standard_normal((CASES, seeds, 1))
    tables = tables + of_rest * generator.standard_normal((CASES, seeds, records))
    found = comparison.estimates(tables, draws=2000)
    covered = sum(one.low <= 0.7 <= one.high for one in found) / CASES
    assert 0.93 <= covered <= 0.97

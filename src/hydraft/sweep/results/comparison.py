"""Intervals and comparisons of scores that were measured with several seeds on the same records. No torch.

The score of a point is a mean over N held-out records and S seeds. Both are samples, of the records that the model may meet and of the
runs that training may give, and they are crossed: every seed is evaluated on every record. With y the score of record i in the run of
seed s, the model is that of a two-way layout with random effects (Scheffé 1959, The Analysis of Variance, chapter 7),

    y_si = mean + record_i + seed_s + rest_si,    Var(ȳ) = Var(record) / N + Var(seed) / S + Var(rest) / NS

whose parts are estimated from the mean squares of records, seeds and rest. The bootstrap over records and seeds is hierarchical (Davison
and Hinkley 1997, Bootstrap Methods and their Application, section 3.8), and paired: all points share the drawn records and the seeds
(Koehn 2004, Statistical Significance Tests for Machine Translation Evaluation). Seeds count as Bouthillier et al. 2021 (Accounting for
Variance in Machine Learning Benchmarks) ask for.

* Records are drawn with replacement, and their deviations scaled to Var(record) without the part of the rest.
* Three seeds drawn with replacement vary less than they should and have no tails, so their part is drawn from Student's t with S - 1
  degrees of freedom, scaled by the mean square of the seeds. The sum of both is the distribution of Behrens and Fisher.
* That is a little too wide if both parts matter. Welch's t, with (S - 1) / share² degrees of freedom where ``share`` is the seeds' part
  of the variance (Satterthwaite 1946, An Approximate Distribution of Estimates of Variance Components), is a little too narrow (Wang
  1971, Probabilities of the Type I Errors of the Welch Tests for the Behrens-Fisher Problem). The quantiles of the two are averaged,
  which tests/unit/sweep/test_comparison.py checks: 95 % intervals cover the truth in 93 to 97 % of cases.

Shapes: K points, S seeds, N records, D draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LEVEL = 0.95
"""Of intervals; a difference is told if its adjusted p is below 1 - ``LEVEL``."""

POWER = 0.8
"""Probability with which the further seeds tell a difference of the size that was measured."""

DRAWS, FEWEST, WEIGHTS = 10_000, 2_000, 20_000_000
"""Draws of the bootstrap: ``DRAWS``, or as many as have ``WEIGHTS`` weights of records, but not less than ``FEWEST``."""

BLOCK = 4_000_000
"""Weights that are in memory at the same time."""

MOST_SEEDS = 10_000
"""More further seeds than this are none that anyone would run."""

AT_ONCE = 256
"""Points whose draws are in memory at the same time."""


@dataclass(frozen=True)
class Estimate:
    """A mean over records and seeds, and its interval."""

    mean: float
    low: float
    high: float
    p: float
    """Two-sided, of the hypothesis that it is 0; only of use for a difference."""
    seed_variance: float
    """Variance of a mean over the records between seeds."""
    record_variance: float
    """Variance of the mean that stays with any number of seeds, since the records are a sample."""
    seeds: int

    def seeds_to_tell(self, alpha: float) -> int | None:
        """Seeds in all with which a difference of this size is told with probability ``POWER`` by a test at ``alpha``.

        None if no number of seeds does, because the records alone vary too much, or it is above ``MOST_SEEDS``. The number of a normal
        test, plus half of its squared quantile because the variance is estimated (Guenther 1981, Sample Size Formulas for Normal Theory
        T Tests).
        """
        quantile = NormalDist().inv_cdf(1 - alpha / 2)
        factor = (quantile + NormalDist().inv_cdf(POWER)) ** 2
        room = self.mean**2 - factor * self.record_variance
        if room <= 0 or (needed := factor * self.seed_variance / room + quantile**2 / 2) > MOST_SEEDS:
            return None
        return max(2, math.ceil(needed))


def estimates(tables: Array, draws: int | None = None, bounded: bool = False) -> list[Estimate]:
    """The mean of each of K points and its interval.

    Args:
        tables: scores of shape (K, S, N), with S of at least 2; N is 1 if there are no scores by record, and only seeds vary.
        draws: of the bootstrap.
        bounded: whether scores are from 0 to 1. Their interval is then Wilson's with the effective number of records (Korn and Graubard
            1998, Confidence Intervals for Proportions with Small Expected Number of Positive Counts), which stays inside.
    """
    generator = np.random.default_rng(0)
    _, seeds, records = tables.shape
    draws = draws or min(DRAWS, max(FEWEST, WEIGHTS // records))
    found: list[Estimate] = []
    for start in range(0, len(tables), AT_ONCE):
        some = tables[start : start + AT_ONCE]
        parts = _Parts.of(some)
        deviations = _deviations(some, parts, draws, generator)
        edges = np.quantile(deviations, [(1 + LEVEL) / 2, (1 - LEVEL) / 2], axis=1).T  # (K, 2)
        for k, mean in enumerate(parts.mean.tolist()):
            low, high = mean - edges[k, 0], mean - edges[k, 1]
            variance = float(parts.record[k] + parts.seed[k])
            if bounded:
                low, high = _wilson(mean, variance, edges[k], records)
            beyond = min((deviations[k] >= mean).sum(), (deviations[k] <= mean).sum())
            p = min(1.0, 2 * (1 + int(beyond)) / (1 + draws))
            found.append(
                Estimate(mean, float(low), float(high), p, float(parts.seed[k]) * seeds, float(parts.record[k]), seeds)
            )
    return found


@dataclass(frozen=True)
class _Parts:
    """The means of K tables, and the parts of their variances, each of shape (K,)."""

    mean: Array
    record: Array
    """Var(record) / N, at least 0."""
    kept: Array
    """The share of the variance of a mean over records that ``record`` is: the rest is counted with the seeds."""
    seed: Array
    """Var(seed) / S + Var(rest) / NS."""

    @classmethod
    def of(cls, tables: Array) -> "_Parts":
        """From the mean squares of records, seeds and rest."""
        _, seeds, records = tables.shape
        mean, of_records, of_seeds = tables.mean((1, 2)), tables.mean(1), tables.mean(2)
        rest = tables - of_records[:, None, :] - of_seeds[:, :, None] + mean[:, None, None]
        between_seeds = records * of_seeds.var(1, ddof=1)
        if records == 1:
            return cls(mean, np.zeros_like(mean), np.zeros_like(mean), between_seeds / seeds)
        between_records = seeds * of_records.var(1, ddof=1)
        of_rest = (rest**2).sum((1, 2)) / ((seeds - 1) * (records - 1))
        record = np.maximum(between_records - of_rest, 0)
        kept = np.divide(record, between_records, out=np.zeros_like(record), where=between_records > 0)
        return cls(mean, record / (seeds * records), kept, between_seeds / (seeds * records))


def _deviations(tables: Array, parts: _Parts, draws: int, generator: np.random.Generator) -> Array:
    """Draws of the error of each mean, in ascending order: (K, D)."""
    _, seeds, records = tables.shape
    centred = tables.mean(1) - parts.mean[:, None]  # (K, N)
    scale = np.sqrt(parts.kept * records / max(1, records - 1))[:, None]
    error = np.sqrt(parts.seed)[:, None]
    students = generator.standard_t(seeds - 1, draws)
    fisher = np.sort(scale * _drawn_again(centred, draws, generator) + error * students, 1)
    variance = parts.record + parts.seed
    share = np.divide(parts.seed, variance, out=np.ones_like(variance), where=variance > 0)
    freedom = np.minimum((seeds - 1) / np.maximum(share, 1e-6) ** 2, 1e9)[:, None]
    welch = np.sort(np.sqrt(variance)[:, None] * generator.standard_t(freedom, fisher.shape), 1)
    result: Array = (fisher + welch) / 2
    return result


def _drawn_again(centred: Array, draws: int, generator: np.random.Generator) -> Array:
    """The means (K, D) of records drawn with replacement from ``centred`` (K, N); all points get the same records."""
    records = centred.shape[1]
    each, rows = np.full(records, 1 / records), max(1, BLOCK // records)
    found = []
    for done in range(0, draws, rows):
        weights = generator.multinomial(records, each, min(rows, draws - done)) / records  # (·, N)
        found.append(centred @ weights.T)
    return np.concatenate(found, 1)


def _wilson(mean: float, variance: float, edges: Array, records: int) -> tuple[float, float]:
    """Wilson's interval of a score from 0 to 1 with this variance; ``edges`` are the highest and the lowest deviation."""
    if not 0 <= mean <= 1:  # a difference, or no score of this kind
        return mean - float(edges[0]), mean - float(edges[1])
    free = mean * (1 - mean)
    count = free / variance if variance > 0 and free > 0 else float(records)
    normal = NormalDist().inv_cdf((1 + LEVEL) / 2)
    ends = []
    for sign, edge in ((-1, edges[0]), (1, -edges[1])):
        quantile = float(edge) / math.sqrt(variance) if variance > 0 else normal
        centre = mean + quantile**2 / (2 * count)
        half = quantile * math.sqrt(free / count + quantile**2 / (4 * count**2))
        ends.append((centre + sign * half) / (1 + quantile**2 / count))
    return max(0.0, ends[0]), min(1.0, ends[1])


def adjusted(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p of several tests (Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure)."""
    found, least = [1.0] * len(p), 0.0
    for position, index in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        least = max(least, min(1.0, p[index] * (len(p) - position)))
        found[index] = least
    return found


def table(runs: Sequence[Sequence[Any]]) -> Array:
    """The scores (S, N) of a point from those of its runs, each a list over the same records."""
    return np.array(runs, dtype=np.float64)


def loss_table(losses: Sequence[Sequence[float]], tokens: Sequence[Sequence[float]]) -> Array:
    """The part of each record (S, N) in the mean loss per token, from its summed loss and its trained tokens.

    The mean loss is a ratio of sums; its mean over the records is exact, and the deviations are those of the ratio estimator (Cochran
    1977, Sampling Techniques, section 6.3).
    """
    loss, count = np.array(losses, dtype=np.float64), np.array(tokens, dtype=np.float64)
    ratio = loss.sum(1, keepdims=True) / count.sum(1, keepdims=True)
    result: Array = ratio + (loss - ratio * count) / count.mean(1, keepdims=True)
    return result

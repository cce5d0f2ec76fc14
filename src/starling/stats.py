"""Statistics of evaluations: intervals that respect clusters, rank correlation, position bias. numpy only.

The resampling unit is a *cluster* (here: a prompt). Answers to one prompt, or several samples of it, are not independent;
resampling them singly would give intervals that are too narrow. Intervals are percentile bootstrap intervals (Efron and
Tibshirani 1993, chapter 13) with a fixed seed, so the same numbers give the same interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import erfc, exp, lgamma, log, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK = 1 << 22
"""Most resampled cluster indices held in memory at once."""


@dataclass(frozen=True)
class Interval:
    """A mean or ratio with its interval, e.g. Interval(mean=0.9, low=0.87, high=0.93, n=840, clusters=120)."""

    mean: float
    low: float
    high: float
    n: int
    """Values behind the mean."""
    clusters: int
    """Independent groups of them: what was resampled."""


def drawn_clusters(clusters: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """The clusters that each resample draws, with replacement, as numbers [R, C] in blocks of bounded size."""
    rng = np.random.Generator(np.random.PCG64(seed))
    block = max(1, _BLOCK // clusters)
    for start in range(0, resamples, block):
        yield rng.integers(0, clusters, size=(min(block, resamples - start), clusters))


def times_drawn(clusters: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each resample of `drawn_clusters` draws each cluster [R, C]: totals of a resample are then one product."""
    for drawn_RC in drawn_clusters(clusters, resamples, seed):
        drawn_RC += clusters * np.arange(len(drawn_RC))[:, None]
        yield np.bincount(drawn_RC.ravel(), minlength=drawn_RC.size).reshape(drawn_RC.shape).astype(np.float64)


def ratio_interval(sums: ArrayLike, counts: ArrayLike, *, resamples: int, seed: int, level: float = 0.95) -> Interval:
    """Σ sums / Σ counts with a percentile bootstrap interval over clusters.

    With counts of 1 it is the mean over clusters; with pair counts it is an accuracy over pairs whose unit is the prompt.

    Args:
        sums, counts: one number per cluster; the counts are at least 0 and not all 0.
        resamples: bootstrap resamples; one that draws only clusters of count 0 is left out.
        level: coverage of the interval.

    Raises:
        ValueError: no cluster, unequal lengths, a number that is not finite, or all counts 0.
    """
    sums_C, counts_C = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if sums_C.ndim != 1 or sums_C.shape != counts_C.shape or not len(sums_C):
        raise ValueError(f"sums and counts must be equally long and not empty, not {sums_C.shape} and {counts_C.shape}")
    if not (np.isfinite(sums_C).all() and np.isfinite(counts_C).all()) or (counts_C < 0).any() or not counts_C.sum():
        raise ValueError("sums and counts must be finite, counts at least 0 and not all 0")
    clusters = len(sums_C)
    ratios = []
    for drawn_RC in drawn_clusters(clusters, resamples, seed):
        totals_R = counts_C[drawn_RC].sum(1)
        kept = totals_R > 0
        ratios.append(sums_C[drawn_RC].sum(1)[kept] / totals_R[kept])
    low, high = np.quantile(np.concatenate(ratios), [(1 - level) / 2, (1 + level) / 2])
    mean = float(sums_C.sum() / counts_C.sum())
    return Interval(mean=mean, low=float(low), high=float(high), n=clusters, clusters=clusters)


def bootstrap_mean(
    values: ArrayLike, clusters: Sequence[str] | Sequence[int], *, resamples: int, seed: int, level: float = 0.95
) -> Interval:
    """The mean of all values with a percentile bootstrap interval that resamples clusters.

    Args:
        values: the numbers, finite.
        clusters: for each value the cluster it belongs to, e.g. its prompt's id.
        resamples, seed, level: as for `ratio_interval`.

    Raises:
        ValueError: no value, unequal lengths, or a number that is not finite.
    """
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or len(values_N) != len(clusters):
        raise ValueError(f"every value needs its cluster: {values_N.shape} values, {len(clusters)} clusters")
    number: dict[str | int, int] = {}
    member_N = np.array([number.setdefault(c, len(number)) for c in clusters], dtype=np.int64)
    sums_C, counts_C = np.bincount(member_N, values_N), np.bincount(member_N)
    found = ratio_interval(sums_C, counts_C, resamples=resamples, seed=seed, level=level)
    return replace(found, n=len(values_N))


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    clusters: Sequence[str] | Sequence[int],
    *,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> Interval:
    """Mean of first − second over pairs measured on the same things, with a clustered interval; see `bootstrap_mean`."""
    first_N, second_N = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first_N.shape != second_N.shape:
        raise ValueError(f"pairs need equally many values on both sides, not {first_N.shape} and {second_N.shape}")
    return bootstrap_mean(first_N - second_N, clusters, resamples=resamples, seed=seed, level=level)


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float:
    """Kendall's τ-b of two equally long lists, with its correction for ties; 0 when one of them is constant.

    >>> kendall_tau([1, 2, 3], [1, 3, 2])
    0.3333333333333333
    """
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    upper = np.triu_indices(len(x), 1)
    dx, dy = np.sign(x[:, None] - x)[upper], np.sign(y[:, None] - y)[upper]
    untied = sqrt(float((dx != 0).sum())) * sqrt(float((dy != 0).sum()))
    return float((dx * dy).sum()) / untied if untied else 0.0


def wilson_interval(hits: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Score interval of a share of independent trials (Wilson 1927); for shares over prompts, one trial each.

    A trial may be won in part, as a first place that two answers share; the interval is then a little wide.
    """
    if n <= 0:
        raise ValueError("a share needs at least one trial")
    p = hits / n
    centre, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def chi_square_p(statistic: float, dof: int) -> float:
    """Chance that a chi-square variable with `dof` degrees of freedom reaches `statistic`.

    The finite sums for whole degrees of freedom (Abramowitz and Stegun 1972, 26.4.4 and 26.4.5), so no table and no scipy.

    >>> round(chi_square_p(5.991464547107979, 2), 6)
    0.05

    Raises:
        ValueError: a statistic below 0 or not finite, or fewer than one degree of freedom.
    """
    if dof < 1 or not 0 <= statistic < float("inf"):
        raise ValueError(f"chi-square needs a finite statistic of at least 0 and dof of at least 1, not {statistic} and {dof}")
    if statistic == 0:
        return 1.0
    half = statistic / 2
    tail = erfc(sqrt(half)) if dof % 2 else 0.0
    powers = [i + (dof % 2) / 2 for i in range(dof // 2)]
    return min(1.0, tail + sum(exp(power * log(half) - half - lgamma(power + 1)) for power in powers))


@dataclass(frozen=True)
class PositionBias:
    """Where the winners of K-wise judgments stood, for the most frequent K.

    Example of `first_shares` at K = 7 for the original judge: (.228, .138, .070, .158, .145, .112, .142); 1/7 is unbiased.
    """

    k: int
    judgments: int
    first_shares: tuple[float, ...]
    """Share of judgments whose best answer was shown at each position."""
    first_intervals: tuple[tuple[float, float], ...]
    mean_ranks: tuple[float, ...]
    """Mean rank (1 = best) of the answer shown at each position; (K+1)/2 is unbiased."""
    rank_intervals: tuple[tuple[float, float], ...]
    """95 % intervals of the mean ranks, by the normal approximation: judgments are independent and ranks are bounded."""


def position_bias(shown: Sequence[Sequence[str]], rankings: Sequence[Sequence[str]]) -> PositionBias | None:
    """Position bias of judgments; None when there is none.

    Args:
        shown: ids in the order each judge call showed them.
        rankings: the same ids, best first.
    """
    sizes: dict[int, int] = {}
    for ids in shown:
        sizes[len(ids)] = sizes.get(len(ids), 0) + 1
    if not sizes:
        return None
    k = max(sizes, key=lambda size: (sizes[size], size))
    n = sizes[k]
    ranks_PN: list[list[int]] = [[] for _ in range(k)]
    for ids, ranking in zip(shown, rankings, strict=True):
        if len(ids) != k:
            continue
        place = {answer: rank for rank, answer in enumerate(ranking, start=1)}
        for position, answer in enumerate(ids):
            ranks_PN[position].append(place[answer])
    firsts = [ranks.count(1) for ranks in ranks_PN]
    return PositionBias(
        k=k,
        judgments=n,
        first_shares=tuple(f / n for f in firsts),
        first_intervals=tuple(wilson_interval(f, n) for f in firsts),
        mean_ranks=tuple(sum(ranks) / n for ranks in ranks_PN),
        rank_intervals=tuple(_normal_interval(ranks) for ranks in ranks_PN),
    )


def _normal_interval(values: Sequence[float], z: float = 1.959963984540054) -> tuple[float, float]:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return float("-inf"), float("inf")
    half = z * float(np.std(values, ddof=1)) / sqrt(len(values))
    return mean - half, mean + half


def normal_mean(values: Sequence[float]) -> Interval:
    """The mean of independent numbers with its 95 % interval by the normal approximation; without bounds for one number."""
    low, high = _normal_interval(values)
    return Interval(sum(values) / len(values), low, high, len(values), len(values))

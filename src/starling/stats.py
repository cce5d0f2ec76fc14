"""Statistics of evaluations: intervals that respect clusters, rank correlation, position bias. numpy only.

The resampling unit is a *cluster* (here: a prompt). Answers to one prompt, or several samples of it, are not independent;
resampling them singly would give intervals that are too narrow. Intervals are percentile bootstrap intervals (Efron and
Tibshirani 1993, chapter 13) with a fixed seed, so the same numbers give the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike

_BLOCK = 1 << 22
"""Most resampled cluster indices held in memory at once."""


@dataclass(frozen=True)
class Interval:
    """A ratio with its 95 % interval, e.g. Interval(mean=0.9, low=0.87, high=0.93, clusters=120)."""

    mean: float
    low: float
    high: float
    clusters: int


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
    rng = np.random.Generator(np.random.PCG64(seed))
    clusters = len(sums_C)
    ratios = []
    block = max(1, _BLOCK // clusters)
    for start in range(0, resamples, block):
        drawn_RC = rng.integers(0, clusters, size=(min(block, resamples - start), clusters))
        totals_R = counts_C[drawn_RC].sum(1)
        kept = totals_R > 0
        ratios.append(sums_C[drawn_RC].sum(1)[kept] / totals_R[kept])
    low, high = np.quantile(np.concatenate(ratios), [(1 - level) / 2, (1 + level) / 2])
    mean = float(sums_C.sum() / counts_C.sum())
    return Interval(mean=mean, low=float(low), high=float(high), clusters=clusters)


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


def wilson_interval(hits: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Score interval of a share of independent trials (Wilson 1927); for shares over prompts, one trial each."""
    if n <= 0:
        raise ValueError("a share needs at least one trial")
    p = hits / n
    centre, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


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
    firsts, ranks = [0] * k, [0] * k
    for ids, ranking in zip(shown, rankings, strict=True):
        if len(ids) != k:
            continue
        place = {answer: rank for rank, answer in enumerate(ranking, start=1)}
        for position, answer in enumerate(ids):
            firsts[position] += place[answer] == 1
            ranks[position] += place[answer]
    return PositionBias(
        k=k,
        judgments=n,
        first_shares=tuple(f / n for f in firsts),
        first_intervals=tuple(wilson_interval(f, n) for f in firsts),
        mean_ranks=tuple(r / n for r in ranks),
    )

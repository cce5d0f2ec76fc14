"""Clustered bootstrap intervals of anything that is a function of totals: weighted means, section averages, ECE, differences.

A benchmark's number is rarely a plain mean. But each one here follows from column totals over clusters (right answers of a
subset, items of a subset, residuals of a bin …), and totals of a resample are one matrix product. The unit is the cluster,
usually a prompt, as in `starling.stats`. Clusters are numbered in the order of their names, so the order of the items changes
nothing.

Shapes: C clusters, K columns, R resamples, M statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starling import stats

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Totals [R, K] → statistics [R, M], row by row; NaN where a row has none (e.g. a subset that was not drawn)."""

RESAMPLES = 2000
"""As in `evaluate.bootstrap`."""
LEVEL = 0.95


@dataclass(frozen=True)
class Estimates:
    """M statistics with their resampled values.

    Law: `values_M` are those of the data, each row of `draws_RM` those of one resample of its clusters.
    """

    values_M: Floats
    draws_RM: Floats

    def value(self, m: int = 0) -> float | None:
        """The m-th statistic; None where the data has none."""
        found = float(self.values_M[m])
        return found if np.isfinite(found) else None

    def ci(self, m: int = 0, *, basic: bool = False) -> list[float] | None:
        """95 % percentile interval [low, high]; None where fewer than half of the resamples have the statistic.

        Args:
            basic: the reflected interval 2·value − quantiles (Davison and Hinkley 1997, 5.2.1), for statistics whose resampled
                values are biased the same way as the value itself, such as an ECE, which noise can only raise.
        """
        drawn = self.draws_RM[:, m]
        drawn = drawn[np.isfinite(drawn)]
        if not np.isfinite(self.values_M[m]) or 2 * len(drawn) < len(self.draws_RM):
            return None
        low, high = (float(q) for q in np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        value = float(self.values_M[m])
        return [2 * value - high, 2 * value - low] if basic else [low, high]


def totals(clusters: Sequence[str], columns_NK: ArrayLike) -> tuple[list[str], Floats]:
    """Sums of each column over each cluster.

    Args:
        clusters: for each of N rows the cluster it belongs to.
        columns_NK: the rows' numbers, finite.

    Returns:
        the clusters' names, sorted, and their totals [C, K].

    Raises:
        ValueError: no row, unequal lengths, or a number that is not finite.
    """
    columns = np.asarray(columns_NK, dtype=np.float64)
    if columns.ndim != 2 or len(columns) != len(clusters) or not len(columns):
        raise ValueError(f"every row needs its cluster: rows {columns.shape}, {len(clusters)} clusters")
    if not np.isfinite(columns).all():
        raise ValueError("a column holds a number that is not finite")
    names = sorted(set(clusters))
    number = {name: i for i, name in enumerate(names)}
    member_N = np.fromiter((number[c] for c in clusters), dtype=np.int64, count=len(clusters))
    summed = [np.bincount(member_N, columns[:, k], minlength=len(names)) for k in range(columns.shape[1])]
    return names, np.stack(summed, axis=1)


def bootstrap(totals_CK: Floats, statistic: Statistic, *, seed: int, resamples: int = RESAMPLES) -> Estimates:
    """The statistic of the totals, and of `resamples` resamples of the clusters with replacement.

    Args:
        totals_CK: see `totals`.
        statistic: see `Statistic`.
        seed: of the draws; the same totals and seed give the same draws.
    """
    found = [statistic(drawn_RC @ totals_CK) for drawn_RC in stats.times_drawn(len(totals_CK), resamples, seed)]
    return Estimates(statistic(totals_CK.sum(0, keepdims=True))[0], np.concatenate(found))


def ratios(totals_RK: Floats) -> Floats:
    """Columns in pairs (sum, count) → sum / count [R, K/2]; NaN where the count is 0."""
    sums, counts = totals_RK[:, 0::2], totals_RK[:, 1::2]
    found: Floats = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return found


def mean(values: ArrayLike, clusters: Sequence[str], *, seed: int, resamples: int = RESAMPLES) -> Estimates:
    """The mean of values with resamples over clusters."""
    values_N = np.asarray(values, dtype=np.float64)
    _, summed = totals(clusters, np.stack([values_N, np.ones(len(values_N))], axis=1))
    return bootstrap(summed, ratios, seed=seed, resamples=resamples)

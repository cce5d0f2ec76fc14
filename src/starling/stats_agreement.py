"""Agreement beyond chance between raters: Cohen's kappa and Krippendorff's alpha, with intervals that resample clusters.

Sources: Cohen 1960 (kappa of two raters), Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability" (coincidence matrix,
any number of raters, missing values, nominal and ordinal distance). Both are functions of a square table of counts; the table of
a sample is the sum of the tables of its clusters, so an interval needs no second look at the votes: clusters are drawn with
replacement and their tables added (percentile bootstrap, as in `starling.stats`).

Departures: where chance alone explains all agreement (every rater says one and the same word), both are None instead of 0/0,
and a resample in which that happens is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from starling.stats import Interval

Table = NDArray[np.float64]


def cohen_kappa(table_CC: Table) -> float | None:
    """Kappa of a table of counts: entry (i, j) is how often the first rater said i and the second j.

    >>> round(cohen_kappa(np.array([[20.0, 5.0], [10.0, 15.0]])), 6)
    0.4
    """
    total = float(table_CC.sum())
    if not total:
        return None
    observed = float(np.trace(table_CC)) / total
    expected = float(table_CC.sum(1) @ table_CC.sum(0)) / total**2
    return None if expected >= 1 else (observed - expected) / (1 - expected)


def nominal_alpha(table_CC: Table) -> float | None:
    """Krippendorff's alpha of a coincidence table, every difference between two labels counting the same."""
    return _alpha(table_CC, 1.0 - np.eye(len(table_CC)))


def ordinal_alpha(table_CC: Table) -> float | None:
    """Likewise for labels in an order (rows of the table from lowest to highest): far apart counts more."""
    seen_C = table_CC.sum(0)
    up_C = np.cumsum(seen_C)
    low_C = up_C - seen_C
    # Values between two labels, both included, less half of each of the two (Krippendorff 2011, section on ordinal data).
    between_CC = np.abs(np.maximum.outer(up_C, up_C) - np.minimum.outer(low_C, low_C) - np.add.outer(seen_C, seen_C) / 2)
    np.fill_diagonal(between_CC, 0.0)
    return _alpha(table_CC, between_CC**2)


def _alpha(table_CC: Table, distance_CC: Table) -> float | None:
    seen_C = table_CC.sum(0)
    total = float(seen_C.sum())
    expected = float((np.outer(seen_C, seen_C) * distance_CC).sum())
    if total <= 1 or not expected:
        return None
    return 1 - (total - 1) * float((table_CC * distance_CC).sum()) / expected


def kappa_interval(
    first: Sequence[Hashable], second: Sequence[Hashable], clusters: Sequence[str], *, resamples: int, seed: int
) -> Interval | None:
    """Cohen's kappa of two raters over the same things with a clustered interval; None when it is not defined.

    Args:
        first, second: each thing's label by either rater; a tie is a label like any other.
        clusters: each thing's cluster, e.g. its prompt.

    Raises:
        ValueError: the three have different lengths.
    """
    labels = sorted({*first, *second}, key=str)
    at = {label: i for i, label in enumerate(labels)}
    tables: dict[str, Table] = {}
    for a, b, cluster in zip(first, second, clusters, strict=True):
        table = tables.setdefault(cluster, np.zeros((len(labels), len(labels))))
        table[at[a], at[b]] += 1
    return _resampled(tables, cohen_kappa, len(first), resamples, seed)


def alpha_interval(
    units: Sequence[Sequence[Hashable]],
    labels: Sequence[Hashable],
    clusters: Sequence[str],
    *,
    ordinal: bool,
    resamples: int,
    seed: int,
) -> Interval | None:
    """Krippendorff's alpha with a clustered interval; None when no unit has two votes or all votes are the same.

    Args:
        units: for each thing all votes about it, by whomever; a thing with a single vote says nothing and is left out.
        labels: every label there is; for `ordinal` from lowest to highest.
        clusters: each thing's cluster.
    """
    at = {label: i for i, label in enumerate(labels)}
    tables: dict[str, Table] = {}
    votes = 0
    for unit, cluster in zip(units, clusters, strict=True):
        if len(unit) < 2:
            continue
        votes += len(unit)
        counts_C = np.bincount([at[label] for label in unit], minlength=len(labels)).astype(np.float64)
        pairs_CC = (np.outer(counts_C, counts_C) - np.diag(counts_C)) / (len(unit) - 1)
        tables[cluster] = tables.get(cluster, 0.0) + pairs_CC
    return _resampled(tables, ordinal_alpha if ordinal else nominal_alpha, votes, resamples, seed)


def _resampled(
    tables: dict[str, Table], statistic: Callable[[Table], float | None], n: int, resamples: int, seed: int
) -> Interval | None:
    if not tables:
        return None
    stacked_GCC = np.stack(list(tables.values()))
    value = statistic(stacked_GCC.sum(0))
    if value is None:
        return None
    rng = np.random.Generator(np.random.PCG64(seed))
    groups = len(stacked_GCC)
    drawn = []
    for _ in range(resamples):
        weights_G = np.bincount(rng.integers(0, groups, groups), minlength=groups).astype(np.float64)
        one = statistic(np.tensordot(weights_G, stacked_GCC, axes=1))
        if one is not None:
            drawn.append(one)
    low, high = np.quantile(drawn, [0.025, 0.975]) if drawn else (value, value)
    return Interval(value, float(low), float(high), n, groups)

"""Length: does the model prefer the longer answer more often than the truth does, and what is left when lengths are equal?

A reward model that learned "longer is better" scores well wherever people, or the judge, also like longer answers. Three views:

    shares       of pairs whose lengths differ: how often the longer is truly better, how often the model prefers it; the
                 difference is the bias that lengths alone explain
    by gap       accuracy by how much longer the longer answer is, and by whether the longer or the shorter one is right
    matched      accuracy on pairs of nearly the same length, where length cannot help

and within prompts of three and more answers Kendall's τ of length with reward and with truth. Length is counted in characters, as
AlpacaEval does. A model's tie is half a preference for each side in the shares, and wrong in every accuracy.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from starling import stats
from starling.evaluate.reward_benchmarks import intervals
from starling.evaluate.reward_benchmarks.intervals import Floats

GAPS = (1.1, 1.5, 2.0, 4.0)
"""Bounds between the classes of longer / shorter; the first class is the matched one."""


@dataclass(frozen=True)
class Pair:
    """The truly better and the worse answer of one item: their lengths and the model's scores."""

    cluster: str
    better: int
    worse: int
    """Lengths in characters."""
    margin: float
    """Score of the better less that of the worse."""


def pairs_of(lengths: Sequence[int], truths: Sequence[float], scores: Sequence[float], cluster: str) -> list[Pair]:
    """All pairs of one item's answers that differ in truth."""
    found = []
    for i, j in combinations(range(len(truths)), 2):
        if truths[i] != truths[j]:
            a, b = (i, j) if truths[i] > truths[j] else (j, i)
            found.append(Pair(cluster, lengths[a], lengths[b], scores[a] - scores[b]))
    return found


def gap_class(better: int, worse: int) -> int:
    """Which class of `GAPS` a pair belongs to: 0 is matched, len(GAPS) the widest; an empty answer counts as one character."""
    longer, shorter = max(better, worse, 1), max(min(better, worse), 1)
    return bisect_left(GAPS, longer / shorter)


def measure(pairs: Iterable[Pair], *, seed: int, resamples: int = intervals.RESAMPLES) -> dict[str, Any]:
    """Shares, accuracies by gap and the matched accuracy, each with an interval over clusters; Wilson's where all or none is.

    Args:
        pairs: read once and kept as sums per cluster, so there may be millions.

    Returns:
        pairs, clusters, truth_longer, model_longer, excess (model less truth), each with _ci, over pairs of different length;
        accuracy_longer_right, accuracy_shorter_right, matched (with _ci and _n), by_gap (rows: from, to, n, accuracy, ci,
        truth_longer, model_longer). A number is None where no pair belongs to it.
    """
    classes = len(GAPS) + 1
    sums: dict[str, Floats] = {}
    for pair in pairs:
        row = sums.get(pair.cluster)
        if row is None:
            row = sums[pair.cluster] = np.zeros(8 + 6 * classes)
        _add(row, pair)
    if not sums:
        return {"pairs": 0, "clusters": 0, "by_gap": []}
    summed = np.stack([sums[name] for name in sorted(sums)])

    def statistic(totals: Floats) -> Floats:
        found = intervals.ratios(totals)
        return np.hstack([found, found[:, 1:2] - found[:, 0:1]])

    found = intervals.bootstrap(summed, statistic, seed=seed, resamples=resamples)
    counts = summed.sum(0)[1::2]
    last = len(found.values_M) - 1

    def ci(m: int) -> list[float] | None:
        if m != last and found.value(m) in (0.0, 1.0):  # no width in any resample: Wilson's, one trial per cluster
            trials = int((summed[:, 2 * m + 1] > 0).sum())
            return list(stats.wilson_interval(found.values_M[m] * trials, trials))
        return found.ci(m)

    result: dict[str, Any] = {"pairs": int(counts[4 : 4 + classes].sum()), "clusters": len(sums)}
    named = {
        "truth_longer": 0,
        "model_longer": 1,
        "excess": last,
        "accuracy_longer_right": 2,
        "accuracy_shorter_right": 3,
        "matched": 4,
    }
    for name, m in named.items():
        result |= {name: found.value(m), f"{name}_ci": ci(m), f"{name}_n": int(counts[0 if m == last else m])}
    bounds = (1.0, *GAPS, None)
    result["by_gap"] = [
        {
            "from": bounds[g], "to": bounds[g + 1], "n": int(counts[4 + g]), "accuracy": found.value(4 + g),
            "ci": ci(4 + g), "truth_longer": found.value(4 + classes + 2 * g),
            "model_longer": found.value(5 + classes + 2 * g),
        }
        for g in range(classes)
        if counts[4 + g]
    ]  # fmt: skip
    return result


def _add(row: Floats, pair: Pair) -> None:
    """Add a pair to its cluster's sums: (sum, count) of truth and model preferring the longer, of right answers where the longer
    and where the shorter is better, of right answers by gap; then of truth and model by gap."""
    sign = (pair.better > pair.worse) - (pair.better < pair.worse)
    right, gap = float(pair.margin > 0), gap_class(pair.better, pair.worse)
    liked = 0.5 * (1 + (pair.margin > 0) - (pair.margin < 0))  # of the better one: 1, ½ or 0
    at = 8 + 2 * gap
    row[at : at + 2] += right, 1
    if sign:
        shares = float(sign > 0), 1, liked if sign > 0 else 1 - liked, 1
        row[0:4] += shares
        row[4 if sign > 0 else 6 : 6 if sign > 0 else 8] += right, 1
        at = 8 + 2 * (len(GAPS) + 1) + 4 * gap
        row[at : at + 4] += shares


def correlation(
    lengths: Sequence[Sequence[int]],
    truths: Sequence[Sequence[float]],
    scores: Sequence[Sequence[float]],
    clusters: Sequence[str],
    *,
    seed: int,
    resamples: int = intervals.RESAMPLES,
) -> dict[str, Any]:
    """Mean Kendall τ-b within items of three and more answers: length with reward, length with truth, and the difference.

    Returns:
        items, reward_tau, truth_tau, excess_tau, each with _ci; numbers are None without such an item. An item whose lengths,
        truths or scores are all equal counts with τ = 0, as `stats.kendall_tau` has it.
    """
    rows, kept = [], []
    for length, truth, score, cluster in zip(lengths, truths, scores, clusters, strict=True):
        if len(length) > 2:
            with_reward, with_truth = stats.kendall_tau(length, score), stats.kendall_tau(length, truth)
            rows.append([with_reward, 1.0, with_truth, 1.0, with_reward - with_truth, 1.0])
            kept.append(cluster)
    names = ("reward_tau", "truth_tau", "excess_tau")
    if not rows:
        return {"items": 0, **{k: None for name in names for k in (name, f"{name}_ci")}}
    found = intervals.bootstrap(intervals.totals(kept, rows)[1], intervals.ratios, seed=seed, resamples=resamples)
    values = {k: v for m, name in enumerate(names) for k, v in ((name, found.value(m)), (f"{name}_ci", found.ci(m)))}
    return {"items": len(rows), **values}

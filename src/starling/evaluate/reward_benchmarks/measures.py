"""The arithmetic of the benchmarks: accuracy over pairs with clustered intervals, top-1, AUROC. Pure functions, numpy.

    accuracy     of all pairs of answers to one conversation whose order is known, the share that the reward orders so; equal
                 rewards order nothing, so they are wrong, are counted as `ties`, and `accuracy_half_ties` gives them half
    loss         mean −log σ(reward of the better − reward of the worse): the Bradley–Terry loss, in nats; depends on the scale
    intervals    95 %, percentile bootstrap over clusters (starling.stats); where not one pair, or every pair, is right the
                 bootstrap has no width, and Wilson's interval with one trial per cluster stands there

Shapes: N pairs, C clusters, R resamples, V distinct values.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starling import stats
from starling.evaluate.reward_benchmarks.items import Item, Scored

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def _words(text: str) -> float:
    return float(len(set(text.split())))


TRIVIAL: Mapping[str, Callable[[str], float]] = {
    "longest": lambda text: float(len(text)),
    "shortest": lambda text: -float(len(text)),
    "most_distinct_words": _words,
}
"""Scorers that know nothing of the prompt; a reward model is worth something above the best of them."""


def trivial_scores(item: Item) -> dict[str, list[float]]:
    """What the scorers of TRIVIAL give the item's answers."""
    return {name: [score(answer) for answer in item.answers] for name, score in TRIVIAL.items()}


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Pairs:
    """Pairs of answers whose order is known, as columns: what is left of items once they are scored."""

    def __init__(self) -> None:
        self._clusters: dict[str, int] = {}
        self._subsets: dict[str, int] = {}
        self._cluster, self._subset, self._steps = array("q"), array("q"), array("q")
        self._margin = array("d")
        self._trivial: dict[str, array[float]] = {}

    def add(
        self,
        item: Item,
        scores: Sequence[float],
        *,
        only: tuple[int, int] | None = None,
        trivial: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """The item's pairs that differ in truth.

        Args:
            only: no more than the pair of these two positions.
            trivial: the answers' scores by trivial scorers, the same ones for every item; those of TRIVIAL when not given.
        """
        values = trivial_scores(item) if trivial is None else trivial
        truths = sorted(set(item.truth))
        level = [truths.index(t) for t in item.truth]
        cluster = self._clusters.setdefault(item.cluster, len(self._clusters))
        subset = self._subsets.setdefault(item.subset, len(self._subsets))
        for i, j in combinations(range(len(scores)), 2) if only is None else [only]:
            if level[i] == level[j]:
                continue
            better, worse = (i, j) if level[i] > level[j] else (j, i)
            self._cluster.append(cluster)
            self._subset.append(subset)
            self._steps.append(level[better] - level[worse])
            self._margin.append(scores[better] - scores[worse])
            for name, value in values.items():
                self._trivial.setdefault(name, array("d")).append(value[better] - value[worse])

    def __len__(self) -> int:
        return len(self._margin)

    @property
    def margins(self) -> Floats:
        """Reward of the better answer minus that of the worse; above 0 is right."""
        return np.array(self._margin)

    @property
    def clusters(self) -> Ints:
        """Number of each pair's cluster."""
        return np.array(self._cluster)

    @property
    def steps(self) -> Ints:
        """How many different degrees of truth lie between the two, 1 for neighbours."""
        return np.array(self._steps)

    def trivial(self) -> dict[str, Floats]:
        """The margins of the trivial scorers."""
        return {name: np.array(column) for name, column in self._trivial.items()}

    def subsets(self) -> dict[str, NDArray[np.bool_]]:
        """Which pairs are of each subset, by name; subsets without a pair are absent."""
        subset_N = np.array(self._subset)
        found = {name: subset_N == number for name, number in sorted(self._subsets.items())}
        return {name: where_N for name, where_N in found.items() if where_N.any()}


def measure_pairs(scored: Iterable[Scored], resamples: int, seed: int) -> dict[str, Any]:
    """Accuracy over all pairs with its parts; for benchmarks that ask nothing but pairs."""
    pairs = Pairs()
    for found in scored:
        pairs.add(found.item, found.scores)
    return describe(pairs, resamples, seed)


def describe(pairs: Pairs, resamples: int, seed: int) -> dict[str, Any]:
    """Everything that is said of a table of pairs.

    Returns:
        accuracy, ci, n, clusters, ties, accuracy_half_ties, loss, parts (by subset, where there are several), baselines,
        over_baseline. Numbers are None when there is no pair.
    """
    margin_N, cluster_N = pairs.margins, pairs.clusters
    if not len(pairs):
        absent = ("accuracy", "ci", "accuracy_half_ties", "loss", "over_baseline")
        return {"n": 0, "clusters": 0, "ties": 0, "parts": {}, "baselines": {}} | dict.fromkeys(absent)

    def part(where_N: NDArray[np.bool_]) -> dict[str, Any]:
        return share(margin_N[where_N] > 0, cluster_N[where_N], resamples, seed)

    subsets = pairs.subsets()
    ties = int((margin_N == 0).sum())
    trivial_N = {"chance": np.full(len(pairs), 0.5)} | {name: other_N > 0 for name, other_N in pairs.trivial().items()}
    found = share(margin_N > 0, cluster_N, resamples, seed)
    return {
        **found,
        "clusters": len(np.unique(cluster_N)),
        "ties": ties,
        "accuracy_half_ties": found["accuracy"] + 0.5 * ties / len(pairs),
        "loss": float(np.logaddexp(0.0, -margin_N).mean()),
        "parts": {name: part(where_N) for name, where_N in subsets.items()} if len(subsets) > 1 else {},
        **against(margin_N > 0, trivial_N, cluster_N, resamples, seed),
    }


def against(value_N: Any, trivial: Mapping[str, Any], clusters: Any, resamples: int, seed: int) -> dict[str, Any]:
    """What trivial scorers reach on the same cases, and how far the reward is above the best of them.

    Args:
        value_N: the reward's value in each case, e.g. whether the pair is right.
        trivial: each trivial scorer's values in the same cases.
        clusters: each case's cluster, as numbers.

    Returns:
        {"baselines": {name: mean}, "over_baseline": {"baseline", "difference", "ci"}}; the difference is paired, case by case, so
        its interval is narrower than those of the two means.
    """
    means = {name: float(np.mean(values)) for name, values in trivial.items()}
    best = max(means, key=lambda name: means[name])
    if best == "chance" and len({*trivial[best]}) == 1:  # a constant: the interval is that of the value, with its width
        low, high = (end - means[best] for end in share(value_N, clusters, resamples, seed)["ci"])
    else:
        numbers = np.asarray(clusters).tolist()
        gap = stats.paired_difference(value_N, trivial[best], numbers, resamples=resamples, seed=seed)
        low, high = gap.low, gap.high
    difference = float(np.mean(value_N)) - means[best]
    return {"baselines": means, "over_baseline": {"baseline": best, "difference": difference, "ci": [low, high]}}


# ── shares ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def share(right: Any, clusters: Any, resamples: int, seed: int) -> dict[str, Any]:
    """{"accuracy", "ci", "n"} of values in [0, 1], e.g. whether each pair is right; see the module's docstring.

    Args:
        right: one value per case.
        clusters: each case's cluster, as numbers from 0.
    """
    right_N, cluster_N = np.asarray(right, dtype=np.float64), np.asarray(clusters, dtype=np.int64)
    _, member_N = np.unique(cluster_N, return_inverse=True)
    sums_C, counts_C = np.bincount(member_N, right_N), np.bincount(member_N)
    found = stats.ratio_interval(sums_C, counts_C, resamples=resamples, seed=seed)
    low, high = found.low, found.high
    if (right_N == 0).all() or (right_N == 1).all():
        low, high = stats.wilson_interval(found.mean * len(sums_C), len(sums_C))
    return {"accuracy": found.mean, "ci": [low, high], "n": len(right_N)}


def mean_of_shares(parts: Sequence[tuple[Any, Any]], resamples: int, seed: int) -> tuple[float, list[float]]:
    """The plain mean of several shares and its interval; a cluster may have cases in several of them and is drawn as one.

    Args:
        parts: (values, e.g. whether each pair is right, clusters) of each share; none is empty.
    """
    names, member = np.unique(np.concatenate([np.asarray(clusters) for _, clusters in parts]), return_inverse=True)
    sums_PC, counts_PC = np.zeros((len(parts), len(names))), np.zeros((len(parts), len(names)))
    start = 0
    for number, (values, clusters) in enumerate(parts):
        here_N = member[start : start + len(clusters)]
        start += len(clusters)
        sums_PC[number] = np.bincount(here_N, np.asarray(values, dtype=np.float64), minlength=len(names))
        counts_PC[number] = np.bincount(here_N, minlength=len(names))
    drawn = []
    for weight_RC in stats.times_drawn(len(names), resamples, seed):
        totals_RP = weight_RC @ counts_PC.T
        kept = (totals_RP > 0).all(1)
        drawn.append(((weight_RC @ sums_PC.T)[kept] / totals_RP[kept]).mean(1))
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    mean = float((sums_PC.sum(1) / counts_PC.sum(1)).mean())
    if mean in (0.0, 1.0) and low == high:
        low, high = stats.wilson_interval(mean * len(names), len(names))
    return mean, [float(low), float(high)]


# ── one item ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def top_one(rewards: Sequence[float], truths: Sequence[float]) -> float:
    """Share of the reward's best answers that are truly best: 0 or 1 unless rewards tie at the top."""
    best_reward, best_truth = max(rewards), max(truths)
    chosen = [truth for reward, truth in zip(rewards, truths, strict=True) if reward == best_reward]
    return sum(truth == best_truth for truth in chosen) / len(chosen)


# ── AUROC ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def auroc(scores: Any, positive: Any, clusters: Any, resamples: int, seed: int) -> dict[str, Any]:
    """Chance that a positive case scores above a negative one, ties half (Hanley and McNeil 1982), with its interval.

    Every resample weighs the cases by how often their cluster was drawn; ones without both kinds of cases are left out.

    Returns:
        {"auroc", "ci", "n"}; the numbers are None when all cases are of one kind.
    """
    score_N, positive_N = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    _, cluster_N = np.unique(np.asarray(clusters), return_inverse=True)
    if positive_N.all() or not positive_N.any():
        return {"auroc": None, "ci": None, "n": len(score_N)}
    order_N = np.argsort(score_N, kind="stable")
    positive_N, cluster_N, sorted_N = positive_N[order_N], cluster_N[order_N], score_N[order_N]
    starts_V = np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]])

    def area(weight_N: Floats) -> float:
        up_V = np.add.reduceat(weight_N * positive_N, starts_V)
        down_V = np.add.reduceat(weight_N * ~positive_N, starts_V)
        below_V = np.cumsum(down_V) - down_V
        total = up_V.sum() * down_V.sum()
        return float((up_V * (below_V + 0.5 * down_V)).sum() / total) if total else float("nan")

    areas = [area(w_C[cluster_N]) for w_RC in stats.times_drawn(int(cluster_N.max()) + 1, resamples, seed) for w_C in w_RC]
    low, high = np.nanquantile(areas, [0.025, 0.975])
    return {"auroc": area(np.ones(len(score_N))), "ci": [float(low), float(high)], "n": len(score_N)}

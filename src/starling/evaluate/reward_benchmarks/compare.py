"""Which of several reward models is better, on the same items, without fooling ourselves by looking often.

For every pair of models and every benchmark: the paired difference over the items that both scored, its clustered bootstrap
interval, and the p-value of a sign-flip test whose unit is the cluster. All p-values of one comparison, pairs × benchmarks, are
then adjusted by Holm's method; "different" means the adjusted p-value is below .05. The intervals are those of single comparisons
and say so. The result is shown as a compact letter display. Tests, adjustment and letters: `starling.stats_comparisons`.

An item may carry a weight: the weighted sum of its values is then the benchmark's number (RewardBench's section average is one).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starling.errors import InputError
from starling.evaluate.reward_benchmarks import intervals
from starling.evaluate.reward_benchmarks.items import Scored
from starling.records import content_hash
from starling.stats_comparisons import FLIPS, holm, letters, sign_flip_p

ALPHA = 0.05


@dataclass(frozen=True)
class Verdict:
    """What one model made of one item: 1 right, 0 wrong, or in between (ties that share)."""

    id: str
    cluster: str
    value: float
    weight: float = 1.0


def verdicts(scored: Iterable[Scored]) -> list[Verdict]:
    """One per item with a pair of answers that differ in truth: the share of those pairs that the reward orders rightly, weighted
    by their number, so that the weighted mean is the accuracy over pairs. Equal rewards order nothing."""
    found = []
    for one in scored:
        right = pairs = 0
        for i, j in combinations(range(len(one.scores)), 2):
            if one.item.truth[i] != one.item.truth[j]:
                pairs += 1
                right += (one.scores[i] - one.scores[j]) * (one.item.truth[i] - one.item.truth[j]) > 0
        if pairs:
            found.append(Verdict(one.item.id, one.item.cluster, right / pairs, float(pairs)))
    return found


Outcomes = Mapping[str, Mapping[str, Sequence[Verdict]]]
"""model → benchmark → verdicts."""


@dataclass(frozen=True)
class _Shared:
    """Two models' verdicts on the items of one benchmark that both have."""

    left: tuple[Verdict, ...]
    right: tuple[Verdict, ...]
    only_one: int


def _shared(left: Sequence[Verdict], right: Sequence[Verdict], benchmark: str) -> _Shared:
    of = {v.id: v for v in right}
    both = [(v, of[v.id]) for v in left if v.id in of]
    for a, b in both:
        if a.cluster != b.cluster or a.weight != b.weight:
            raise InputError(
                f"The item '{a.id}' of {benchmark} is not the same for both models: clusters {a.cluster} and {b.cluster}",
                where="the results that are compared",
                cure="evaluate both models on the same data file",
            )
    return _Shared(tuple(a for a, _ in both), tuple(b for _, b in both), len(left) + len(right) - 2 * len(both))


def _difference(shared: _Shared, seed: int, flips: int, resamples: int) -> dict[str, Any]:
    weights = np.array([v.weight for v in shared.left])
    gaps = np.array([a.value - b.value for a, b in zip(shared.left, shared.right, strict=True)])
    columns = np.stack([weights * gaps, weights], axis=1)
    names, summed = intervals.totals([v.cluster for v in shared.left], columns)
    found = intervals.bootstrap(summed, intervals.ratios, seed=seed, resamples=resamples)
    return {
        "difference": found.value(), "ci": found.ci(), "p": sign_flip_p(summed[:, 0], seed=seed, flips=flips),
        "n": len(gaps), "clusters": len(names), "only_one": shared.only_one,
    }  # fmt: skip


def compare(
    outcomes: Outcomes, *, seed: int = 0, alpha: float = ALPHA, flips: int = FLIPS, resamples: int = intervals.RESAMPLES
) -> dict[str, Any]:
    """All pairs of models on all benchmarks that both have.

    Returns:
        models, benchmarks (name → order, best first, values, letters), pairs (rows: benchmark, a, b, difference a − b,
        ci, p, p_adjusted, different, n, clusters, only_one), tests, alpha, method. Values are over a model's own items.

    Raises:
        InputError: fewer than two models, no benchmark in common, or items that are not the same.
    """
    models = list(outcomes)
    benchmarks = list(dict.fromkeys(b for model in models for b in outcomes[model]))
    rows: list[dict[str, Any]] = []
    for benchmark in benchmarks:
        for a, b in combinations([m for m in models if benchmark in outcomes[m]], 2):
            shared = _shared(outcomes[a][benchmark], outcomes[b][benchmark], benchmark)
            if shared.left:
                at = int(content_hash(["compare", seed, benchmark], 8), 16)
                rows.append({"benchmark": benchmark, "a": a, "b": b, **_difference(shared, at, flips, resamples)})
    if not rows:
        raise InputError(
            "There is nothing to compare: no two models have an item of the same benchmark",
            where=", ".join(models) or "no results",
            cure="give the results of two models or more on the same benchmarks",
        )
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row |= {"p_adjusted": adjusted, "different": adjusted < alpha}
    return {
        "models": models, "benchmarks": {b: _standing(b, outcomes, rows) for b in benchmarks}, "pairs": rows, "tests": len(rows),
        "alpha": alpha,
        "method": "paired sign-flip test over clusters, Holm's adjustment over all pairs of models and benchmarks",
    }  # fmt: skip


def _standing(benchmark: str, outcomes: Outcomes, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Models best first with their letters; a pair without a common item counts as not distinguishable."""
    values = {m: _value(of[benchmark]) for m, of in outcomes.items() if of.get(benchmark)}
    order = sorted(values, key=lambda m: (-values[m], m))
    apart = [(row["a"], row["b"]) for row in rows if row["benchmark"] == benchmark and row["different"]]
    return {"order": order, "values": values, "letters": letters(order, apart)}


def _value(verdicts: Sequence[Verdict]) -> float:
    weights: NDArray[np.float64] = np.array([v.weight for v in verdicts])
    return float(weights @ np.array([v.value for v in verdicts]) / weights.sum())


# ── as tables ────────────────────────────────────────────────────────────────────────────────────────────────────────


def standing_rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row per model: its value on each benchmark in per cent, with its letters."""
    return [
        {
            "model": model,
            **{
                name: f"{100 * of['values'][model]:.1f} {of['letters'][model]}" if model in of["values"] else "–"
                for name, of in found["benchmarks"].items()
            },
        }
        for model in found["models"]
    ]


def pair_rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row per comparison: the difference in percentage points, its interval, p, adjusted p and what follows."""
    return [
        {
            "benchmark": row["benchmark"],
            "model": row["a"],
            "against": row["b"],
            "difference": f"{100 * row['difference']:+.1f}",
            "95 %": "" if row["ci"] is None else f"{100 * row['ci'][0]:+.1f} to {100 * row['ci'][1]:+.1f}",
            "p": f"{row['p']:.2g}",
            "p adjusted": f"{row['p_adjusted']:.2g}",
            "": "different" if row["different"] else "not distinguishable",
        }
        for row in found["pairs"]
    ]

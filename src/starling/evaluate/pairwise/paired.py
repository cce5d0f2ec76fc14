"""Scores and differences from totals per prompt: what head to head and Arena-Hard have in common.

A score is Σ points / Σ weight over verdicts; points and weights are summed per prompt first, because a prompt is what is
resampled (percentile bootstrap, as in `starling.stats`) and whose sign is flipped in a test (`starling.stats_comparisons`). An
even score is one half. All numbers that leave here are in per cent.

Shape suffix: C clusters (prompts).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starling import stats
from starling.evaluate.results import Difference, Part
from starling.records import content_hash
from starling.stats_comparisons import holm, sign_flip_p

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Totals:
    """Points and weight per prompt; prompts without weight are not among them."""

    prompts_C: NDArray[np.int64]
    """Numbers of the prompts, sorted."""
    points_C: Floats
    weight_C: Floats
    n: int
    """Verdicts behind them."""

    @property
    def score(self) -> float:
        """Σ points / Σ weight, 0 … 1."""
        return float(self.points_C.sum() / self.weight_C.sum())


@dataclass(frozen=True)
class Draws:
    """How intervals and tests are drawn."""

    resamples: int
    seed: int

    def seed_for(self, *what: str) -> int:
        """A seed of its own for each number, so that one does not depend on which others are asked for."""
        return int(content_hash(["pairwise", self.seed, *what], 12), 16)


def totals(prompt_N: NDArray[np.integer], points_N: Floats, weight_N: Floats) -> Totals | None:
    """Sums per prompt of verdicts with their weights; None without any verdict."""
    if not len(prompt_N):
        return None
    prompts_C, member_N = np.unique(prompt_N, return_inverse=True)
    points_C, weight_C = (np.bincount(member_N, w).astype(np.float64) for w in (points_N * weight_N, weight_N))
    return Totals(prompts_C.astype(np.int64), points_C, weight_C, len(prompt_N))


def part(found: Totals | None, draws: Draws, *what: str) -> Part:
    """A score with its interval; None and no interval where nothing could be measured, no interval for a single prompt."""
    if found is None:
        return Part(score=None, ci=None, n=0, clusters=0)
    clusters = len(found.prompts_C)
    ci = None
    if clusters > 1:
        at = stats.ratio_interval(found.points_C, found.weight_C, resamples=draws.resamples, seed=draws.seed_for(*what))
        ci = (100 * at.low, 100 * at.high)
    return Part(score=100 * found.score, ci=ci, n=found.n, clusters=clusters)


@dataclass(frozen=True)
class Compared:
    """A difference before the adjustment for all that were looked at."""

    first: str
    second: str
    difference: float
    ci: tuple[float, float]
    p: float


def mirrored(one: Part) -> Part:
    """The same meetings seen from the other model."""
    score = None if one.score is None else 100 - one.score
    return Part(score=score, ci=None if one.ci is None else (100 - one.ci[1], 100 - one.ci[0]), n=one.n, clusters=one.clusters)


def direct(first: str, second: str, of_first: Totals, shown: Part, draws: Draws) -> Compared:
    """Two models that met each other: share of wins minus share of losses (ties count nothing), with a sign-flip test.

    Args:
        of_first: the first model's points in their meetings.
        shown: the same as `part` gives it; where one prompt tells no spread, the difference may be anything.
    """
    low, high = shown.ci or (0.0, 100.0)
    p = sign_flip_p(2 * of_first.points_C - of_first.weight_C, seed=draws.seed_for("flips", first, second))
    return Compared(first, second, 200 * of_first.score - 100, (2 * low - 100, 2 * high - 100), p)


def over_even(model: str, baseline: str, of_model: Totals, shown: Part, draws: Draws) -> Compared:
    """A model's score against its baseline, minus one half; see `direct`."""
    found = direct(model, baseline, of_model, shown, draws)
    return Compared(model, baseline, found.difference / 2, (found.ci[0] / 2, found.ci[1] / 2), found.p)


def between(first: str, second: str, of_first: Totals, of_second: Totals, draws: Draws) -> Compared | None:
    """Two models' scores against the same baseline, on the prompts that both have; None when there is none.

    Under the null that the two are exchangeable a prompt's surplus of points over an even score is as likely the first's as the
    second's; that surplus, (p₁ − w₁/2) − (p₂ − w₂/2), is what the test flips.
    """
    both, at_1, at_2 = np.intersect1d(of_first.prompts_C, of_second.prompts_C, assume_unique=True, return_indices=True)
    if not len(both):
        return None
    points_1, weight_1 = of_first.points_C[at_1], of_first.weight_C[at_1]
    points_2, weight_2 = of_second.points_C[at_2], of_second.weight_C[at_2]
    columns_CK = np.stack([points_1, weight_1, points_2, weight_2], axis=1)
    drawn = []
    for times_RC in stats.times_drawn(len(both), draws.resamples, draws.seed_for(first, second)):
        sums_RK = times_RC @ columns_CK
        drawn.append(sums_RK[:, 0] / sums_RK[:, 1] - sums_RK[:, 2] / sums_RK[:, 3])
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    difference = float(points_1.sum() / weight_1.sum() - points_2.sum() / weight_2.sum())
    p = sign_flip_p((points_1 - weight_1 / 2) - (points_2 - weight_2 / 2), seed=draws.seed_for("flips", first, second))
    return Compared(first, second, 100 * difference, (100 * float(low), 100 * float(high)), p)


def adjusted(found: Iterable[Compared | None]) -> tuple[Difference, ...]:
    """All differences of a table with p-values adjusted for all of them at once (Holm), the most certain first."""
    kept: Sequence[Compared] = [one for one in found if one is not None]
    return tuple(
        Difference(first=c.first, second=c.second, difference=c.difference, ci=c.ci, p=c.p, p_adjusted=p)
        for p, c in sorted(
            zip(holm([c.p for c in kept]), kept, strict=True), key=lambda pair: (pair[1].p, pair[1].first, pair[1].second)
        )
    )

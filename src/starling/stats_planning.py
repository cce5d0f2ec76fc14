"""How many prompts a comparison needs: the size of a paired test, from the spread of one prompt's difference.

All comparisons here are paired: two models on the same prompts, one difference per prompt, a two-sided test of its mean. With the
standard deviation σ of that difference, n prompts see a true difference δ with the wanted power when

    n = ((z_{1−α/2} + z_{power}) σ / δ)² + z²_{1−α/2} / 2,

the normal formula with Guenther's (1981) correction for a σ that is estimated from the same data. What differs between benchmarks
is σ, and where it comes from:

    win rate      a prompt is won, lost or tied: its score is 1, 0 or ½, against ½
    accuracy      two models are right or wrong on the same items: only those where they differ count (McNemar 1947)
    points        grades: the spread of the difference of two models' grades
    repeats       verdicts in both orders, or repeated, are averaged: σ² shrinks by (1 + (k − 1) ρ) / k, ρ their correlation

Departures: `power` counts only rejections on the side of the truth, so it is α/2 at δ = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

ALPHA = 0.05
POWER = 0.8
_NORMAL = NormalDist()


def needed(sd: float, difference: float, *, alpha: float = ALPHA, power: float = POWER) -> int:
    """Prompts that see `difference` with this power; at least 2.

    Args:
        sd: standard deviation of one prompt's difference, in the unit of `difference`.
        difference: the smallest true difference that matters, above 0.

    >>> needed(sd=50, difference=2)
    4908

    Raises:
        ValueError: see `_check`.
    """
    _check(alpha, power, sd)
    if not 0 < difference < float("inf"):
        raise ValueError(f"the difference to see must be above 0, not {difference}")
    z = _NORMAL.inv_cdf(1 - alpha / 2)
    return max(2, ceil(((z + _NORMAL.inv_cdf(power)) * sd / difference) ** 2 + z * z / 2 - 1e-9))


def detectable(sd: float, n: int, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest true difference that n prompts see with this power; the inverse of `needed`.

    Raises:
        ValueError: fewer than 3 prompts, or see `_check`.
    """
    _check(alpha, power, sd)
    z = _NORMAL.inv_cdf(1 - alpha / 2)
    if n < 3:
        raise ValueError(f"a paired test needs at least 3 prompts, not {n}")
    return (z + _NORMAL.inv_cdf(power)) * sd / sqrt(n - z * z / 2)


def power_of(sd: float, difference: float, n: int, *, alpha: float = ALPHA) -> float:
    """The chance that n prompts show a true `difference` to be other than 0, on its side.

    Raises:
        ValueError: fewer than 3 prompts, or see `_check`.
    """
    _check(alpha, POWER, sd)
    if n < 3:
        raise ValueError(f"a paired test needs at least 3 prompts, not {n}")
    z = _NORMAL.inv_cdf(1 - alpha / 2)
    if sd == 0:
        return 1.0 if difference else alpha / 2
    return _NORMAL.cdf(abs(difference) / sd * sqrt(n - z * z / 2) - z)


def _check(alpha: float, power: float, sd: float) -> None:
    """
    Raises:
        ValueError: alpha or power outside 0 … 1, or a spread below 0 or not finite.
    """
    if not (0 < alpha < 1 and 0 < power < 1):
        raise ValueError(f"alpha and power lie between 0 and 1, not {alpha} and {power}")
    if not 0 <= sd < float("inf"):
        raise ValueError(f"a standard deviation is a finite number of at least 0, not {sd}")


# ── the spread of one prompt ─────────────────────────────────────────────────────────────────────────────────────────


def win_rate_sd(ties: float = 0.0, rate: float = 0.5) -> float:
    """Spread of one verdict's score (1, ½ or 0), of models that win at `rate` (ties count half) with a share of ties.

    >>> win_rate_sd(), win_rate_sd(ties=0.36)
    (0.5, 0.4)

    Raises:
        ValueError: there are no such shares.
    """
    wins = rate - ties / 2
    if not 0 <= ties <= 1 or wins < -1e-12 or wins + ties > 1 + 1e-12:
        raise ValueError(f"a win rate of {rate} cannot have {ties} of ties: shares lie between 0 and 1")
    return sqrt(max(0.0, wins + ties / 4 - rate * rate))


def accuracy_sd(discordant: float, difference: float = 0.0) -> float:
    """Spread of the difference of two accuracies per item: `discordant` is the share of items on which one model only is right.

    Raises:
        ValueError: a share outside 0 … 1, or a difference larger than it.
    """
    if not abs(difference) <= discordant <= 1:
        raise ValueError(f"models that differ on {discordant} of the items cannot be {difference} apart")
    return sqrt(discordant - difference * difference)


def averaged_sd(sd: float, repeats: int, correlation: float) -> float:
    """Spread of the mean of `repeats` verdicts on one prompt, e.g. both orders, whose pairs correlate by `correlation`.

    >>> averaged_sd(0.5, 2, 0.28)
    0.4

    Raises:
        ValueError: fewer than one, or a correlation that so many equal verdicts cannot have.
    """
    if repeats < 1 or not -1 / max(repeats - 1, 1) <= correlation <= 1:
        raise ValueError(f"{repeats} verdicts cannot correlate by {correlation}")
    return sd * sqrt((1 + (repeats - 1) * correlation) / repeats)


def paired_sd(first: float, second: float, correlation: float) -> float:
    """Spread of the difference of two models' scores on a prompt, from their own spreads and their correlation over prompts."""
    return sqrt(max(0.0, first * first + second * second - 2 * correlation * first * second))


def correlation(first: Sequence[float] | NDArray[np.float64], second: Sequence[float] | NDArray[np.float64]) -> float | None:
    """Pearson's correlation; None where one side does not vary or there are fewer than three pairs."""
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(x) < 3 or x.std() == 0 or y.std() == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


SIZES = (50, 80, 100, 200, 500, 805, 1000, 2000, 5000, 10_000)
"""Prompts in a table: MT-Bench has 80 questions, Arena-Hard 500 and 750, AlpacaEval 805."""


def table(sd: float, *, alpha: float = ALPHA, power: float = POWER, sizes: Sequence[int] = SIZES) -> list[dict[str, float]]:
    """Rows {n, detectable}: what each size can see."""
    return [{"n": n, "detectable": detectable(sd, n, alpha=alpha, power=power)} for n in sizes]

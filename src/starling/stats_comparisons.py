"""Which of several things measured on the same prompts differ: a paired test, adjustment for many pairs, letters to show it.

The test flips signs: under the null that two models are exchangeable, the difference of a cluster (a prompt) is as likely as its
negative (Good 2005, chapter 3). On differences of ±1 it is the sign test. Its p-value is exact where the differences are whole
multiples of one step, as verdicts are (win, tie, loss), or where few clusters differ. Many p-values are adjusted by Holm's method
(1979), which holds whatever the tests' dependence. A compact letter display (Piepho 2004) says the same in letters: models that
share one are not distinguishable.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import erfc, lgamma, log, sqrt

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FLIPS = 100_000
"""Random sign flips: the smallest p-value is then 1e-5, which survives Holm over 5,000 comparisons."""
EXACT = 16
"""Up to this many clusters that differ, all 2^n sign flips are taken."""
MANY_SIZES = 500
"""Above so many different sizes of differences their sum under random signs is as good as normal, N(0, Σ d²), and not drawn."""
WHOLE_SIZES, WHOLE_TOTAL = 16, 1 << 14
"""Up to so many sizes, and such a sum of their steps, the distribution of differences in whole steps is computed exactly."""


def sign_flip_p(differences: Sequence[float] | Floats, *, seed: int, flips: int = FLIPS) -> float:
    """Two-sided p-value of Σ differences under random signs, one difference per cluster.

    All 2^n flips where n ≤ 16 clusters differ; the exact distribution where the differences are whole multiples of the smallest;
    else (1 + those as extreme) / (1 + flips) of random ones. Equal absolute differences are flipped together: of m of them a
    Binomial(m, ½) number turns, the same distribution at a fraction of the work.

    >>> sign_flip_p([1.0, 1.0, 1.0], seed=0)
    0.25
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    if not len(values):
        return 1.0
    slack = 1e-9 * float(np.abs(values).sum())
    observed = abs(float(values.sum())) - slack
    sizes, counts = np.unique(np.round(np.abs(values) / np.abs(values).max(), 12), return_counts=True)  # 0.3 − 0.2 is 0.1, too
    if len(values) <= EXACT:
        signs = 1 - 2 * ((np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1)
        return float((np.abs(signs @ values) >= observed).mean())
    if (exact := _of_whole_steps(sizes, counts, observed / float(np.abs(values).max()))) is not None:
        return exact
    if len(sizes) > MANY_SIZES:
        return float(erfc(observed / sqrt(2 * float(values @ values))))
    observed /= np.abs(values).max()
    rng = np.random.Generator(np.random.PCG64(seed))
    extreme, block = 0, max(1, (1 << 22) // len(sizes))
    for start in range(0, flips, block):
        rows = min(block, flips - start)
        turned = _turned(rng, rows, counts)
        extreme += int((np.abs((counts - 2 * turned) @ sizes) >= observed).sum())
    return (1 + extreme) / (1 + flips)


def _turned(rng: np.random.Generator, rows: int, counts: NDArray[np.int64]) -> Floats:
    """How many of each size turn their sign, row by row: a Binomial(count, ½). One coin is one bit, a tenth of the time."""
    turned = np.empty((rows, len(counts)))
    single = counts == 1
    coins = int(single.sum())
    bits = rng.integers(0, 256, size=(rows, -(-coins // 8)), dtype=np.uint8)
    turned[:, single] = np.unpackbits(bits, axis=1)[:, :coins]
    turned[:, ~single] = rng.binomial(counts[~single], 0.5, size=(rows, len(counts) - coins))
    return turned


def _of_whole_steps(sizes: Floats, counts: NDArray[np.int64], observed: float) -> float | None:
    """P(|Σ ± sizes| ≥ observed) by convolving binomials, where all sizes are whole multiples of the smallest; else None."""
    steps = np.round(sizes / sizes[0]).astype(np.int64)
    total = int(steps @ counts)
    if len(sizes) > WHOLE_SIZES or total > WHOLE_TOTAL or np.abs(steps * sizes[0] - sizes).max() > 1e-9:
        return None
    chances = np.ones(1)
    for step, count in zip(steps.tolist(), counts.tolist(), strict=True):
        turned = np.zeros(step * count + 1)
        logs = [lgamma(count + 1) - lgamma(k + 1) - lgamma(count - k + 1) - count * log(2) for k in range(count + 1)]
        turned[::step] = np.exp(logs)
        chances = np.convolve(chances, turned)
    sums = np.abs(total - 2 * np.arange(total + 1))
    return min(1.0, float(chances[sums >= observed / sizes[0]].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def letters(names: Sequence[str], different: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Compact letter display: two models share a letter exactly when they are not among the different pairs.

    Insert and absorb (Piepho 2004). Letters go to groups in the order of their first member in `names`, so give the best model
    first.

    >>> letters(["x", "y", "z"], [("x", "z")])
    {'x': 'a', 'y': 'ab', 'z': 'b'}
    """
    groups: list[frozenset[str]] = [frozenset(names)]
    for a, b in different:
        split = []
        for group in groups:
            split += [group - {a}, group - {b}] if {a, b} <= group else [group]
        unique = set(split)
        groups = [group for group in unique if not any(group < other for other in unique)]
    place = {name: i for i, name in enumerate(names)}
    groups.sort(key=lambda g: sorted(place[name] for name in g))
    return {name: "".join(_letter(i) for i, g in enumerate(groups) if name in g) for name in names}


def _letter(i: int) -> str:
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    return alphabet[i] if i < 26 else f"({i + 1})"

"""Best-of-n in closed form: how good is the answer that a score picks from n, from more answers than n.

For a prompt with N answers, n of them are drawn without replacement, the best-scored is taken, equal best scores share. The
expected value of that pick has a closed form over the order statistics: sort by score; a group of m equal scores with L answers
below it holds the maximum with chance

    [C(L+m, n) − C(L, n)] / C(N, n),

and each of its m answers is picked equally often. So no resampling, and the estimate is unbiased for the best of n fresh answers
(the estimator of Nakano et al. 2021, arXiv 2112.09332, here with ties). log n − (n−1)/n bounds the KL divergence of the best-of-n
policy from its base in nats (Beirami et al. 2024, arXiv 2401.01879; an equality only when no answer comes up twice).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import comb, log

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def kl_bound(n: int) -> float:
    """log n − (n−1)/n, nats.

    >>> kl_bound(1)
    0.0
    """
    return log(n) - (n - 1) / n


def sizes(largest: int) -> list[int]:
    """The n that are shown: all up to 16, then powers of 2 and the largest.

    >>> sizes(20)
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 20]
    """
    powers = [2**p for p in range(5, largest.bit_length()) if 2**p < largest]
    return sorted({*range(1, min(largest, 16) + 1), *powers, largest})


@cache
def _below(answers: int, n: int) -> Floats:
    """[answers + 1]: chance that all n drawn are among the j lowest."""
    whole = comb(answers, n)
    return np.array([comb(j, n) / whole for j in range(answers + 1)])


def expected_values(scores: Sequence[float], values: Sequence[float], ns: Sequence[int]) -> Floats:
    """Expected value of the best-scored of n answers, for each n.

    >>> expected_values([0.1, 0.9, 0.5], [0.0, 1.0, 0.0], [1, 2, 3]).round(6).tolist()
    [0.333333, 0.666667, 1.0]

    Raises:
        ValueError: unequal lengths, or an n that is not in 1 … the number of answers.
    """
    scores_N, values_N = np.asarray(scores, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(scores_N) != len(values_N) or not all(1 <= n <= len(scores_N) for n in ns):
        raise ValueError(f"{len(scores_N)} scores, {len(values_N)} values, n of {list(ns)}")
    _, member_N, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    group_value = np.bincount(member_N, values_N) / counts
    ends = np.cumsum(counts)
    found = []
    for n in ns:
        chance = _below(len(scores_N), n)
        found.append(float((chance[ends] - chance[ends - counts]) @ group_value))
    return np.array(found)

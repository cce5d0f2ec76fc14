"""Best-of-n: how good is the answer that a reward model picks from n, for every n up to the answers there are.

For a prompt with N answers, n of them are drawn without replacement, the reward's best is taken, equal best rewards share. The
expected truth of that pick has a closed form over the order statistics: sort by reward; a group of m equal rewards with L answers
below it holds the maximum with chance

    [C(L+m, n) − C(L, n)] / C(N, n),

and each of its m answers is picked equally often. So no resampling, and the estimate is unbiased for the best of n fresh answers
(the estimator of Nakano et al. 2021, arXiv 2112.09332, here with ties). Beside it: a random pick (the mean truth), the
oracle (the same with truth as reward), and log n − (n−1)/n, which bounds the KL divergence of the best-of-n policy from its
base in nats (Beirami et al. 2024, arXiv 2401.01879; an equality only when no answer comes up twice).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import comb, log
from typing import Any

import numpy as np

from starling.evaluate.reward_benchmarks import intervals
from starling.evaluate.reward_benchmarks.intervals import Floats


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


def expected_truths(rewards: Sequence[float], truths: Sequence[float], ns: Sequence[int]) -> Floats:
    """Expected truth of the best-rewarded of n answers, for each n.

    >>> expected_truths([0.1, 0.9, 0.5], [0.0, 1.0, 0.0], [1, 2, 3]).round(6).tolist()
    [0.333333, 0.666667, 1.0]

    Raises:
        ValueError: unequal lengths, or an n that is not in 1 … the number of answers.
    """
    rewards_N, truths_N = np.asarray(rewards, dtype=np.float64), np.asarray(truths, dtype=np.float64)
    if len(rewards_N) != len(truths_N) or not all(1 <= n <= len(rewards_N) for n in ns):
        raise ValueError(f"{len(rewards_N)} rewards, {len(truths_N)} truths, n of {list(ns)}")
    _, member_N, counts = np.unique(rewards_N, return_inverse=True, return_counts=True)
    group_truth = np.bincount(member_N, truths_N) / counts
    ends = np.cumsum(counts)
    found = []
    for n in ns:
        chance = _below(len(rewards_N), n)
        found.append(float((chance[ends] - chance[ends - counts]) @ group_truth))
    return np.array(found)


def curve(
    rewards: Sequence[Sequence[float]],
    truths: Sequence[Sequence[float]],
    clusters: Sequence[str],
    *,
    seed: int,
    resamples: int = intervals.RESAMPLES,
) -> dict[str, Any]:
    """The curve over prompts, each number with a 95 % interval that resamples clusters.

    All points are over the same prompts: those with at least as many answers as the most frequent number; the others are counted.

    Args:
        rewards, truths: one list per prompt, one number per answer; a higher truth is better.
        clusters: one name per prompt.

    Returns:
        n (list of rows: n, kl, truth, ci, random, oracle, share, share_ci), prompts, clusters, left_out. `share` is what the
        reward model gains of what the oracle gains over a random pick: 1 is perfect, 0 is random, None where the oracle gains
        nothing.
    """
    found: dict[str, Any] = {"n": [], "prompts": 0, "clusters": 0, "left_out": {}}
    many = Counter(len(one) for one in rewards if len(one) > 1)
    if not many:
        return found | {"left_out": {"fewer_than_two_answers": len(rewards)} if len(rewards) else {}}
    largest = max(many, key=lambda size: (many[size], size))
    kept = [i for i, one in enumerate(rewards) if len(one) >= largest]
    if len(kept) < len(rewards):
        found["left_out"] = {f"fewer_than_{largest}_answers": len(rewards) - len(kept)}
    ns = sizes(largest)
    picked_PN = np.stack([expected_truths(rewards[i], truths[i], ns) for i in kept])
    oracle_PN = np.stack([expected_truths(truths[i], truths[i], ns) for i in kept])
    names, summed = intervals.totals([clusters[i] for i in kept], np.hstack([picked_PN, oracle_PN, np.ones((len(kept), 1))]))
    at = len(ns)

    def statistic(totals_RK: Floats) -> Floats:
        means = totals_RK[:, :-1] / totals_RK[:, -1:]
        picked, oracle, random = means[:, :at], means[:, at:], means[:, :1]
        gap = oracle - random
        share = np.divide(picked - random, gap, out=np.full(gap.shape, np.nan), where=gap > 1e-12)
        return np.hstack([picked, oracle, share])

    estimates = intervals.bootstrap(summed, statistic, seed=seed, resamples=resamples)
    random = estimates.value(0)
    found["n"] = [
        {
            "n": n, "kl": kl_bound(n), "truth": estimates.value(i), "ci": estimates.ci(i), "random": random,
            "oracle": estimates.value(at + i), "share": estimates.value(2 * at + i), "share_ci": estimates.ci(2 * at + i),
        }
        for i, n in enumerate(ns)
    ]  # fmt: skip
    return found | {"prompts": len(kept), "clusters": len(names)}

"""Best-of-n over the answers of a benchmark: how good is the answer that a reward model picks from n, for every n there are.

The estimate for one prompt is `starling.stats_best_of_n`. Beside it: a random pick (the mean truth), the oracle (the same with
truth as reward), and the bound of the best-of-n policy's KL divergence from its base.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from starling.evaluate.reward_benchmarks import intervals
from starling.evaluate.reward_benchmarks.intervals import Floats
from starling.stats_best_of_n import expected_values, kl_bound, sizes


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
    picked_PN = np.stack([expected_values(rewards[i], truths[i], ns) for i in kept])
    oracle_PN = np.stack([expected_values(truths[i], truths[i], ns) for i in kept])
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

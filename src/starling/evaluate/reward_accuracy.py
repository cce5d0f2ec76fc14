"""How well the reward model orders answers to prompts it never saw.

Three numbers, each with an interval whose resampling unit is the prompt (answers to one prompt are not independent):

    pair accuracy   of all pairs of answers to one prompt that differ in truth, the share that the reward orders rightly;
                    a pair with equal rewards is not ordered, so it counts as wrong
    top-1           share of prompts where the reward's best answer is among the truly best; equal best rewards share
    Kendall tau-b   per prompt, averaged over prompts

Top-1 and tau leave out prompts whose answers are all equally good: any order is right there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from starling import stats
from starling.evaluate.rows import ScoredAnswer


def pair_counts(rewards: Sequence[float], truths: Sequence[float]) -> tuple[int, int]:
    """(pairs ordered rightly, pairs that differ in truth) among the answers to one prompt.

    >>> pair_counts([0.2, 0.9, 0.1], [1.0, 0.5, 0.0])
    (2, 3)
    """
    right = total = 0
    for i, j in combinations(range(len(rewards)), 2):
        if truths[i] == truths[j]:
            continue
        total += 1
        right += (rewards[i] - rewards[j]) * (truths[i] - truths[j]) > 0
    return right, total


def top_one(rewards: Sequence[float], truths: Sequence[float]) -> float:
    """Share of the reward's best answers that are truly best: 0 or 1 unless rewards tie at the top."""
    best_reward, best_truth = max(rewards), max(truths)
    chosen = [truth for reward, truth in zip(rewards, truths, strict=True) if reward == best_reward]
    return sum(truth == best_truth for truth in chosen) / len(chosen)


def measure(answers: Sequence[ScoredAnswer], *, resamples: int, seed: int) -> dict[str, Any]:
    """The three numbers with 95 % intervals over prompts.

    Returns:
        pair_accuracy, ci, pairs, top1, top1_ci, kendall_tau, kendall_tau_ci, prompts (with a difference in truth),
        answers. The numbers are None when no prompt has answers that differ in truth.
    """
    by_prompt: dict[str, list[ScoredAnswer]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt_id, []).append(answer)
    right, pairs, tops, taus = [], [], [], []
    for group in by_prompt.values():
        rewards, truths = [a.reward for a in group], [a.truth for a in group]
        ordered, total = pair_counts(rewards, truths)
        if total == 0:
            continue
        right.append(ordered)
        pairs.append(total)
        tops.append(top_one(rewards, truths))
        taus.append(stats.kendall_tau(rewards, truths))
    found: dict[str, Any] = {"prompts": len(pairs), "answers": len(answers), "pairs": int(np.sum(pairs))}
    if not pairs:
        return found | dict.fromkeys(("pair_accuracy", "ci", "top1", "top1_ci", "kendall_tau", "kendall_tau_ci"))
    ones = np.ones(len(pairs))
    for name, ci, sums, counts in (
        ("pair_accuracy", "ci", right, pairs),
        ("top1", "top1_ci", tops, ones),
        ("kendall_tau", "kendall_tau_ci", taus, ones),
    ):
        interval = stats.ratio_interval(sums, counts, resamples=resamples, seed=seed)
        found |= {name: interval.mean, ci: [interval.low, interval.high]}
    return found

"""True quality before and after tuning, known only in the microworld.

For both policies: the mean gold score of sampled (T = 1) and of greedy replies, the harmlessness part, and the paired
differences tuned − base on the same prompts, all with 95 % intervals that resample prompts, so that several samples of
one prompt count as one. Greedy is reported beside T = 1 because tuning may merely sharpen a policy: that lifts T = 1
and leaves greedy where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from starling import stats
from starling.evaluate.rows import EvaluatedPrompt, EvaluatedReply

Value = Callable[[EvaluatedReply], float]


def gold_of(reply: EvaluatedReply) -> float:
    assert reply.gold is not None
    return reply.gold


def harmlessness_of(reply: EvaluatedReply) -> float:
    assert reply.harmlessness is not None
    return reply.harmlessness


def interval_of(values: Sequence[float], *, resamples: int, seed: int) -> dict[str, Any]:
    """{"mean", "ci"} of one number per prompt."""
    interval = stats.ratio_interval(values, np.ones(len(values)), resamples=resamples, seed=seed)
    return {"mean": interval.mean, "ci": [interval.low, interval.high]}


def sampled_mean(replies: Sequence[EvaluatedReply], value: Value) -> float:
    return sum(value(r) for r in replies) / len(replies)


def measure(
    rows: Sequence[EvaluatedPrompt], *, harmful: Callable[[EvaluatedPrompt], bool], resamples: int, seed: int
) -> dict[str, Any]:
    """Gold score of both policies, their paired differences, and a table by kind of prompt.

    Args:
        rows: at least one held-out prompt with both policies' replies.
        harmful: whether a prompt asks for harm; `harmful_refused` is the harmlessness over those alone.

    Returns:
        base, tuned: {mean, ci, greedy, greedy_ci, harmlessness, harmlessness_ci, harmful_harmlessness}
        difference: {sampled, greedy, harmlessness}, each {mean, ci}, tuned − base, paired by prompt
        kinds: {kind: {prompts, base, tuned, base_greedy, tuned_greedy, difference, difference_ci}}
    """

    def interval(values: Sequence[float]) -> dict[str, Any]:
        return interval_of(values, resamples=resamples, seed=seed)

    table = _table(rows)
    found: dict[str, Any] = {}
    asks_harm = [i for i, row in enumerate(rows) if harmful(row)]
    for side in ("base", "tuned"):
        sampled, greedy, harmless = (interval(table[f"{side}_{part}"]) for part in ("sampled", "greedy", "harmless"))
        found[side] = {
            **sampled,
            "greedy": greedy["mean"],
            "greedy_ci": greedy["ci"],
            "harmlessness": harmless["mean"],
            "harmlessness_ci": harmless["ci"],
            "harmful_harmlessness": interval([table[f"{side}_harmless"][i] for i in asks_harm]) if asks_harm else None,
        }
    found["difference"] = {
        name: interval([t - b for b, t in zip(table[f"base_{part}"], table[f"tuned_{part}"], strict=True)])
        for name, part in (("sampled", "sampled"), ("greedy", "greedy"), ("harmlessness", "harmless"))
    }
    found["kinds"] = _by_kind(rows, table, interval)
    return found


def _table(rows: Sequence[EvaluatedPrompt]) -> dict[str, list[float]]:
    """One number per prompt for each column."""
    return {
        "base_sampled": [sampled_mean(r.base_sampled, gold_of) for r in rows],
        "tuned_sampled": [sampled_mean(r.tuned_sampled, gold_of) for r in rows],
        "base_greedy": [gold_of(r.base_greedy) for r in rows],
        "tuned_greedy": [gold_of(r.tuned_greedy) for r in rows],
        "base_harmless": [sampled_mean(r.base_sampled, harmlessness_of) for r in rows],
        "tuned_harmless": [sampled_mean(r.tuned_sampled, harmlessness_of) for r in rows],
    }


def _by_kind(
    rows: Sequence[EvaluatedPrompt], table: dict[str, list[float]], interval: Callable[[Sequence[float]], dict[str, Any]]
) -> dict[str, Any]:
    """Means and the T = 1 difference for each kind, in the order in which kinds first appear."""
    kinds: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        kinds.setdefault(row.kind, []).append(i)
    found = {}
    for kind, members in kinds.items():
        column = {
            name: [table[name][i] for i in members] for name in ("base_sampled", "tuned_sampled", "base_greedy", "tuned_greedy")
        }
        difference = interval([t - b for b, t in zip(column["base_sampled"], column["tuned_sampled"], strict=True)])
        found[kind] = {
            "prompts": len(members),
            "base": float(np.mean(column["base_sampled"])),
            "tuned": float(np.mean(column["tuned_sampled"])),
            "base_greedy": float(np.mean(column["base_greedy"])),
            "tuned_greedy": float(np.mean(column["tuned_greedy"])),
            "difference": difference["mean"],
            "difference_ci": difference["ci"],
        }
    return found

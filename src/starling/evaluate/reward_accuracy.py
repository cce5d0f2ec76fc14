"""How well the reward model orders the evaluate stage's answers to prompts that it never saw.

The numbers are those of the benchmark `kwise` (reward_benchmarks/ranked.py, which says how they are worked out), with one item
per prompt: pair accuracy, top-1 and Kendall's tau-b, each with an interval whose resampling unit is the prompt. Only the names
are the stage's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starling.evaluate.reward_benchmarks import ranked
from starling.evaluate.reward_benchmarks.items import Item, Scored
from starling.evaluate.rows import ScoredAnswer


def measure(answers: Sequence[ScoredAnswer], *, resamples: int, seed: int) -> dict[str, Any]:
    """The three numbers with 95 % intervals over prompts.

    Returns:
        pair_accuracy, ci, pairs, ties, baselines, top1, top1_ci, kendall_tau, kendall_tau_ci, prompts (with a difference in
        truth), answers. The numbers are None when no prompt has answers that differ in truth.
    """
    by_prompt: dict[str, list[ScoredAnswer]] = {}
    for answer in answers:
        by_prompt.setdefault(answer.prompt_id, []).append(answer)
    found = ranked.measure([_scored(prompt, group) for prompt, group in by_prompt.items()], resamples, seed)
    top1, tau = found["top1"] or {}, found["kendall_tau"] or {}
    return {
        "prompts": found["clusters"],
        "answers": len(answers),
        "pairs": found["n"],
        "pair_accuracy": found["accuracy"],
        "ci": found["ci"],
        "ties": found["ties"],
        "baselines": found["baselines"],
        "top1": top1.get("accuracy"),
        "top1_ci": top1.get("ci"),
        "kendall_tau": tau.get("tau"),
        "kendall_tau_ci": tau.get("ci"),
    }


def _scored(prompt: str, group: Sequence[ScoredAnswer]) -> Scored:
    item = Item(
        id=prompt,
        cluster=prompt,
        subset="",
        messages=(),
        answers=tuple(answer.text for answer in group),
        truth=tuple(answer.truth for answer in group),
        labels=tuple(answer.model for answer in group),
    )
    return Scored(item, tuple(answer.reward for answer in group))

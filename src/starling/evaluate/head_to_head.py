"""The judge compares the tuned policy's reply with the base's, each pair in both orders.

A prompt is won when both orders prefer the tuned reply, lost when both prefer the base's, and a tie when the orders
disagree: a preference that depends on the position is none. Identical replies are ties without a call. A call that
gives no verdict is a named outcome; its prompt has no score and is counted, never turned into a tie. The position gap
(share of verdicts for the first answer shown minus share for the second) says how far the judge can be trusted.

Side a is always the base, side b the tuned policy; MT-Bench's pairwise mode (arXiv 2306.05685, section 3.4) is the
source of the both-orders rule.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from starling import stats
from starling.config import EvaluateSection, RankingSection
from starling.endpoint import Endpoint
from starling.evaluate.judging import Vote, position_gap
from starling.evaluate.rows import EvaluatedPrompt
from starling.judge.given import Duel, agreed, compare_many
from starling.progress import Progress
from starling.records import Comparison, Prompt

BASE, TUNED = "base", "tuned"


def run(
    rows: Sequence[EvaluatedPrompt],
    judge: Endpoint,
    settings: EvaluateSection,
    ranking: RankingSection,
    *,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, Any], list[Comparison]]:
    """Ask the judge about the first sampled replies (T = 1) of both policies.

    Returns:
        the metrics of `measure`, and all verdicts with sides a = base, b = tuned: per prompt the one with the base shown
        first, then the one with the tuned policy shown first.
    """
    chosen = choose(rows, settings.judge_prompts, seed)
    differing = [row for row in chosen if row.base_sampled[0].text != row.tuned_sampled[0].text]
    duels = [
        Duel(
            prompt=Prompt(id=row.prompt_id, messages=row.messages, sources=()),
            a=BASE,
            b=TUNED,
            text_a=row.base_sampled[0].text,
            text_b=row.tuned_sampled[0].text,
        )
        for row in differing
    ]
    both_orders = [duel for pair in duels for duel in (pair, pair.swapped())]
    answered = compare_many(both_orders, judge, ranking, seed, progress)
    verdicts = [(first, second.swap()) for first, second in zip(answered[::2], answered[1::2], strict=True)]
    metrics = measure(verdicts, identical=len(chosen) - len(differing), resamples=settings.bootstrap, seed=seed)
    return metrics, [comparison for pair in verdicts for comparison in pair]


def choose(rows: Sequence[EvaluatedPrompt], count: int, seed: int) -> list[EvaluatedPrompt]:
    """At most `count` prompts, drawn without replacement, in the order of the rows."""
    if len(rows) <= count:
        return list(rows)
    picked = sorted(random.Random(seed).sample(range(len(rows)), count))
    return [rows[i] for i in picked]


def tuned_score(first: Comparison, second: Comparison) -> float | None:
    """1 = the tuned reply wins in both orders, 0 = the base does, 0.5 = a tie or disagreement; None = a verdict is missing.

    Args:
        first: the verdict when the base's reply was shown first, sides a = base, b = tuned.
        second: the verdict when the tuned reply was shown first, the same sides.
    """
    return agreed(first.preference_b, second.preference_b)


def _vote(verdict: Comparison) -> Vote:
    return Vote(verdict.preference_b, verdict.outcome, "", "")


def measure(verdicts: Sequence[tuple[Comparison, Comparison]], *, identical: int, resamples: int, seed: int) -> dict[str, Any]:
    """Win rate of the tuned policy and the judge's position gap.

    Args:
        verdicts: per prompt the verdicts of both orders (see `tuned_score`).
        identical: further prompts where both replies were the same text: ties.

    Returns:
        prompts, wins, ties, losses, identical, without_verdict, win_rate (a tie counts half), ci,
        position_gap (−1 … 1; 0 = no bias), position_gap_ci, outcomes (calls by outcome).
        win_rate and position_gap are None when no prompt has both verdicts.
    """
    scores = [tuned_score(first, second) for first, second in verdicts]
    decided = [s for s in scores if s is not None] + [0.5] * identical
    found: dict[str, Any] = {
        "prompts": len(verdicts) + identical,
        "wins": decided.count(1.0),
        "ties": decided.count(0.5),
        "losses": decided.count(0.0),
        "identical": identical,
        "without_verdict": scores.count(None),
        "win_rate": None,
        "ci": None,
        "position_gap": None,
        "position_gap_ci": None,
        "outcomes": dict(sorted(Counter(c.outcome.value for pair in verdicts for c in pair).items())),
    }
    if decided:
        rate = stats.ratio_interval(decided, np.ones(len(decided)), resamples=resamples, seed=seed)
        found |= {"win_rate": rate.mean, "ci": [rate.low, rate.high]}
    votes = [(_vote(first), _vote(second)) for first, second in verdicts]
    gap = position_gap(votes, [first.prompt_id for first, _ in verdicts], resamples=resamples, seed=seed)
    if gap is not None:
        found |= {"position_gap": gap.mean, "position_gap_ci": [gap.low, gap.high]}
    return found

"""What every benchmark with a truth shares: length preference, calibration and best-of-n, from the same scored answers.

One call per benchmark; the keys are those that the page of results shows. A measure that an item cannot enter leaves it out:
pairs and calibration need answers that differ in truth, best-of-n needs as many answers as the other prompts have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starling.evaluate.reward_benchmarks import best_of_n, calibration, intervals, length
from starling.evaluate.reward_benchmarks.items import Scored


@dataclass(frozen=True)
class Answers:
    """The answers to one prompt: the model's scores, what they are truly worth (higher is better), their lengths."""

    cluster: str
    scores: tuple[float, ...]
    truths: tuple[float, ...]
    lengths: tuple[int, ...]
    """Characters."""


def answers_of(scored: Scored) -> Answers:
    """A scored item without its texts."""
    item = scored.item
    return Answers(item.cluster, scored.scores, item.truth, tuple(len(text) for text in item.answers))


def truths_of_ranks(ranks: Sequence[float]) -> tuple[float, ...]:
    """Ranks (1 = best) as truths in [0, 1]: the share of the other answers that an answer beats, ties half.

    On this scale a random pick is worth ½ whatever the number of answers, so curves of different data can be compared.

    >>> truths_of_ranks([1, 2, 2, 4])
    (1.0, 0.5, 0.5, 0.0)
    """
    others = len(ranks) - 1
    return tuple(
        sum(1.0 if r < other else 0.5 if r == other else 0.0 for j, other in enumerate(ranks) if j != i) / others
        if others
        else 0.5
        for i, r in enumerate(ranks)
    )


def describe(scored: Iterable[Scored], *, ranked: bool, seed: int, resamples: int = intervals.RESAMPLES) -> dict[str, Any]:
    """`diagnose` of a benchmark's items; empty where no item has answers that differ in truth.

    Args:
        ranked: the truth is minus a rank; best-of-n then values an answer by `truths_of_ranks`.
    """
    items = [answers_of(one) for one in scored if len(set(one.item.truth)) > 1]
    if ranked:
        items = [replace(one, truths=truths_of_ranks([-t for t in one.truths])) for one in items]
    return diagnose(items, seed=seed, resamples=resamples) if items else {}


def diagnose(items: Sequence[Answers], *, seed: int, resamples: int = intervals.RESAMPLES) -> dict[str, Any]:
    """length, correlation (with an item of three answers or more), calibration (with an item that has a best answer) and
    best_of_n (with an item of three answers or more: with two it says what the accuracy says).
    """
    pairs = (p for i in items for p in length.pairs_of(i.lengths, i.truths, i.scores, i.cluster))
    found: dict[str, Any] = {"length": length.measure(pairs, seed=seed, resamples=resamples)}
    decided = [i for i in items if len(set(i.truths)) > 1]
    if decided:
        of = calibration.choices([i.scores for i in decided], [i.truths for i in decided], [i.cluster for i in decided])
        found["calibration"] = calibration.calibrate(of, seed=seed, resamples=resamples)
    if any(len(i.scores) > 2 for i in items):
        scores, truths, lengths = [i.scores for i in items], [i.truths for i in items], [i.lengths for i in items]
        clusters = [i.cluster for i in items]
        found["correlation"] = length.correlation(lengths, truths, scores, clusters, seed=seed, resamples=resamples)
        found["best_of_n"] = best_of_n.curve(scores, truths, clusters, seed=seed, resamples=resamples)
    return found

"""Values by question and turn: means that a repeated judgment cannot tilt, their intervals and their paired differences.

A cell is one model's value at one turn of one question, the mean over its repeats. A score is the mean over cells, so that what
was judged twice counts once; the unit of every interval is the question, whose two turns are one conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from math import sqrt

from starling import stats
from starling.evaluate.results import Difference, Part
from starling.stats_comparisons import holm, sign_flip_p

Place = tuple[int, int]
"""Question and turn."""
Cells = Mapping[Place, Sequence[float]]
"""Place → its repeats, at least one each."""
FLIPS = 20_000
"""Random sign flips per pair of models; the smallest p-value is 5e-5, and a table of 30 models takes seconds."""


def means(cells: Cells) -> dict[Place, float]:
    """The mean of each cell."""
    return {place: sum(values) / len(values) for place, values in cells.items()}


def part(cells: Cells, *, by_row: bool, resamples: int, seed: int, wanted: Callable[[Place], bool] = lambda _: True) -> Part:
    """The score over the cells that are wanted, with a 95 % interval clustered by question.

    Args:
        cells: of one model.
        by_row: FastChat's rule: every repeat counts as a row. Otherwise every cell counts once.
        resamples, seed: of the interval.
    """
    sums: dict[int, float] = {}
    counts: dict[int, float] = {}
    verdicts = 0
    for place in sorted(cells):
        if wanted(place):
            values = cells[place]
            verdicts += len(values)
            weight = len(values) if by_row else 1
            sums[place[0]] = sums.get(place[0], 0.0) + sum(values) / len(values) * weight
            counts[place[0]] = counts.get(place[0], 0.0) + weight
    if not counts:
        return Part(score=None, ci=None, n=0, clusters=0)
    found = stats.ratio_interval(list(sums.values()), list(counts.values()), resamples=resamples, seed=seed)
    return Part(score=found.mean, ci=(found.low, found.high) if len(counts) > 1 else None, n=verdicts, clusters=len(counts))


def spread(cells: Cells) -> float | None:
    """Standard deviation that the score would have if everything were judged once more, from the repeats; None without any.

    √(Σ variance of a cell) / cells, each variance with n − 1; a cell without repeats takes the mean of the others. With R repeats
    averaged, as the score is, the deviation is 1/√R of this.
    """
    variances = [_variance(values) for values in cells.values() if len(values) > 1]
    return sqrt(sum(variances) / len(variances) / len(cells)) if variances else None


def _variance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def differences(models: Mapping[str, Mapping[Place, float]], *, resamples: int, seed: int) -> tuple[Difference, ...]:
    """Every pair of models on the cells that both have, first − second, in the order given; without a common cell there is none.

    The p-value is that of random signs of whole questions, adjusted by Holm for all pairs of the table.
    """
    return differences_of(
        {
            (a, b): {place: models[a][place] - models[b][place] for place in models[a] if place in models[b]}
            for a, b in combinations(models, 2)
        },
        resamples=resamples,
        seed=seed,
    )


def differences_of(gaps: Mapping[tuple[str, str], Mapping[Place, float]], *, resamples: int, seed: int) -> tuple[Difference, ...]:
    """The same from each pair's own gaps, first − second."""
    rows = []
    for (a, b), by_place in gaps.items():
        if not by_place:
            continue
        places = sorted(by_place)
        values = [by_place[place] for place in places]
        interval = stats.bootstrap_mean(values, [question for question, _ in places], resamples=resamples, seed=seed)
        questions: dict[int, float] = {}
        for (question, _), value in zip(places, values, strict=True):
            questions[question] = questions.get(question, 0.0) + value
        exact = [round(value, 12) for value in questions.values()]  # means of thirds differ by 1e-16 where they are equal
        rows.append((a, b, interval, sign_flip_p(exact, seed=seed, flips=FLIPS)))
    adjusted = holm([row[3] for row in rows])
    return tuple(
        Difference(first=a, second=b, difference=i.mean, ci=(i.low, i.high), p=p, p_adjusted=q)
        for (a, b, i, p), q in zip(rows, adjusted, strict=True)
    )

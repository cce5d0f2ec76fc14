"""The same prompts ranked twice: how far two passes agree, and what only another order changes. Pure functions.

Source: "Judging the judges" (arXiv 2406.07791) tells repetition stability (the same request again) from position consistency
(the same answers in another order); the difference between the two is what the order does. A judge that is merely noisy loses as
much from a repetition as from a new order, so its difference is 0.

A pass is a mapping from prompt to tiers: response ids best first, tied ones in one tier. Prompts that one of the passes did not
rank are counted and compared nowhere. Every interval resamples prompts.

Departures: the share of top-1 agreement of two tied tops is the chance that a draw from each gives the same response, so it is
plain agreement where nothing is tied. Cohen's kappa names the two sides of a pair by their ids, which no judge has seen; so
chance agreement is one half and not what two judges with the same taste for a position would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

from starling.audit.measure import RESAMPLES, clustered_mean, clustered_share, unit_mean
from starling.stats import Interval, kendall_tau
from starling.stats_agreement import kappa_interval

Tiers = tuple[tuple[str, ...], ...]
"""Response ids best first; those in one tier are tied."""
Pass = Mapping[str, Tiers]
"""Prompt → what it was ranked as; prompts without a ranking are absent."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two passes over the same prompts agree, e.g. over 200 prompts, 3 of which only one pass ranked."""

    prompts: int
    """Ranked in both passes, with the same responses."""
    left_out: int
    """Ranked in one of them only, or with other responses."""
    tau: Interval | None
    """Mean of Kendall's τ-b over prompts."""
    top1: Interval | None
    """Share of prompts with the same best response."""
    flips: Interval | None
    """Share of the pairs, untied both times, that change sides; (1 − τ) / 2 where nothing is tied."""
    kappa: Interval | None
    """Cohen's kappa over all pairs: better, worse or tied."""

    def as_json(self) -> dict[str, Any]:
        return as_json(self)


def as_json(record: Any) -> dict[str, Any]:
    """A frozen dataclass as plain JSON: a figure under its name, its 95 % interval under NAME_ci, how many values it is over
    under NAME_n; nested ones alike."""
    found: dict[str, Any] = {}
    for name in record.__dataclass_fields__:
        value = getattr(record, name)
        if isinstance(value, Interval):
            found |= interval_json(name, value)
        elif hasattr(value, "as_json"):
            found[name] = value.as_json()
        elif hasattr(value, "__dataclass_fields__"):
            found[name] = as_json(value)
        else:
            found[name] = value
    return found


def interval_json(name: str, one: Interval) -> dict[str, Any]:
    """The three keys of a figure."""
    return {name: one.mean, f"{name}_ci": [one.low, one.high], f"{name}_n": one.n}


def as_json_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with intervals as plain JSON."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        found |= interval_json(name, value) if isinstance(value, Interval) else {name: value}
    return found


def places(tiers: Tiers) -> dict[str, int]:
    """Response → index of its tier, 0 = best."""
    return {response: place for place, tier in enumerate(tiers) for response in tier}


def tau_of(first: Tiers, second: Tiers) -> float:
    """Kendall's τ-b of two rankings of the same responses."""
    a, b = places(first), places(second)
    return kendall_tau([a[r] for r in a], [b[r] for r in a])


def top1_of(first: Tiers, second: Tiers) -> float:
    """Chance that a best response of each is the same one."""
    return len({*first[0]} & {*second[0]}) / (len(first[0]) * len(second[0]))


def _sides(tiers: Tiers) -> dict[tuple[str, str], int]:
    """Each pair by ids in alphabetical order → 1 the former is better, −1 the latter is, 0 tied."""
    place = places(tiers)
    return {(a, b): (place[b] > place[a]) - (place[b] < place[a]) for a, b in combinations(sorted(place), 2)}


def _both(*passes: Pass) -> list[str]:
    """Prompts that all passes ranked, with the same responses, in the order of the first."""
    return [
        prompt
        for prompt, tiers in passes[0].items()
        if all(prompt in other and places(other[prompt]).keys() == places(tiers).keys() for other in passes[1:])
    ]


def agreement(first: Pass, second: Pass, *, resamples: int = RESAMPLES, seed: int = 0) -> Agreement:
    """Agreement of two passes; see `Agreement`."""
    prompts = _both(first, second)
    flipped, strict = [], []
    labels: tuple[list[int], list[int], list[str]] = ([], [], [])
    for prompt in prompts:
        a, b = _sides(first[prompt]), _sides(second[prompt])
        flipped.append(sum(a[pair] * b[pair] < 0 for pair in a))
        strict.append(sum(a[pair] * b[pair] != 0 for pair in a))
        labels[0].extend(a.values())
        labels[1].extend(b[pair] for pair in a)
        labels[2].extend([prompt] * len(a))
    return Agreement(
        prompts=len(prompts),
        left_out=len({*first, *second}) - len(prompts),
        tau=_mean_tau([tau_of(first[p], second[p]) for p in prompts], resamples, seed),
        top1=unit_mean([top1_of(first[p], second[p]) for p in prompts], resamples, seed),
        flips=clustered_share(flipped, strict, prompts, resamples, seed),
        kappa=kappa_interval(*labels, resamples=resamples, seed=seed) if labels[0] else None,
    )


def _mean_tau(values: list[float], resamples: int, seed: int) -> Interval | None:
    """Mean of numbers between −1 and 1; on the scale 0 … 1, where an interval is known even if all are alike."""
    unit = unit_mean([(1 + value) / 2 for value in values], resamples, seed)
    return unit and replace(unit, mean=2 * unit.mean - 1, low=2 * unit.low - 1, high=2 * unit.high - 1)


@dataclass(frozen=True, kw_only=True)
class OrderEffect:
    """What another order does beyond mere repetition, over prompts ranked in all three passes; 0 = nothing."""

    prompts: int
    tau: Interval | None
    """Mean τ under another order minus mean τ of the repetition; below 0 the order matters."""
    top1: Interval | None
    """The same of top-1 agreement."""


def order_effect(base: Pass, again: Pass, reordered: Pass, *, resamples: int = RESAMPLES, seed: int = 0) -> OrderEffect:
    """Position consistency minus repetition stability, paired by prompt."""
    prompts = _both(base, again, reordered)

    def mean(of: Callable[[Tiers, Tiers], float]) -> Interval | None:
        differences = [of(base[p], reordered[p]) - of(base[p], again[p]) for p in prompts]
        return clustered_mean(differences, prompts, resamples, seed)

    return OrderEffect(prompts=len(prompts), tau=mean(tau_of), top1=mean(top1_of))


# ── length among answers that are equally good ───────────────────────────────────────────────────────────────────────

Pairs = Mapping[str, Sequence[tuple[str, str]]]
"""Prompt → pairs of response ids."""


def neighbours(judged: Pass) -> dict[str, list[tuple[str, str]]]:
    """Per prompt the pairs that this pass calls close: tied, or in tiers next to each other."""
    return {
        prompt: [
            *(pair for tier in tiers for pair in combinations(tier, 2)),
            *((a, b) for one, two in pairwise(tiers) for a in one for b in two),
        ]
        for prompt, tiers in judged.items()
    }


def equal_pairs(gold: Mapping[str, Mapping[str, float]]) -> dict[str, list[tuple[str, str]]]:
    """Per prompt the pairs of responses with the same true quality."""
    return {p: [(a, b) for a, b in combinations(scores, 2) if scores[a] == scores[b]] for p, scores in gold.items()}


def longer_wins(
    rulings: Sequence[tuple[Pairs, Pass]], lengths: Mapping[str, int], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Share of pairs whose longer response ranks better; ties and equal lengths are left out.

    Args:
        rulings: which pairs, and the pass that decides them. A pass must not both call pairs close and decide them by a margin of
            its own: take another one for the choice.
        lengths: characters by response id.
    """
    hits, counts, prompts = [], [], []
    for pairs, judged in rulings:
        for prompt, listed in pairs.items():
            if prompt not in judged:
                continue
            place = places(judged[prompt])
            longer = [
                (place[a] < place[b]) == (lengths[a] > lengths[b])
                for a, b in listed
                if a in place and b in place and place[a] != place[b] and lengths[a] != lengths[b]
            ]
            hits.append(sum(longer))
            counts.append(len(longer))
            prompts.append(prompt)
    return clustered_share(hits, counts, prompts, resamples, seed)


# ── against the truth ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Rankings against true quality, e.g. Accuracy(prompts=200, pairs=…, top1=…)."""

    prompts: int
    pairs: Interval | None
    """Share of pairs of different quality that are ordered rightly; a tie counts one half."""
    top1: Interval | None
    """Share of prompts whose best response is truly one of the best."""


def accuracy(judged: Pass, gold: Mapping[str, Mapping[str, float]], *, resamples: int = RESAMPLES, seed: int = 0) -> Accuracy:
    """How well a pass orders responses whose true quality is known. Prompts without gold or without a ranking are left out."""
    rows = [(prompt, *_right(tiers, gold[prompt])) for prompt, tiers in judged.items() if prompt in gold]
    # Halves are counted in units of one half, so that the share stays a share of whole numbers.
    pairs = clustered_share([r[1] for r in rows], [2 * r[2] for r in rows], [r[0] for r in rows], resamples, seed)
    return Accuracy(prompts=len(rows), pairs=pairs, top1=unit_mean([r[3] for r in rows], resamples, seed))


def _right(tiers: Tiers, gold: Mapping[str, float]) -> tuple[int, int, float]:
    """(half points of right pairs, pairs of different quality, chance that the top is truly a best one)."""
    points = of = 0
    for better, worse in _ordered_pairs(tiers):
        if gold[better] != gold[worse]:
            points += 2 * (gold[better] > gold[worse])
            of += 1
    for tier in tiers:
        tied = sum(gold[a] != gold[b] for a, b in combinations(tier, 2))
        points, of = points + tied, of + tied
    best = max(gold[r] for tier in tiers for r in tier)
    return points, of, sum(gold[r] == best for r in tiers[0]) / len(tiers[0])


def _ordered_pairs(tiers: Tiers) -> Iterator[tuple[str, str]]:
    for one, two in combinations(tiers, 2):
        for a in one:
            for b in two:
                yield a, b

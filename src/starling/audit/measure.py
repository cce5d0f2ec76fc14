"""How far a judge can be trusted, measured on what it has said: position, its own pair verdicts, cycles, length.

Source: the figures that the authors of Nectar gave for their judge (first places by position, consistency of released
replies), Friedman's test for the ranks, Kendall and Babington Smith's ζ for circular triads, Copeland's order for "follows the
wins". Departures: every figure comes with an interval; figures over pairs resample prompts, since the pairs of one reply are
not independent; replies that are no ranking are outcomes with a count, and nothing is repaired.

`measure` is a pure function of `Call`s, whoever made them: saved replies, the judgments of a finished run, a live judge
(`starling.audit.saved`, `starling.audit.live`). That the answers were shuffled is taken for granted: otherwise a good answer
at A looks like a bias for A.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, pairwise
from math import comb
from typing import Any

from starling.judge.verdict import Pair, places
from starling.records import Outcome
from starling.stats import Interval, bootstrap_mean, chi_square_p, normal_mean, ratio_interval, wilson_interval

RESAMPLES = 1000
"""Bootstrap resamples of the figures over pairs."""


@dataclass(frozen=True, slots=True)
class Call:
    """One reply of a judge about k answers, everything by the position shown (0 = A).

    Laws: `ranking` is a permutation of 0 … k−1, best first, when the outcome is ranked; otherwise it is empty. `tied` holds the
    sizes of its places, best first, when some are shared: (0, 1, 2) with (1, 2) puts 0 first and 1 and 2 together second.

    Example: Call("p1", "ranked", 2, ranking=(1, 0), pairs=((0, 1, 1),), good_natured=True, lengths=(120, 340)).
    """

    prompt: str
    """What was judged; calls about one prompt are resampled together."""
    outcome: str
    """`ranked`, or the name of the failure."""
    k: int
    ranking: tuple[int, ...] = ()
    pairs: tuple[Pair, ...] = ()
    good_natured: bool | None = None
    lengths: tuple[int, ...] = ()
    """Characters of each answer; empty when unknown."""
    tied: tuple[int, ...] = ()
    pair_ties: tuple[tuple[int, int], ...] = ()
    """Pairs called equal."""
    reason: str = ""
    """Why it does not parse, in the parser's fixed words; empty unless the outcome is `unparsed`."""


@dataclass(frozen=True, kw_only=True)
class ChiSquare:
    """A chi-square test, e.g. ChiSquare(statistic=12.6, dof=6, p=0.05)."""

    statistic: float
    dof: int
    p: float


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What a judge's replies say about the judge. Shares are None where nothing was there to count."""

    calls: int
    """All calls or rows, whatever their outcome."""
    outcomes: dict[str, int]
    unparsed_reasons: dict[str, int]
    sizes: dict[int, int]
    """Rankings by how many answers they order."""
    k: int
    """The most frequent of these; every figure below is over rankings of k answers. 0 without any ranking."""
    n: int
    """Rankings of k answers."""
    first_share: tuple[Interval, ...]
    """By position shown: share of rankings that put it first; 1/k is unbiased."""
    first_chi_square: ChiSquare | None
    """Of the first places against equal shares."""
    mean_rank: tuple[Interval, ...]
    """By position shown: mean rank, 1 = best; (k+1)/2 is unbiased."""
    rank_chi_square: ChiSquare | None
    """Of the mean ranks against (k+1)/2: Friedman's test."""
    position_slope: Interval | None
    """Ranks lost per step down the list, least squares over all positions; 0 is unbiased, positive a taste for early ones."""
    pairs: int
    """Pair verdicts stated."""
    complete_pairs: Interval | None
    """Share of rankings that state all k(k−1)/2 pairs."""
    contradiction: Interval | None
    """Share of pair verdicts that the final ranking turns round."""
    cycle_share: Interval | None
    """Share of the rankings with pair verdicts that hold a cycle of three (A over B over C over A)."""
    consistency: Interval | None
    """Kendall's ζ over complete lists: 1 without any cycle, 0 with as many as there can be."""
    follows_wins: Interval | None
    """Share of complete lists whose ranking never puts an answer with fewer wins above one with more."""
    first_letter_win: Interval | None
    """Share of pair verdicts for the answer shown earlier, that is with the earlier letter; 0.5 is unbiased."""
    first_named_win: Interval | None
    """Share of pair verdicts for the answer written first in its pair; 0.5 is unbiased."""
    good_natured: Interval | None
    """Share of conversations called good natured, where the reply says which."""
    longer_wins: Interval | None
    """Share of pairs of unequal length whose longer answer ranks better. A longer answer may be a better one."""
    longer_wins_adjacent: Interval | None
    """The same for neighbours in the ranking, whose quality is nearest."""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON: each figure under its name, its 95 % interval under NAME_ci, how many values it is over under NAME_n; lists
        run over positions A, B, …"""
        found: dict[str, Any] = {"n": self.n, "k": self.k, "calls": self.calls}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name in found:
                continue
            if name in ("first_share", "mean_rank"):
                found |= {name: [v.mean for v in value], f"{name}_ci": [[v.low, v.high] for v in value]}
            elif name in SHARES or name == "position_slope":
                interval = value and [value.low, value.high]
                found |= {name: value and value.mean, f"{name}_ci": interval, f"{name}_n": value and value.n}
            elif isinstance(value, ChiSquare):
                found[name] = asdict(value)
            else:
                found[name] = {str(k): v for k, v in value.items()} if isinstance(value, dict) else value
        return found


SHARES: dict[str, tuple[str, float | None]] = {
    "contradiction": ("pair verdicts that the ranking contradicts", 0.0),
    "cycle_share": ("rankings with a cycle of three among their pairs", 0.0),
    "consistency": ("freedom from cycles (Kendall's ζ)", 1.0),
    "follows_wins": ("rankings that follow the count of wins", 1.0),
    "complete_pairs": ("rankings that state every pair", 1.0),
    "first_letter_win": ("pair verdicts for the earlier letter", 0.5),
    "first_named_win": ("pair verdicts for the answer named first", 0.5),
    "longer_wins": ("longer answer ranks better, any pair", None),
    "longer_wins_adjacent": ("longer answer ranks better, neighbours", None),
    "good_natured": ("conversations called good natured", None),
}
"""Field of `Audit` → what it says, and its value for a judge without fault; None where no value is a fault."""


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Tally:
    """The counts of one ranking; (hits, of) where two numbers belong together."""

    prompt: str
    ranks: tuple[float, ...]
    """By position; tied ones share the mean of theirs."""
    firsts: tuple[float, ...]
    """By position: 1 for the best, or shares of it where several are tied there."""
    good_natured: bool | None
    pairs: int
    contradicted: int
    letter: int
    named: int
    complete: bool
    """Every pair is stated, as decided or equal."""
    cyclic: bool
    follows: bool | None
    """None unless every pair is decided; likewise `zeta`."""
    zeta: float | None
    longer: tuple[int, int]
    longer_adjacent: tuple[int, int]


def measure(calls: Iterable[Call], *, resamples: int = RESAMPLES, seed: int = 0) -> Audit:
    """All figures of `Audit` in one pass over the calls.

    Shares of rankings have Wilson intervals, mean ranks normal ones: calls are taken as independent. Shares of pairs have
    bootstrap intervals that resample prompts, `resamples` times with `seed`.

    Raises:
        ValueError: a ranked call without a permutation of its k answers, or a pair outside them.
    """
    outcomes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    by_size: dict[int, list[_Tally]] = {}
    for call in calls:
        outcomes[call.outcome] += 1
        if call.reason:
            reasons[call.reason] += 1
        if call.outcome == Outcome.ranked:
            by_size.setdefault(call.k, []).append(_tally(call))
    k = max(by_size, key=lambda size: (len(by_size[size]), size), default=0)
    tallies = by_size.get(k, [])
    followed = [t.follows for t in tallies if t.follows is not None]
    clusters = [t.prompt for t in tallies]
    stated = [t.pairs for t in tallies]

    def of_pairs(hits: list[int], counts: list[int]) -> Interval | None:
        return clustered_share(hits, counts, clusters, resamples, seed)

    good = [t.good_natured for t in tallies if t.good_natured is not None]
    zetas = [t.zeta for t in tallies if t.zeta is not None]
    return Audit(
        calls=sum(outcomes.values()),
        outcomes=dict(sorted(outcomes.items())),
        unparsed_reasons=dict(sorted(reasons.items())),
        sizes={size: len(by_size[size]) for size in sorted(by_size)},
        k=k,
        n=len(tallies),
        **_positions(k, tallies),
        position_slope=clustered_mean([_slope(t.ranks) for t in tallies], clusters, resamples, seed) if k > 1 else None,
        pairs=sum(stated),
        complete_pairs=share_interval(sum(t.complete for t in tallies), len(tallies)),
        contradiction=of_pairs([t.contradicted for t in tallies], stated),
        cycle_share=share_interval(sum(t.cyclic for t in tallies), sum(t.pairs > 0 for t in tallies)),
        consistency=unit_mean(zetas, resamples, seed),
        follows_wins=share_interval(sum(followed), len(followed)),
        first_letter_win=of_pairs([t.letter for t in tallies], stated),
        first_named_win=of_pairs([t.named for t in tallies], stated),
        good_natured=share_interval(good.count(True), len(good)),
        longer_wins=of_pairs([t.longer[0] for t in tallies], [t.longer[1] for t in tallies]),
        longer_wins_adjacent=of_pairs([t.longer_adjacent[0] for t in tallies], [t.longer_adjacent[1] for t in tallies]),
    )


def _tally(call: Call) -> _Tally:
    if sorted(call.ranking) != list(range(call.k)):
        raise ValueError(f"a ranked call needs a permutation of its {call.k} answers, not {call.ranking}")
    if call.tied and (sum(call.tied) != call.k or min(call.tied) < 1):
        raise ValueError(f"the places {call.tied} do not add up to {call.k} answers")
    tiers = places(call.ranking, call.tied)
    place = {position: at for at, tier in enumerate(tiers) for position in tier}
    better: dict[tuple[int, int], int] = {}
    for a, b, winner in call.pairs:
        if a == b or a not in place or b not in place or winner not in (a, b):
            raise ValueError(f"({a}, {b}): {winner} is no verdict about two of {call.k} answers")
        better[min(a, b), max(a, b)] = winner
    decided = call.k > 1 and len(better) == comb(call.k, 2)
    wins = Counter(better.values())
    bounds = [(min(wins[p] for p in tier), max(wins[p] for p in tier)) for tier in tiers]
    ordered = [(a, b) for one, two in combinations(tiers, 2) for a in one for b in two]
    longer = [_longer(call.lengths, *two) for two in ordered if call.lengths]
    adjacent = [_longer(call.lengths, a, b) for a, b in ordered if call.lengths and place[b] == place[a] + 1]
    return _Tally(
        prompt=call.prompt,
        ranks=_mid_ranks(tiers),
        firsts=tuple((place[p] == 0) / len(tiers[0]) for p in range(call.k)),
        good_natured=call.good_natured,
        pairs=len(call.pairs),
        contradicted=sum(place[w] > place[b if w == a else a] for a, b, w in call.pairs),
        letter=sum(w == min(a, b) for a, b, w in call.pairs),
        named=sum(w == a for a, _, w in call.pairs),
        complete=call.k > 1 and len(better) + len(call.pair_ties) == comb(call.k, 2),
        cyclic=_has_cycle(call.k, better),
        follows=all(one[0] >= two[1] for one, two in pairwise(bounds)) if decided else None,
        zeta=_zeta(call.k, [wins[p] for p in range(call.k)]) if decided else None,
        longer=(longer.count(1), len(longer) - longer.count(0)),
        longer_adjacent=(adjacent.count(1), len(adjacent) - adjacent.count(0)),
    )


def _mid_ranks(tiers: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """Rank by position, 1 = best."""
    ranks: dict[int, float] = {}
    for tier in tiers:
        ranks |= dict.fromkeys(tier, len(ranks) + (len(tier) + 1) / 2)
    return tuple(ranks[position] for position in sorted(ranks))


def _longer(lengths: Sequence[int], better: int, worse: int) -> int:
    """1 when the better answer is the longer one, −1 when it is the shorter one, 0 for equal lengths."""
    return (lengths[better] > lengths[worse]) - (lengths[better] < lengths[worse])


def _has_cycle(k: int, better: Mapping[tuple[int, int], int]) -> bool:
    """Whether three answers beat each other in a ring: then each of them wins exactly one of their three pairs."""
    for a, b, c in combinations(range(k), 3):
        winners = {better.get((a, b)), better.get((b, c)), better.get((a, c))}
        if len(winners) == 3 and None not in winners:
            return True
    return False


def _zeta(k: int, wins: Sequence[int]) -> float | None:
    """Kendall and Babington Smith 1940: 1 − circular triads / the most there can be; None for k = 2."""
    most = (k**3 - k) // 24 if k % 2 else (k**3 - 4 * k) // 24
    triads = comb(k, 3) - sum(comb(w, 2) for w in wins)
    return 1 - triads / most if most else None


def _positions(k: int, tallies: Sequence[_Tally]) -> dict[str, Any]:
    """The figures by position with their tests; empty without rankings of at least two answers."""
    n = len(tallies)
    if not n or k < 2:
        return {"first_share": (), "first_chi_square": None, "mean_rank": (), "rank_chi_square": None}
    firsts = [sum(t.firsts[p] for t in tallies) for p in range(k)]
    ranks = [normal_mean([t.ranks[p] for t in tallies]) for p in range(k)]
    uneven = sum((first - n / k) ** 2 for first in firsts) * k / n
    # Friedman's statistic with its correction for ties: the spread of the ranks that were given, not of k different ones.
    spread = sum((rank - (k + 1) / 2) ** 2 for t in tallies for rank in t.ranks) / (n * (k - 1))
    apart = sum((one.mean - (k + 1) / 2) ** 2 for one in ranks) * n / spread if spread else 0.0
    return {
        "first_share": tuple(Interval(first / n, *wilson_interval(first, n), n, n) for first in firsts),
        "first_chi_square": ChiSquare(statistic=uneven, dof=k - 1, p=chi_square_p(uneven, k - 1)),
        "mean_rank": tuple(replace(one, low=max(1.0, one.low), high=min(float(k), one.high)) for one in ranks),
        "rank_chi_square": ChiSquare(statistic=apart, dof=k - 1, p=chi_square_p(apart, k - 1)),
    }


def _slope(ranks: Sequence[float]) -> float:
    """Least-squares slope of the rank over the position shown."""
    k = len(ranks)
    return sum((position - (k - 1) / 2) * rank for position, rank in enumerate(ranks)) * 12 / (k * (k * k - 1))


def clustered_mean(values: Sequence[float], clusters: Sequence[str], resamples: int, seed: int) -> Interval | None:
    """Mean of any numbers, clusters resampled whole; None without a value."""
    return bootstrap_mean(values, list(clusters), resamples=resamples, seed=seed) if values else None


def share_interval(hits: int, n: int) -> Interval | None:
    """Share of independent rankings."""
    if not n:
        return None
    low, high = wilson_interval(hits, n)
    return Interval(hits / n, low, high, n, n)


def unit_mean(values: Sequence[float], resamples: int, seed: int) -> Interval | None:
    """Mean of numbers between 0 and 1, one per ranking; where all stand at one end, resampling knows no spread: then Wilson."""
    if not values or sum(values) in (0, len(values)):
        return share_interval(round(sum(values)), len(values))
    return ratio_interval(values, [1] * len(values), resamples=resamples, seed=seed)


def clustered_share(
    hits: Sequence[float], counts: Sequence[float], clusters: Sequence[str], resamples: int, seed: int
) -> Interval | None:
    """Share of pairs, prompts resampled whole. Where all pairs agree, resampling knows no spread: then Wilson over prompts."""
    totals: dict[str, list[float]] = {}
    for hit, count, cluster in zip(hits, counts, clusters, strict=True):
        if count:
            total = totals.setdefault(cluster, [0, 0])
            total[0], total[1] = total[0] + hit, total[1] + count
    if not totals:
        return None
    sums, pairs = zip(*totals.values(), strict=True)
    if sum(sums) in (0, sum(pairs)):
        one = share_interval(len(totals) if sum(sums) else 0, len(totals))
        return one and replace(one, n=round(sum(pairs)))
    return replace(ratio_interval(sums, pairs, resamples=resamples, seed=seed), n=round(sum(pairs)))

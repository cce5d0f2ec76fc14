"""All judge calls about one prompt, merged into one ranking by exact Kemeny, with what speaks for and against every pair.

Source: Kemeny 1959 (the order that the fewest votes about pairs contradict), found exactly by dynamic programming over subsets
(2^K·K steps; K is at most 12). Departures, all about what Kemeny leaves open:

- What votes. Each ranking is one vote on each of its pairs, and where the judge also stated a verdict on the pair, that is one
  more. In the pairwise modes a call is one vote on its pair. In `pointwise` the scores of one order are one vote on each pair.
  "Equal" is half a vote for either side. Calls that gave no ranking do not vote.
- One ranking stands. With a single ranking of all answers the result is that ranking: it is the judge's last word, also
  where it contradicts its own verdicts.
- Several orders may contradict the votes equally little. Then rankings alone decide; where they balance too, the answers that
  the remaining orders put now this way, now that way share a place (`ties = "keep"`), or lots decide (`"break"`): the order in
  which the answer with the smaller lot stands as high up as it can, the lot being a hash of seed, prompt and response.
- `pointwise` orders by mean score over the orders instead; equal means are tied, or fall to the lots.

A pair without any vote cannot be ordered, and neither can the prompt: a ranking with a guess in it is no ranking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, groupby, zip_longest

from starling.judge.verdict import places
from starling.records import Judgment, MergedRanking, Outcome, PairSupport, content_hash

Matrix = list[list[int]]


@dataclass(frozen=True)
class Votes:
    """Votes about the pairs of n answers, numbered 0 … n−1."""

    wins: Matrix
    """wins[i][j] = votes that i is better than j."""
    equal: Matrix
    """equal[i][j] = equal[j][i] = votes that they are equal."""
    ranked: Matrix
    """Twice what the rankings alone say for i over j: a place above counts 2, the same place 1."""

    def support(self, i: int, j: int) -> float:
        """Votes for i over j; a vote that they are equal counts half."""
        return self.wins[i][j] + self.equal[i][j] / 2

    def weight(self, i: int, j: int) -> int:
        """All votes about the two."""
        return self.wins[i][j] + self.wins[j][i] + self.equal[i][j]


def merge(judgments: Sequence[Judgment], *, orders: int, keep_ties: bool, seed: int) -> MergedRanking:
    """The one ranking that all calls about a prompt come to.

    Args:
        judgments: the calls about one prompt, at least one, in the order in which `Judgment` says they follow each other.
        orders: how many of the orders were asked of every prompt; what they left in doubt is `contested`.
        keep_ties: equal answers share a place; if not, lots decide.
        seed: of the lots.
    """
    prompt_id = judgments[0].prompt_id
    last_words = final(judgments)
    said = [j for j in last_words if j.ranking is not None]
    views = Counter(j.good_natured for j in said if j.good_natured is not None)
    fields = {
        "prompt_id": prompt_id,
        "good_natured": views[True] > views[False] if views[True] != views[False] else None,
        "contested": contested([j for j in judgments if j.order < orders]),
        "calls": tuple(j.call_id for j in said),
    }
    ids = sorted({response for j in judgments for response in j.shown})
    votes = count_votes(said, ids)
    lots = [content_hash(["lot", seed, prompt_id, response], 16) for response in ids]
    gaps = sum(not votes.weight(i, j) for i, j in combinations(range(len(ids)), 2))
    if gaps or not said:
        failed = [j for j in last_words if j.ranking is None]
        return MergedRanking.model_validate(fields | _without_ranking(failed, gaps, len(ids)))
    tiers = _tiers(said, votes, ids, lots)
    if not keep_ties:
        tiers = [(i,) for tier in tiers for i in tier]
    elif not _is_single(said, ids):
        tiers = [tuple(sorted(tier, key=lots.__getitem__)) for tier in tiers]
    order = [i for tier in tiers for i in tier]
    pairs = tuple(
        PairSupport(better=ids[i], worse=ids[j], support=votes.support(i, j), weight=votes.weight(i, j))
        for i, j in combinations(order, 2)
    )
    named = tuple(tuple(ids[i] for i in tier) for tier in tiers)
    return MergedRanking.model_validate(fields | {"outcome": Outcome.ranked, "tiers": named, "pairs": pairs})


def final(judgments: Sequence[Judgment]) -> list[Judgment]:
    """The calls without those whose question was asked again."""
    return [j for j, after in zip_longest(judgments, judgments[1:]) if after is None or after.attempt == 0]


def contested(judgments: Sequence[Judgment]) -> bool:
    """Whether these calls leave doubt about the order they give: votes on both sides of a pair (a ranking against its own
    verdict, or calls against each other), a pair without a vote, or three answers that beat each other in a ring.

    "Equal" contradicts nothing. Without any ranking there is nothing to doubt.
    """
    said = [j for j in final(judgments) if j.ranking is not None]
    if not said:
        return False
    ids = sorted({response for j in judgments for response in j.shown})
    votes = count_votes(said, ids)
    wins = votes.wins
    if any((wins[i][j] and wins[j][i]) or not votes.weight(i, j) for i, j in combinations(range(len(ids)), 2)):
        return True
    # Every pair is now decided by one side, or equal throughout.
    return any(
        (wins[a][b] and wins[b][c] and wins[c][a]) or (wins[b][a] and wins[c][b] and wins[a][c])
        for a, b, c in combinations(range(len(ids)), 3)
    )


def _without_ranking(failed: Sequence[Judgment], gaps: int, k: int) -> dict[str, object]:
    last, all_pairs = failed[-1], k * (k - 1) // 2
    some = f"{gaps} of {all_pairs} pairs have no verdict; the last call that failed: " if gaps < all_pairs else ""
    return {"outcome": last.outcome, "tiers": (), "pairs": (), "reason": some + last.reason}


def _is_single(said: Sequence[Judgment], ids: Sequence[str]) -> bool:
    return len(said) == 1 and len(said[0].shown) == len(ids)


def _tiers(said: Sequence[Judgment], votes: Votes, ids: Sequence[str], lots: Sequence[str]) -> list[tuple[int, ...]]:
    """Numbers of the answers, best first; in one tier those that nothing but lots can separate, in an order the lots allow."""
    if _is_single(said, ids):
        number = {response: i for i, response in enumerate(ids)}
        return [tuple(number[r] for r in place) for place in places(said[0].ranking or (), said[0].tied)]
    if all(j.score is not None for j in said):
        means = _mean_scores(said, ids)
        best_first = sorted(range(len(ids)), key=lambda i: (-means[i], lots[i]))
        return [tuple(group) for _, group in groupby(best_first, key=means.__getitem__)]
    return kemeny(votes, lots)


def _mean_scores(said: Iterable[Judgment], ids: Sequence[str]) -> list[Fraction]:
    scores: dict[str, list[int]] = {response: [] for response in ids}
    for judgment in said:
        if judgment.score is not None:
            scores[judgment.shown[0]].append(judgment.score)
    return [Fraction(sum(scores[i]), len(scores[i])) for i in ids]


# ── votes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def count_votes(said: Sequence[Judgment], ids: Sequence[str]) -> Votes:
    """What ranked calls say about the pairs of `ids`, by the numbers of the ids in that list; see the head of this file."""
    n, number = len(ids), {response: i for i, response in enumerate(ids)}
    wins, equal, ranked = ([[0] * n for _ in range(n)] for _ in range(3))
    by_order: dict[int, dict[int, int]] = {}
    for judgment in said:
        if judgment.score is not None:
            by_order.setdefault(judgment.order, {})[number[judgment.shown[0]]] = judgment.score
            continue
        for v in judgment.pair_verdicts:
            first, second, winner = number[v.first], number[v.second], number[v.winner]
            wins[winner][second if winner == first else first] += 1
        for one, other in judgment.pair_ties:
            equal[number[one]][number[other]] += 1
            equal[number[other]][number[one]] += 1
        if not judgment.mode.startswith("pairwise"):
            tiers = [[number[r] for r in place] for place in places(judgment.ranking or (), judgment.tied)]
            _add_ranking(tiers, wins, equal, ranked)
    for scores in by_order.values():
        best_first = sorted(scores, key=lambda i: -scores[i])
        _add_ranking([list(group) for _, group in groupby(best_first, key=scores.__getitem__)], wins, equal, ranked)
    return Votes(wins, equal, ranked)


def _add_ranking(tiers: Sequence[Sequence[int]], wins: Matrix, equal: Matrix, ranked: Matrix) -> None:
    """One vote on each pair of a ranking with its places, best first."""
    for at, tier in enumerate(tiers):
        for i, j in combinations(tier, 2):
            for a, b in ((i, j), (j, i)):
                equal[a][b] += 1
                ranked[a][b] += 1
        for i in tier:
            for below in tiers[at + 1 :]:
                for j in below:
                    wins[i][j] += 1
                    ranked[i][j] += 2


# ── Kemeny ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def kemeny(votes: Votes, lots: Sequence[str]) -> list[tuple[int, ...]]:
    """The tiers of the orders that contradict the fewest votes and, among those, the fewest rankings.

    Answers share a tier when some of these orders put the one first and some the other, or when a chain of such answers links
    them. Written one after the other the tiers are one of these orders: the one in which, from the top, the smallest
    possible lot comes next.
    """
    n = len(lots)
    most = 2 * sum(map(sum, votes.ranked)) + 1  # more than all rankings together: votes first, rankings where votes balance
    price = [
        [most * (2 * votes.wins[i][j] + votes.equal[i][j]) + votes.ranked[i][j] for j in range(n)] for i in range(n)
    ]  # price[i][j]: what an order pays for putting j above i
    clear = sorted(range(n), key=lambda i: sum(price[i][j] > price[j][i] for j in range(n)), reverse=True)
    if all(price[i][j] > price[j][i] for i, j in combinations(clear, 2)):
        return [(i,) for i in clear]  # every majority agrees with one order, so no other is as good
    return _search(price, lots)


def _search(price: Sequence[Sequence[int]], lots: Sequence[str]) -> list[tuple[int, ...]]:
    """Exact minimum over all orders: `top[S]` and `rest[S]` are the least prices of ordering the set S and its complement,
    where S stands above; `step[S][x]` is what putting x next costs: standing above all that come later. Sets are bit masks."""
    n = len(price)
    full = (1 << n) - 1
    step = [[sum(price[y][x] for y in range(n)) for x in range(n)]]
    for s in range(1, full + 1):
        y = s.bit_length() - 1
        step.append([before - price[y][x] for x, before in enumerate(step[s ^ 1 << y])])
    top, rest = [0] * (full + 1), [0] * (full + 1)
    for s in range(1, full + 1):
        top[s] = min(top[s ^ 1 << x] + step[s ^ 1 << x][x] for x in range(n) if s >> x & 1)
    for s in range(full - 1, -1, -1):
        rest[s] = min(step[s][x] + rest[s | 1 << x] for x in range(n) if not s >> x & 1)

    below = [0] * n  # below[x]: the answers that stand below x in some best order
    for s in range(full):
        for x in range(n):
            if not s >> x & 1 and top[s] + step[s][x] + rest[s | 1 << x] == rest[0]:
                below[x] |= full ^ s ^ 1 << x
    order: list[int] = []
    s = 0
    while s != full:
        nexts = [x for x in range(n) if not s >> x & 1 and step[s][x] + rest[s | 1 << x] == rest[s]]
        order.append(min(nexts, key=lambda x: lots[x]))
        s |= 1 << order[-1]
    return _cut(order, below)


def _cut(order: Sequence[int], below: Sequence[int]) -> list[tuple[int, ...]]:
    """A best order cut where every best order has the same answers above and below."""
    tiers: list[tuple[int, ...]] = []
    start = 0
    for end in range(1, len(order) + 1):
        if not any(below[lower] >> upper & 1 for upper in order[start:end] for lower in order[end:]):
            tiers.append(tuple(order[start:end]))
            start = end
    return tiers

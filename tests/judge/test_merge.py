"""Merging judge calls: votes and orders by hand, Kemeny against all permutations, and its laws."""

from __future__ import annotations

from itertools import combinations, permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling.judge.merge import Votes, contested, count_votes, final, kemeny, merge
from starling.records import Judgment, MergedRanking, Outcome

# ── judgments to work with ───────────────────────────────────────────────────────────────────────────────────────────


def call(said: str, verdicts: str = "", order: int = 0, **more: Any) -> Judgment:
    """One call that says "abc" or, with ties, "a>b=c", best first; `verdicts` like "ab bc c=a", the winner first."""
    places = [place.split("=") for place in said.split(">")] if {">", "="} & set(said) else [[i] for i in said]
    ids = [i for place in places for i in place]
    stated = [v for v in verdicts.split() if "=" not in v]
    given: dict[str, Any] = {
        "prompt_id": "p", "rubric": "r", "judge": "j", "shown": sorted(ids), "pair_order": (), "outcome": "ranked",
        "ranking": ids, "good_natured": True, "call_id": f"{order}:{said}", "order": order,
        "pair_verdicts": [{"first": v[0], "second": v[1], "winner": v[0]} for v in stated],
        "pair_ties": [tuple(v.split("=")) for v in verdicts.split() if "=" in v],
        "tied": [len(place) for place in places] if len(places) < len(ids) else (),
    }  # fmt: skip
    return Judgment.model_validate(given | more)


def pair(winner: str, loser: str, order: int = 0, **more: Any) -> Judgment:
    """One call of the mode pairwise."""
    return call(winner + loser, winner + loser, order, mode="pairwise", **more)


def scored(response: str, score: int, order: int = 0) -> Judgment:
    return call(response, "", order, mode="pointwise", score=score)


def failed(outcome: str = "unparsed", shown: str = "abc", order: int = 0, attempt: int = 0, **more: Any) -> Judgment:
    nothing = {"ranking": None, "good_natured": None, "pair_verdicts": (), "pair_ties": (), "tied": (), "score": None}
    return call(shown, "", order, outcome=outcome, attempt=attempt, reason=f"it was {outcome}", **nothing, **more)


def merged(*judgments: Judgment, keep_ties: bool = False, orders: int = 1, seed: int = 0) -> MergedRanking:
    return merge(judgments, orders=orders, keep_ties=keep_ties, seed=seed)


def tiers(found: MergedRanking) -> str:
    return ">".join("".join(sorted(tier)) for tier in found.tiers)


def support(found: MergedRanking) -> dict[str, tuple[float, float]]:
    return {p.better + p.worse: (p.support, p.weight) for p in found.pairs}


# ── one call ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_single_ranking_stands_and_each_pair_has_two_votes() -> None:
    found = merged(call("bca", "bc ba ca"))
    assert (tiers(found), found.outcome, found.reason) == ("b>c>a", Outcome.ranked, "")
    assert support(found) == {"bc": (2, 2), "ba": (2, 2), "ca": (2, 2)}
    assert [p.better + p.worse for p in found.pairs] == ["bc", "ba", "ca"]
    assert (found.good_natured, found.contested, found.calls) == (True, False, ("0:bca",))


@pytest.mark.parametrize("keep_ties", [False, True])
def test_a_single_ranking_stands_against_its_own_verdicts(keep_ties: bool) -> None:
    # a and b are neighbours, and the judge's own verdict on them is turned round: one vote each way.
    found = merged(call("abc", "ba bc ac"), keep_ties=keep_ties)
    assert tiers(found) == "a>b>c"
    assert support(found) == {"ab": (1, 2), "ac": (2, 2), "bc": (2, 2)}
    assert found.contested


def test_without_pair_verdicts_a_ranking_is_one_vote() -> None:
    found = merged(call("ab", mode="rank_only"))
    assert support(found) == {"ab": (1, 1)}
    assert not found.contested


def test_ties_of_a_single_call_are_kept() -> None:
    found = merged(call("c>a=b", "ca cb a=b"), keep_ties=True)
    assert [set(tier) for tier in found.tiers] == [{"c"}, {"a", "b"}]
    assert support(found) == {"ca": (2, 2), "cb": (2, 2), "ab": (1, 2)}
    assert not found.contested, "equal contradicts nothing"
    # The verdict says a, the ranking says equal: the ranking is the last word, 1 + 1/2 votes of 2 are for a.
    found = merged(call("c>b=a", "ca cb ab"), keep_ties=True)
    assert (tiers(found), support(found)["ba"]) == ("c>ab", (0.5, 2))


# ── several calls ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_three_orders_by_hand() -> None:
    found = merged(*(call(r, "", i, mode="rank_only") for i, r in enumerate(["abc", "acb", "bac"])), orders=3)
    # ab 2:1, ac 3:0, bc 2:1
    assert tiers(found) == "a>b>c"
    assert support(found) == {"ab": (2, 3), "ac": (3, 3), "bc": (2, 3)}
    assert found.contested
    assert found.calls == ("0:abc", "1:acb", "2:bac")


def test_condorcets_circle_by_hand() -> None:
    # abc twice, bca and cab once: ab 3:1, bc 3:1, ca 2:2. Kemeny: abc contradicts 1+1+2 = 4, bca 1+3+2 = 6, cab 6, acb 6.
    calls = [call(r, "", i, mode="rank_only") for i, r in enumerate(["abc", "abc", "bca", "cab"])]
    assert tiers(merged(*calls, keep_ties=True)) == "a>b>c"
    # Without the second abc all three turns of the circle are equally good: nothing separates the answers.
    assert tiers(merged(*calls[1:], keep_ties=True)) == "abc"
    broken = merged(*calls[1:])
    assert tiers(broken) in ("a>b>c", "b>c>a", "c>a>b")
    assert len({tiers(merged(*calls[1:], seed=s)) for s in range(20)}) == 3, "lots are fair to all three"
    assert broken.tiers == merged(*reversed(calls[1:])).tiers, "and do not look at the order of calls"


def test_where_votes_balance_rankings_decide() -> None:
    # Both rankings say a > b, both verdicts say b > a: 2:2.
    calls = [call("abc", "ba bc ac"), call("abc", "ba bc ac", 1)]
    for keep in (False, True):
        found = merged(*calls, keep_ties=keep)
        assert (tiers(found), support(found)["ab"]) == ("a>b>c", (2, 4))


def test_two_opposite_orders_are_equal_or_left_to_lots() -> None:
    calls = [call("abc", mode="rank_only"), call("cba", "", 1, mode="rank_only")]
    assert tiers(merged(*calls, keep_ties=True)) == "abc"
    assert support(merged(*calls, keep_ties=True)).keys() & {"ab", "ba"}
    assert len({tiers(merged(*calls, seed=s)) for s in range(60)}) == 6


def test_an_order_that_failed_does_not_vote() -> None:
    found = merged(failed("refused"), call("abc", "", 1, mode="rank_only"), orders=2)
    assert (tiers(found), found.calls) == ("a>b>c", ("1:abc",))


# ── pairs and scores ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_pairwise_calls_are_one_vote_each() -> None:
    found = merged(pair("a", "b"), pair("c", "a"), pair("c", "b"))
    assert (tiers(found), support(found)) == ("c>a>b", {"ca": (1, 1), "cb": (1, 1), "ab": (1, 1)})
    assert not found.contested


def test_both_orders_of_a_pair_against_each_other_are_a_tie() -> None:
    calls = [pair("a", "b"), pair("b", "a"), pair("c", "a"), pair("c", "a"), pair("c", "b"), pair("c", "b")]
    found = merged(*calls, keep_ties=True)
    assert (tiers(found), found.contested) == ("c>ab", True)
    assert {tiers(merged(*calls, seed=s)) for s in range(20)} == {"c>a>b", "c>b>a"}


def test_a_circle_of_pairs_is_contested() -> None:
    found = merged(pair("a", "b"), pair("b", "c"), pair("c", "a"))
    assert found.contested
    assert tiers(merged(pair("a", "b"), pair("b", "c"), pair("c", "a"), keep_ties=True)) == "abc"


def test_a_tied_pair_is_half_a_vote_each() -> None:
    tie = call("a=b", "a=b", mode="pairwise")
    found = merged(tie, pair("a", "c"), pair("b", "c"), keep_ties=True)
    assert tiers(found) == "ab>c"
    assert sorted(support(found).values()) == [(0.5, 1), (1, 1), (1, 1)]


def test_a_missing_pair_leaves_the_prompt_unranked_with_the_reason() -> None:
    found = merged(pair("a", "b"), failed("truncated", "ac"), pair("c", "b"))
    assert (found.outcome, found.tiers, found.pairs) == (Outcome.truncated, (), ())
    assert found.reason == "1 of 3 pairs have no verdict; the last call that failed: it was truncated"
    assert found.contested, "a further order can fill the gap"
    again = [pair("a", "b", 1), pair("a", "c", 1), pair("c", "b", 1)]
    filled = merged(pair("a", "b"), failed("truncated", "ac"), pair("c", "b"), *again)
    assert (filled.outcome, tiers(filled)) == (Outcome.ranked, "a>c>b")


def test_scores_order_by_their_mean_and_equal_means_are_tied() -> None:
    calls = [scored("a", 5), scored("b", 9), scored("c", 5)]
    assert tiers(merged(*calls, keep_ties=True)) == "b>ac"
    assert {tiers(merged(*calls, seed=s)) for s in range(20)} == {"b>a>c", "b>c>a"}
    # b: (9 + 4) / 2 = 6.5, a: (5 + 7) / 2 = 6, c: (5 + 8) / 2 = 6.5
    more = [*calls, scored("a", 7, 1), scored("b", 4, 1), scored("c", 8, 1)]
    found = merged(*more, keep_ties=True, orders=2)
    assert (tiers(found), found.contested) == ("bc>a", True)
    assert found.calls == ("0:a", "0:b", "0:c", "1:a", "1:b", "1:c")
    # b against a: 9 > 5 and 4 < 7. c against a: 5 = 5 and 8 > 7.
    assert support(found)["ba"] == (1, 2)
    assert support(found)["ca"] == (1.5, 2)


def test_a_missing_score_leaves_the_prompt_unranked() -> None:
    found = merged(scored("a", 5), failed("refused", "b"), scored("c", 5))
    assert found.outcome is Outcome.refused
    assert found.reason.startswith("2 of 3 pairs")


# ── failures, retries, doubt ─────────────────────────────────────────────────────────────────────────────────────────


def test_without_any_ranking_the_last_failure_is_told() -> None:
    found = merged(failed("refused"), failed("too_long", order=1), orders=2)
    assert (found.outcome, found.reason, found.tiers, found.calls) == (Outcome.too_long, "it was too_long", (), ())
    assert (found.contested, found.good_natured) == (False, None)


def test_a_reply_that_was_asked_for_again_is_no_last_word() -> None:
    calls = [failed(), call("abc", "ab ac bc", attempt=1), call("abc", "ab ac bc", 1)]
    assert final(calls) == calls[1:]
    found = merged(*calls, orders=2)
    assert (tiers(found), found.contested, found.calls) == ("a>b>c", False, ("0:abc", "1:abc"))
    twice = merged(failed(), failed("truncated", attempt=1))
    assert twice.outcome is Outcome.truncated


@pytest.mark.parametrize(
    ("views", "expected"),
    [((True, True, False), True), ((True, False), None), ((None, False), False), ((None, None), None)],
)
def test_good_natured_is_what_most_calls_say(views: tuple[bool | None, ...], expected: bool | None) -> None:
    calls = [call("ab", "", i, good_natured=view, mode="rank_only") for i, view in enumerate(views)]
    assert merged(*calls).good_natured is expected


def test_doubt_is_judged_by_the_first_orders_only() -> None:
    calls = [call("abc", "ab ac bc"), call("cba", "cb ca ba", 1)]
    assert not merged(*calls, orders=1).contested
    assert merged(*calls, orders=2).contested


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([call("abc", "ab bc ac")], False),
        ([call("abc", "ab bc ca")], True),
        ([call("abc", mode="rank_only")], False),
        ([call("abc", mode="rank_only"), call("abc", "", 1, mode="rank_only")], False),
        ([call("abc", mode="rank_only"), call("acb", "", 1, mode="rank_only")], True),
        ([call("a>b=c", "ab ac b=c"), call("abc", "ab bc ac", 1)], False),
        ([failed()], False),
        ([failed("truncated"), call("abc", "ab bc ac", 1)], False),
        ([pair("a", "b"), pair("b", "c"), pair("a", "c")], False),
        ([pair("a", "b"), pair("b", "c"), pair("c", "a")], True),
        ([pair("b", "a"), pair("c", "b"), pair("a", "c")], True),
        ([pair("a", "b"), pair("b", "c"), failed("refused", "ac")], True),
        ([pair("a", "b"), call("b=c", "b=c", mode="pairwise"), pair("c", "a")], False),
        ([scored("a", 5), scored("b", 5)], False),
    ],
)
def test_what_counts_as_doubt(calls: list[Judgment], expected: bool) -> None:
    assert contested(calls) is expected


# ── Kemeny ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def price(votes: Votes, order: tuple[int, ...]) -> tuple[int, int]:
    """Twice the votes, and what of the rankings, an order contradicts: written anew, pair by pair."""
    pairs = list(combinations(order, 2))
    return (
        sum(2 * votes.wins[low][high] + votes.equal[low][high] for high, low in pairs),
        sum(votes.ranked[low][high] for high, low in pairs),
    )


@st.composite
def all_votes(draw: st.DrawFn, most: int = 6) -> tuple[Votes, list[str]]:
    n = draw(st.integers(2, most))
    number = st.integers(0, draw(st.sampled_from([1, 3])))
    wins, equal, ranked = ([[0] * n for _ in range(n)] for _ in range(3))
    for i, j in combinations(range(n), 2):
        wins[i][j], wins[j][i], ranked[i][j], ranked[j][i] = (draw(number) for _ in range(4))
        equal[i][j] = equal[j][i] = draw(number)
    return Votes(wins, equal, ranked), [f"{lot:04d}" for lot in draw(st.permutations(range(n)))]


@given(given_votes=all_votes())
def test_kemeny_is_what_trying_all_orders_gives(given_votes: tuple[Votes, list[str]]) -> None:
    votes, lots = given_votes
    n = len(lots)
    everything = list(permutations(range(n)))
    least = min(price(votes, order) for order in everything)
    best = [order for order in everything if price(votes, order) == least]
    found = kemeny(votes, lots)
    assert tuple(i for tier in found for i in tier) == min(best, key=lambda order: [lots[i] for i in order])
    # A new tier begins exactly where all best orders have the same answers above.
    cuts = [at for at in range(1, n + 1) if len({frozenset(order[:at]) for order in best}) == 1]
    assert [sum(map(len, found[: t + 1])) for t in range(len(found))] == cuts


@given(given_votes=all_votes(8), data=st.data())
def test_renaming_the_answers_renames_the_result(given_votes: tuple[Votes, list[str]], data: st.DataObject) -> None:
    votes, lots = given_votes
    n = len(lots)
    new = data.draw(st.permutations(range(n)))  # new[i] = number that i gets

    def moved(matrix: list[list[int]]) -> list[list[int]]:
        found = [[0] * n for _ in range(n)]
        for i in range(n):
            for j in range(n):
                found[new[i]][new[j]] = matrix[i][j]
        return found

    renamed = Votes(moved(votes.wins), moved(votes.equal), moved(votes.ranked))
    moved_lots = [lot for _, lot in sorted(zip(new, lots, strict=True))]
    assert kemeny(renamed, moved_lots) == [tuple(new[i] for i in tier) for tier in kemeny(votes, lots)]


rankings = st.integers(2, 7).flatmap(lambda n: st.lists(st.permutations("abcdefg"[:n]).map("".join), min_size=1, max_size=6))


def of(orders: list[str]) -> tuple[Votes, list[str]]:
    ids = sorted(orders[0])
    return count_votes([call(r, "", i, mode="rank_only") for i, r in enumerate(orders)], ids), [f"lot {i}" for i in ids]


@given(orders=rankings, data=st.data())
def test_a_ranking_and_its_reverse_change_nothing(orders: list[str], data: st.DataObject) -> None:
    one = "".join(data.draw(st.permutations(orders[0])))
    assert kemeny(*of([*orders, one, one[::-1]])) == kemeny(*of(orders))


@given(orders=rankings, copies=st.integers(2, 4))
def test_saying_everything_several_times_changes_nothing(orders: list[str], copies: int) -> None:
    assert kemeny(*of(orders * copies)) == kemeny(*of(orders))


@given(orders=rankings)
def test_what_all_rankings_agree_on_is_in_the_result(orders: list[str]) -> None:
    ids = sorted(orders[0])
    tier_of = {ids[i]: at for at, tier in enumerate(kemeny(*of(orders))) for i in tier}
    for a, b in permutations(ids, 2):
        if all(order.index(a) < order.index(b) for order in orders):
            assert tier_of[a] <= tier_of[b]
    if len(set(orders)) == 1:
        assert [i for i, _ in sorted(tier_of.items(), key=lambda item: item[1])] == list(orders[0])
        assert len(set(tier_of.values())) == len(ids)


@given(orders=rankings)
def test_an_answer_that_beats_every_other_comes_first(orders: list[str]) -> None:
    """Condorcet's criterion, which Kemeny's order has."""
    ids = sorted(orders[0])
    for a in ids:
        if all(2 * sum(order.index(a) < order.index(b) for order in orders) > len(orders) for b in ids if b != a):
            assert kemeny(*of(orders))[0] == (ids.index(a),)


@given(orders=rankings, seed=st.integers(0, 3), keep=st.booleans())
def test_a_merged_ranking_orders_all_answers_and_supports_all_pairs(orders: list[str], seed: int, keep: bool) -> None:
    found = merged(*(call(r, "", i, mode="rank_only") for i, r in enumerate(orders)), keep_ties=keep, seed=seed)
    flat = [i for tier in found.tiers for i in tier]
    assert sorted(flat) == sorted(orders[0])
    assert [(p.better, p.worse) for p in found.pairs] == list(combinations(flat, 2))
    assert all(p.weight == len(orders) for p in found.pairs)
    for p in found.pairs:
        assert p.support == sum(order.index(p.better) < order.index(p.worse) for order in orders)
    assert keep or all(len(tier) == 1 for tier in found.tiers)


def test_twelve_answers_in_a_circle_are_ordered_too() -> None:
    # Each answer beats the next six: the worst case for the search, and every answer is like every other.
    n = 12
    wins = [[int(0 < (j - i) % n < 6) for j in range(n)] for i in range(n)]
    nothing = [[0] * n for _ in range(n)]
    assert kemeny(Votes(wins, nothing, nothing), [f"{i:02d}" for i in range(n)]) == [tuple(range(n))]

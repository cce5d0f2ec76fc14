"""Which calls each mode makes: numbers by hand, every pair once, and that chance is fair and fixed by content."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from typing import get_args

import pytest

from starling.config import RankingMode
from starling.judge.modes import Ask, asks, calls_per_order

MODES = get_args(RankingMode)
LISTED = ("internal_flipped", "internal_random", "internal_fixed")


def many(mode: RankingMode, k: int, n: int = 300) -> list[tuple[Ask, ...]]:
    return [asks(mode, k, 0, f"prompt {i}", 0, 0) for i in range(n)]


@pytest.mark.parametrize(
    ("mode", "seven", "two", "twelve"),
    [
        *((mode, 1, 1, 1) for mode in (*LISTED, "internal_unlisted", "rank_only")),
        ("pairwise", 21, 1, 66),
        ("pairwise_both", 42, 2, 132),
        ("pointwise", 7, 2, 12),
    ],
)
def test_calls_per_order(mode: RankingMode, seven: int, two: int, twelve: int) -> None:
    assert (calls_per_order(mode, 7), calls_per_order(mode, 2), calls_per_order(mode, 12)) == (seven, two, twelve)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [2, 3, 7, 12])
def test_every_answer_is_shown_and_every_pair_asked_once_per_order(mode: RankingMode, k: int) -> None:
    found = asks(mode, k, 0, "p", 0, 0)
    assert len(found) == calls_per_order(mode, k)
    pairs = Counter(frozenset(p) for p in combinations(range(k), 2))
    if mode in LISTED:
        assert Counter(frozenset(pair) for pair in found[0].pairs) == pairs
    else:
        assert all(ask.pairs == () for ask in found)
    if mode.startswith("pairwise"):
        times = 2 if mode == "pairwise_both" else 1
        assert Counter(frozenset(ask.shown) for ask in found) == Counter(dict.fromkeys(pairs, times))
        assert len({ask.shown for ask in found}) == len(found)
    elif mode == "pointwise":
        assert [ask.shown for ask in found] == [(i,) for i in range(k)]
    else:
        assert sorted(found[0].shown) == list(range(k))


@pytest.mark.parametrize("mode", [*LISTED, "internal_unlisted", "rank_only", "pairwise"])
@pytest.mark.parametrize("k", [2, 3, 7])
def test_every_second_order_turns_the_one_before(mode: RankingMode, k: int) -> None:
    """So of two answers each is shown first once; a repeated attempt is drawn anew instead."""
    for prompt in "pqrs":
        for order in (0, 2):
            one, two = (asks(mode, k, 0, prompt, o, 0) for o in (order, order + 1))
            assert [ask.shown[::-1] for ask in one] == [ask.shown for ask in two]
    again = [asks(mode, k, 0, f"{i}", 1, 1)[0].shown == asks(mode, k, 0, f"{i}", 1, 0)[0].shown for i in range(60)]
    assert 0 < sum(again) < 60 or k == 7


@pytest.mark.parametrize("mode", MODES)
def test_what_is_drawn_depends_on_seed_prompt_order_and_attempt_alone(mode: RankingMode) -> None:
    drawn = [
        asks(mode, 7, seed, prompt, order, attempt) for seed, prompt, order, attempt in product((0, 1), "pq", (0, 1, 2), (0, 1))
    ]
    assert drawn[5] == asks(mode, 7, 0, "p", 2, 1)
    assert len(set(drawn)) == (1 if mode in ("pairwise_both", "pointwise") else len(drawn))


def test_the_original_keeps_letters_in_order_inside_pairs_and_the_default_flips_half() -> None:
    for mode in ("internal_random", "internal_fixed"):
        assert all(a < b for found in many(mode, 7) for a, b in found[0].pairs)
    flipped = sum(a > b for found in many("internal_flipped", 7) for a, b in found[0].pairs)
    assert abs(flipped - 3150) < 200  # 300 × 21 coins, sd 40


def test_pairs_are_listed_at_random_or_as_in_a_dictionary() -> None:
    fixed = (("A", "B"), ("A", "C"), ("A", "D"), ("B", "C"), ("B", "D"), ("C", "D"))
    assert all(tuple(("ABCD"[a], "ABCD"[b]) for a, b in found[0].pairs) == fixed for found in many("internal_fixed", 4, 5))
    for mode in ("internal_flipped", "internal_random"):
        leading = Counter(frozenset(found[0].pairs[0]) for found in many(mode, 7))
        assert len(leading) == 21
        assert max(leading.values()) < 35  # 300 / 21 ≈ 14, sd 3.7


@pytest.mark.parametrize("mode", [m for m in MODES if m.startswith(("internal", "rank"))])
def test_each_answer_is_shown_first_equally_often(mode: RankingMode) -> None:
    firsts = Counter(found[0].shown[0] for found in many(mode, 7))
    assert len(firsts) == 7
    assert all(20 < n < 66 for n in firsts.values())  # 300 / 7 ≈ 43, sd 6


def test_one_order_of_pairwise_shows_either_answer_first_by_a_coin() -> None:
    turned = sum(ask.shown[0] > ask.shown[1] for found in many("pairwise", 7) for ask in found)
    assert abs(turned - 3150) < 200

"""Agreement beyond chance and between passes: worked by hand, against independent implementations, and its laws."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from starling.audit.consistency import (
    accuracy,
    agreement,
    equal_pairs,
    longer_wins,
    neighbours,
    order_effect,
    tau_of,
    top1_of,
)
from starling.stats import Interval
from starling.stats_agreement import alpha_interval, cohen_kappa, kappa_interval


def mean(one: Interval | None) -> float:
    assert one is not None
    return one.mean


# ── kappa and alpha ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_kappa_by_hand() -> None:
    """Agreement .7, by chance .5 × .6 + .5 × .4 = .5: (.7 − .5) / .5."""
    assert cohen_kappa(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx(0.4)
    assert cohen_kappa(np.diag([3.0, 4.0])) == 1
    assert cohen_kappa(np.array([[5.0, 0.0], [0.0, 0.0]])) is None, "one word only: nothing beyond chance can be seen"
    assert cohen_kappa(np.zeros((2, 2))) is None


KRIPPENDORFF = [
    [1, 1, None, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4], [4, 4, 4, 4], [1, 1, 2, 1],
    [2, 2, 2, 2], [None, 5, 5, 5], [None, None, 1, 1], [None, None, 3, None],
]  # fmt: skip
"""Section C of Krippendorff's "Computing Krippendorff's Alpha-Reliability": 12 units, 4 observers, missing values."""


@pytest.mark.parametrize(("ordinal", "published"), [(False, 0.743), (True, 0.815)])
def test_alpha_is_the_published_one(ordinal: bool, published: float) -> None:
    units = [[v for v in unit if v is not None] for unit in KRIPPENDORFF]
    names = [str(i) for i in range(len(units))]
    found = alpha_interval(units, [1, 2, 3, 4, 5], names, ordinal=ordinal, resamples=50, seed=0)
    assert mean(found) == pytest.approx(published, abs=5e-4)
    assert found is not None
    assert (found.n, found.clusters) == (40, 11), "the unit with one value says nothing"


def test_alpha_against_its_definition() -> None:
    """1 − observed / expected disagreement over pairs of values, written out as loops."""
    rng = random.Random(3)
    units = [[rng.choice("aab") if i % 3 else "t" for _ in range(rng.randint(1, 4))] for i in range(40)]
    paired = [u for u in units if len(u) > 1]
    values = [v for u in paired for v in u]
    observed = sum(2 * sum(a != b for a, b in combinations(u, 2)) / (len(u) - 1) for u in paired) / len(values)
    expected = 2 * sum(a != b for a, b in combinations(values, 2)) / (len(values) * (len(values) - 1))
    found = alpha_interval(units, ["a", "t", "b"], [str(i) for i in range(40)], ordinal=False, resamples=20, seed=0)
    assert mean(found) == pytest.approx(1 - observed / expected)


def test_kappa_intervals_are_clustered_and_repeatable() -> None:
    rng = random.Random(0)
    first = [rng.choice("ab") for _ in range(120)]
    second = [a if rng.random() < 0.8 else rng.choice("ab") for a in first]
    alone = kappa_interval(first, second, [str(i) for i in range(120)], resamples=400, seed=1)
    four = kappa_interval(first * 4, second * 4, [str(i) for i in range(120)] * 4, resamples=400, seed=1)
    assert alone is not None
    assert four is not None
    assert (four.mean, four.low, four.high) == pytest.approx((alone.mean, alone.low, alone.high))
    assert alone == kappa_interval(first, second, [str(i) for i in range(120)], resamples=400, seed=1)
    assert alone.low < alone.mean < alone.high


def test_intervals_of_kappa_cover() -> None:
    """Two raters that agree in 75 % of even labels: kappa .5; 100 samples of 100."""
    covered = 0
    for seed in range(100):
        rng = random.Random(seed)
        first = [rng.choice("ab") for _ in range(100)]
        second = [a if rng.random() < 0.75 else ("b" if a == "a" else "a") for a in first]
        one = kappa_interval(first, second, [str(i) for i in range(100)], resamples=200, seed=seed)
        assert one is not None
        covered += one.low <= 0.5 <= one.high
    assert 87 <= covered <= 99


# ── two passes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def strict(order: str) -> tuple[tuple[str, ...], ...]:
    return tuple((r,) for r in order)


def test_two_passes_by_hand() -> None:
    """p: one of three pairs flips, same best. q: all three flip. r: only one pass ranked it. s: other responses."""
    first = {"p": strict("abc"), "q": strict("abc"), "r": strict("ab"), "s": strict("ab")}
    second = {"p": strict("acb"), "q": strict("cba"), "s": strict("ac")}
    found = agreement(first, second, resamples=50)
    assert (found.prompts, found.left_out) == (2, 2)
    assert mean(found.tau) == pytest.approx((1 / 3 - 1) / 2)
    assert mean(found.top1) == 0.5
    assert mean(found.flips) == pytest.approx(4 / 6)
    # Pairs a–b, a–c, b–c: first says + + + twice, second + + − and − − −. Agreement 2/6, by chance 2/6: kappa 0.
    assert mean(found.kappa) == pytest.approx(0)
    assert mean(found.flips) == pytest.approx((1 - mean(found.tau)) / 2), "where nothing is tied"


def test_tau_with_ties_is_scipys() -> None:
    rng = random.Random(1)
    for _ in range(50):
        ids = "abcdefg"
        ranks = [[rng.randint(0, 4) for _ in ids] for _ in range(2)]
        tiers = [tuple(t for n in range(5) if (t := tuple(r for r, v in zip(ids, of, strict=True) if v == n))) for of in ranks]
        assert tau_of(*tiers) == pytest.approx(scipy_stats.kendalltau(*ranks).statistic)


def test_top1_with_ties_is_a_chance() -> None:
    assert top1_of((("a", "b"), ("c",)), (("a",), ("b", "c"))) == 0.5
    assert top1_of((("a", "b"),), (("a", "b"),)) == 0.5
    assert top1_of(strict("ab"), strict("ba")) == 0


def test_equal_passes_agree_and_their_names_do_not_matter() -> None:
    rng = random.Random(2)
    first = {str(i): strict("".join(rng.sample("abcde", 5))) for i in range(40)}
    same = agreement(first, first)
    assert [mean(one) for one in (same.tau, same.top1, same.flips, same.kappa)] == pytest.approx([1, 1, 0, 1])
    assert same.tau is not None
    assert same.tau.low < 1, "40 equal prompts do not prove that all are"
    second = {p: strict("".join(rng.sample("abcde", 5))) for p in first}
    swapped = str.maketrans("abcde", "edcba")
    other = [{p: tuple((r.translate(swapped),) for (r,) in t) for p, t in one.items()} for one in (first, second)]
    assert mean(agreement(first, second).tau) == pytest.approx(mean(agreement(*other).tau))


def test_noise_without_bias_has_no_order_effect_and_bias_has_one() -> None:
    """Repetition and another order lose equally much by noise; a bias turns the second one further. 120 prompts of 5."""

    def judged(seed: int, bias: float, flip: bool) -> dict[str, tuple[tuple[str, ...], ...]]:
        rng = random.Random(seed)
        passes = {}
        for prompt in range(120):
            quality = random.Random(prompt)
            seen = {r: quality.gauss(0, 1) + rng.gauss(0, 0.5) + bias * (4 - i if flip else i) for i, r in enumerate("abcde")}
            passes[str(prompt)] = strict("".join(sorted(seen, key=lambda r: -seen[r])))
        return passes

    for bias, sees in ((0.0, False), (0.4, True)):
        found = order_effect(judged(1, bias, False), judged(2, bias, False), judged(3, bias, True)).tau
        assert found is not None
        assert (found.high < 0) == sees
        assert sees or found.low <= 0 <= found.high


def test_left_out_of_the_order_effect() -> None:
    base = {"p": strict("ab"), "q": strict("ab")}
    found = order_effect(base, {"p": strict("ab"), "q": strict("ab")}, {"p": strict("ba")})
    assert (found.prompts, mean(found.tau), mean(found.top1)) == (1, -2, -1)


def test_length_among_close_and_equal_pairs() -> None:
    judged = {"p": strict("abc"), "q": (("a", "b"), ("c",))}
    assert neighbours(judged) == {"p": [("a", "b"), ("b", "c")], "q": [("a", "b"), ("a", "c"), ("b", "c")]}
    lengths = {"a": 9, "b": 5, "c": 5}
    # p: a over b is the longer one, b and c are equally long. q: a–b tied, a over c longer, b–c equal.
    assert mean(longer_wins([(neighbours(judged), judged)], lengths)) == 1
    assert equal_pairs({"p": {"a": 0.5, "b": 0.5, "c": 1.0}}) == {"p": [("a", "b")]}
    assert mean(longer_wins([({"p": [("a", "b")], "missing": [("a", "b")]}, {"p": strict("bca")})], lengths)) == 0
    assert longer_wins([({}, judged)], lengths) is None


def test_accuracy_by_hand() -> None:
    """p: a > b > c against gold c = b < a: a over both is right, b–c is no pair. q: all tied, halves. r has no gold."""
    gold = {"p": {"a": 1.0, "b": 0.5, "c": 0.5}, "q": {"a": 1.0, "b": 0.0}}
    found = accuracy({"p": strict("abc"), "q": (("a", "b"),), "r": strict("ab")}, gold)
    assert found.prompts == 2
    assert mean(found.pairs) == pytest.approx((2 + 0.5) / 3)
    assert mean(found.top1) == pytest.approx((1 + 0.5) / 2)

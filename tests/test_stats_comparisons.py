"""Comparisons of models: Holm and sign flips against scipy, letters by their definition."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starling import stats_comparisons as compare


def test_holm_by_hand() -> None:
    # sorted .005, .01, .03, .04 times 4, 3, 2, 1 = .02, .03, .06, .04 → running maximum .02, .03, .06, .06
    assert compare.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert compare.holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(deadline=None)
def test_holm_rejects_what_the_step_down_procedure_rejects(p: list[float]) -> None:
    """Walk up the sorted p-values, reject while p ≤ α / (tests left), stop at the first that is not."""
    alpha, rejected = 0.05, set()
    for rank, i in enumerate(sorted(range(len(p)), key=lambda j: p[j])):
        if (len(p) - rank) * p[i] > alpha:
            break
        rejected.add(i)
    assert {i for i, adjusted in enumerate(compare.holm(p)) if adjusted <= alpha} == rejected


def test_sign_flips_by_hand_and_exactly() -> None:
    assert compare.sign_flip_p([1, 1, 1], seed=0) == 2 / 8
    assert compare.sign_flip_p([3, 1, -1], seed=0) == 6 / 8  # the eight sums are ±5, ±3, ±3, ±1
    assert compare.sign_flip_p([0, 0], seed=0) == 1.0
    assert compare.sign_flip_p([], seed=0) == 1.0


def test_few_clusters_are_flipped_exhaustively() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 10)
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in product((1, -1), repeat=10)]
    share = np.mean([s >= abs(values.sum()) - 1e-9 for s in sums])
    assert compare.sign_flip_p(values, seed=5) == pytest.approx(float(share))


@pytest.mark.parametrize("kind", ["equal sizes", "all different"])
def test_random_flips_agree_with_scipy(kind: str) -> None:
    from scipy.stats import binomtest, permutation_test

    rng = np.random.default_rng(1)
    if kind == "equal sizes":  # then it is the sign test
        values = np.array([1.0] * 60 + [-1.0] * 40)
        expected = binomtest(60, 100).pvalue
    else:
        values = rng.normal(0.25, 1, 80)
        found = permutation_test((values,), np.sum, permutation_type="samples", n_resamples=50_000, rng=np.random.default_rng(2))
        expected = found.pvalue
    assert compare.sign_flip_p(values, seed=0) == pytest.approx(expected, abs=0.004)


def test_many_different_sizes_take_the_normal_limit_of_the_same_test(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).normal(0.06, 1, 1500)
    limit = compare.sign_flip_p(values, seed=0)
    monkeypatch.setattr(compare, "MANY_SIZES", 10**9)
    assert limit == pytest.approx(compare.sign_flip_p(values, seed=0, flips=20_000), abs=0.005)
    assert 0.005 < limit < 0.2


def test_sizes_that_differ_by_rounding_only_are_one_size() -> None:
    rough = [0.3 - 0.2] * 10 + [0.1] * 10 + [-(0.7 - 0.6)] * 5
    assert compare.sign_flip_p(rough, seed=0) == compare.sign_flip_p([1.0] * 20 + [-1.0] * 5, seed=0)


names = st.integers(2, 7).flatmap(
    lambda n: st.tuples(st.just([f"m{i}" for i in range(n)]), st.sets(st.sampled_from(list(combinations(range(n), 2)))))
)


@given(names)
@settings(max_examples=60, deadline=None)
def test_models_share_a_letter_exactly_when_they_are_not_different(case: tuple[list[str], set[tuple[int, int]]]) -> None:
    models, apart = case
    different = [(models[i], models[j]) for i, j in sorted(apart)]
    shown = compare.letters(models, different)
    for a, b in combinations(models, 2):
        assert bool(set(shown[a]) & set(shown[b])) == ((a, b) not in different)
    assert all(shown.values())
    letters = set("".join(shown.values()))
    groups = [{m for m in models if letter in shown[m]} for letter in letters]
    assert not any(one < other for one, other in product(groups, groups)), "no letter that says nothing new"


def test_verdicts_in_whole_steps_have_an_exact_p_value() -> None:
    from scipy.stats import binomtest

    for wins, losses in ((60, 40), (33, 8), (700, 611)):
        values = [0.5] * wins + [-0.5] * losses + [0.0] * 9
        assert compare.sign_flip_p(values, seed=0) == pytest.approx(binomtest(wins, wins + losses).pvalue, rel=1e-9)


def test_steps_of_several_sizes_agree_with_all_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [1.0] * 7 + [0.5] * 3 + [-0.5] * 2 + [-1.0, 1.5]
    every = compare.sign_flip_p(values, seed=0)  # 14 clusters: all 2^14 flips
    monkeypatch.setattr(compare, "EXACT", 0)
    assert compare.sign_flip_p(values, seed=0) == pytest.approx(every, rel=1e-12)
    monkeypatch.setattr(compare, "WHOLE_SIZES", 0)
    assert compare.sign_flip_p(values, seed=0) == pytest.approx(every, abs=0.005)

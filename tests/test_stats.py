"""Intervals, rank correlation and position bias: by hand, by law, and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starling import stats


def test_ratio_is_the_pooled_one() -> None:
    found = stats.ratio_interval([3, 0], [3, 1], resamples=100, seed=0)
    assert found.mean == pytest.approx(3 / 4)
    assert found.clusters == 2


def test_interval_of_a_mean_agrees_with_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    found = stats.ratio_interval(values, np.ones(400), resamples=4000, seed=0)
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """95 % nominal; 200 data sets with clusters of three equal values. Treating the values as independent covers < 80 %."""
    covered = 0
    for seed in range(200):
        values = np.random.default_rng(seed).normal(0.0, 1.0, 60)
        found = stats.ratio_interval(values * 3, np.full(60, 3.0), resamples=300, seed=seed)
        covered += found.low <= 0.0 <= found.high
    assert 180 <= covered <= 198


def test_same_seed_same_interval_whatever_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(range(50))
    one = stats.ratio_interval(values, np.ones(50), resamples=64, seed=5)
    monkeypatch.setattr(stats, "_BLOCK", 50 * 16)
    assert stats.ratio_interval(values, np.ones(50), resamples=64, seed=5) == one


@pytest.mark.parametrize(
    ("sums", "counts"), [([], []), ([1.0], [0.0]), ([1.0, 2.0], [1.0]), ([float("nan")], [1.0]), ([1.0, 1.0], [2.0, -1.0])]
)
def test_bad_clusters_are_refused(sums: list[float], counts: list[float]) -> None:
    with pytest.raises(ValueError, match="sums and counts"):
        stats.ratio_interval(sums, counts, resamples=100, seed=0)


def test_kendall_by_hand() -> None:
    # pairs (1,2) and (1,3) agree, (2,3) does not: (2 − 1) / 3
    assert stats.kendall_tau([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    # y ties once: (2 − 0) / sqrt(3 · 2)
    assert stats.kendall_tau([1, 2, 3], [1, 2, 2]) == pytest.approx(2 / np.sqrt(6))
    assert stats.kendall_tau([1, 1], [1, 2]) == 0.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_kendall_agrees_with_an_independent_implementation(pairs: list[tuple[int, int]]) -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    x, y = [p[0] for p in pairs], [p[1] for p in pairs]
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert stats.kendall_tau(x, y) == 0.0
    else:
        assert stats.kendall_tau(x, y) == pytest.approx(scipy_stats.kendalltau(x, y).statistic)


def test_wilson_by_hand() -> None:
    # z = 2, 5 of 10: centre (.5 + .2) / 1.4 = .5, half 2·sqrt(.025 + .01) / 1.4 = .26726
    low, high = stats.wilson_interval(5, 10, z=2.0)
    assert (low, high) == pytest.approx((0.5 - 0.267261, 0.5 + 0.267261), abs=1e-5)
    assert stats.wilson_interval(0, 10)[0] == 0.0


def test_position_bias_by_hand() -> None:
    shown = [("a", "b", "c"), ("c", "a", "b"), ("x", "y")]
    ranked = [("a", "c", "b"), ("a", "c", "b"), ("y", "x")]
    found = stats.position_bias(shown, ranked)
    assert found is not None
    assert (found.k, found.judgments) == (3, 2)
    assert found.first_shares == (0.5, 0.5, 0.0)
    assert found.mean_ranks == (1.5, 2.0, 2.5)
    assert stats.position_bias([], []) is None

"""Intervals, rank correlation and position bias: by hand, by law, and against scipy."""

from __future__ import annotations

import subprocess
import sys

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


def test_intervals_of_mean_ranks_by_hand() -> None:
    shown = [("a", "b"), ("a", "b"), ("a", "b"), ("a", "b")]
    ranked = [("a", "b"), ("a", "b"), ("a", "b"), ("b", "a")]
    found = stats.position_bias(shown, ranked)
    assert found is not None
    # position 1 has ranks 1 1 1 2: mean 1.25, sd .5, standard error .25
    assert found.mean_ranks == (1.25, 1.75)
    assert found.rank_intervals[0] == pytest.approx((1.25 - 0.49, 1.25 + 0.49), abs=1e-4)
    lonely = stats.position_bias(shown[:1], ranked[:1])
    assert lonely is not None
    assert lonely.rank_intervals[0] == (float("-inf"), float("inf"))


# ── clustered means and paired differences ───────────────────────────────────────────────────────────────────────────


def test_mean_weighs_values_not_clusters() -> None:
    found = stats.bootstrap_mean([1, 1, 1, 5], ["p", "p", "p", "q"], resamples=500, seed=0)
    assert (found.mean, found.n, found.clusters) == (2.0, 4, 2)
    # the only possible resamples are pp, pq, qp and qq with means 1, 2, 2 and 5
    assert (found.low, found.high) == (1.0, 5.0)


def test_copies_within_a_cluster_add_no_certainty() -> None:
    values = np.random.default_rng(1).normal(size=80)
    once = stats.bootstrap_mean(values, list(range(80)), resamples=500, seed=3)
    thrice = stats.bootstrap_mean(np.repeat(values, 3), [i for i in range(80) for _ in range(3)], resamples=500, seed=3)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    assert (thrice.n, thrice.clusters) == (240, 80)
    alone = stats.bootstrap_mean(np.repeat(values, 3), list(range(240)), resamples=500, seed=3)
    assert alone.high - alone.low < 0.75 * (once.high - once.low)


def test_names_of_clusters_and_shift_of_values_do_not_matter() -> None:
    values, clusters = [0.3, 0.1, 0.9, 0.4, 0.2], [1, 2, 1, 3, 2]
    one = stats.bootstrap_mean(values, clusters, resamples=300, seed=1)
    other = stats.bootstrap_mean([v + 10 for v in values], [f"prompt {c}" for c in clusters], resamples=300, seed=1)
    assert (other.mean - 10, other.low - 10, other.high - 10) == pytest.approx((one.mean, one.low, one.high))


def test_paired_difference_is_the_mean_of_differences_and_changes_sign() -> None:
    a, b, prompts = [1.0, 0.5, 0.25, 1.0], [0.5, 0.5, 0.75, 0.0], ["x", "x", "y", "z"]
    found = stats.paired_difference(a, b, prompts, resamples=400, seed=2)
    assert found == stats.bootstrap_mean([0.5, 0.0, -0.5, 1.0], prompts, resamples=400, seed=2)
    assert found.mean == 0.25
    back = stats.paired_difference(b, a, prompts, resamples=400, seed=2)
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low))


def test_pairing_removes_what_both_sides_share() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 5, 200)
    found = stats.paired_difference(difficulty + 0.5, difficulty, list(range(200)), resamples=200, seed=0)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], []), ([float("nan")], ["a"]), ([[1.0]], ["a"])])
def test_values_without_a_mean(values: list[float], clusters: list[str]) -> None:
    with pytest.raises(ValueError, match=r"clusters?|sums and counts"):
        stats.bootstrap_mean(values, clusters, resamples=100, seed=0)


def test_pairs_of_unequal_length() -> None:
    with pytest.raises(ValueError, match="equally many"):
        stats.paired_difference([1.0], [1.0, 2.0], ["a"], resamples=100, seed=0)


# ── Bradley–Terry ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dof", [1, 2, 5, 6, 11, 40])
def test_chi_square_is_that_of_scipy(dof: int) -> None:
    reference = pytest.importorskip("scipy.stats").chi2
    for statistic in (1e-9, 0.1, 1.0, 7.7, 40.0, 200.0, 900.0):
        assert stats.chi_square_p(statistic, dof) == pytest.approx(reference.sf(statistic, dof), rel=1e-12)
    assert stats.chi_square_p(0, dof) == 1


@pytest.mark.parametrize(("statistic", "dof"), [(-1.0, 3), (float("nan"), 3), (float("inf"), 3), (1.0, 0)])
def test_no_chi_square(statistic: float, dof: int) -> None:
    with pytest.raises(ValueError, match="chi-square"):
        stats.chi_square_p(statistic, dof)


def test_statistics_need_no_scipy() -> None:
    code = "import sys, starling.stats; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_times_drawn_counts_what_drawn_clusters_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "_BLOCK", 7 * 20)  # blocks of 20, 20 and 10 resamples
    drawn, times = list(stats.drawn_clusters(7, 50, 3)), list(stats.times_drawn(7, 50, 3))
    assert [len(block) for block in times] == [20, 20, 10]
    for one, row in zip(np.concatenate(drawn), np.concatenate(times), strict=True):
        assert row.tolist() == [(one == cluster).sum() for cluster in range(7)]
    assert np.concatenate(times).std() > 0.5

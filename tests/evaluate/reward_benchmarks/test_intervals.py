"""Clustered bootstrap of totals: agreement with the plain one, order of the items, missing values."""

from __future__ import annotations

import numpy as np
import pytest

from starling import stats
from starling.evaluate.reward_benchmarks import intervals


def test_a_mean_has_the_interval_of_the_plain_bootstrap() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(1.0, 2.0, 600)
    clusters = [f"c{i // 3}" for i in range(600)]
    found = intervals.mean(values, clusters, seed=1, resamples=4000)
    plain = stats.bootstrap_mean(values, clusters, resamples=4000, seed=2)
    assert found.value() == pytest.approx(plain.mean)
    assert found.ci() == pytest.approx([plain.low, plain.high], abs=0.02)


def test_the_order_of_the_items_changes_nothing() -> None:
    values, clusters = np.arange(30.0), [f"c{i % 7}" for i in range(30)]
    turned = np.random.default_rng(0).permutation(30)
    one = intervals.mean(values, clusters, seed=0)
    other = intervals.mean(values[turned], [clusters[i] for i in turned], seed=0)
    assert one.ci() == pytest.approx(other.ci())


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one = intervals.mean(np.arange(30.0), [str(i) for i in range(30)], seed=0, resamples=100)
    monkeypatch.setattr(stats, "_BLOCK", 30 * 7)
    assert one.ci() == intervals.mean(np.arange(30.0), [str(i) for i in range(30)], seed=0, resamples=100).ci()


def test_totals_by_hand() -> None:
    names, found = intervals.totals(["b", "a", "b"], [[1, 1], [2, 1], [4, 1]])
    assert names == ["a", "b"]
    assert found.tolist() == [[2, 1], [5, 2]]


def test_a_statistic_that_most_resamples_lack_has_no_interval() -> None:
    """One of 40 clusters has the second column: 36 % of the resamples miss it; one of two columns never has a count."""
    columns = np.zeros((40, 4))
    columns[0, :2], columns[:, 3] = 1, 0
    found = intervals.bootstrap(columns, intervals.ratios, seed=0)
    assert found.value(0) == 1.0
    assert found.ci(0) == [1.0, 1.0]
    assert found.value(1) is None
    assert found.ci(1) is None


def test_an_interval_needs_half_of_the_resamples() -> None:
    def often_missing(
        totals: np.ndarray[tuple[int, int], np.dtype[np.float64]],
    ) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        return np.where(totals == 3.0, totals, np.nan)  # of three clusters the resample is the data itself in 1 of 3 cases or so

    found = intervals.bootstrap(np.array([[0.0], [1.0], [2.0]]), often_missing, seed=0)
    assert found.value() == 3.0
    assert 0 < np.isfinite(found.draws_RM).mean() < 0.5
    assert found.ci() is None


def test_basic_interval_is_the_reflected_one() -> None:
    found = intervals.mean([0.0, 1.0, 1.0, 5.0], ["a", "b", "c", "d"], seed=0)
    low, high = found.ci()  # type: ignore[misc]
    assert found.ci(basic=True) == pytest.approx([2 * 1.75 - high, 2 * 1.75 - low])


@pytest.mark.parametrize(("clusters", "columns"), [([], np.zeros((0, 2))), (["a"], [[1.0], [2.0]]), (["a"], [[float("nan")]])])
def test_bad_rows_are_refused(clusters: list[str], columns: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"cluster|finite"):
        intervals.totals(clusters, columns)

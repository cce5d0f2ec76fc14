"""Sample sizes: by hand, inverse to each other, against a table, and against simulated tests."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from starling import stats_planning as planning


def test_the_size_for_two_points_of_win_rate_by_hand() -> None:
    # (1.959964 + 0.841621)² · 50² / 2² = 7.848880 · 625 = 4905.55, and 1.959964² / 2 = 1.92
    assert planning.needed(50, 2) == 4908
    assert planning.needed(0.5, 0.02) == 4908  # the unit does not matter
    assert planning.needed(40, 2) == 3142  # 7.848880 · 400 + 1.92 = 3141.47


@pytest.mark.parametrize("sd", [0.3, 1.0, 47.0])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_size_difference_and_power_are_inverse(sd: float, power: float) -> None:
    for n in (10, 80, 805, 5000):
        seen = planning.detectable(sd, n, power=power)
        assert planning.needed(sd, seen, power=power) == n
        assert planning.power_of(sd, seen, n) == pytest.approx(power)
    sizes = [row["detectable"] for row in planning.table(sd, power=power)]
    assert sizes == sorted(sizes, reverse=True)


def test_paired_size_is_that_of_statsmodels_tables() -> None:
    # Cohen 1988, table 2.4.1 halved for one sample: d = 0.5, α .05 two-sided, power .80 needs 34 by the exact t-test.
    assert planning.needed(1.0, 0.5) == 34
    assert planning.needed(1.0, 0.2) == 199


@pytest.mark.parametrize(("difference", "ties"), [(0.06, 0.0), (0.1, 0.3)])
def test_simulated_win_rates_have_the_power_that_was_planned(difference: float, ties: float) -> None:
    rate = 0.5 + difference
    n = planning.needed(planning.win_rate_sd(ties, rate), difference)
    rng = np.random.default_rng(1)
    shares = [rate - ties / 2, ties, 1 - rate - ties / 2]
    scores = rng.choice([1.0, 0.5, 0.0], p=shares, size=(4000, n)) - 0.5
    t = scores.mean(1) / (scores.std(1, ddof=1) / sqrt(n))
    assert (t > 1.96).mean() == pytest.approx(0.8, abs=0.02)  # se of 4,000 trials: .006


def test_simulated_accuracies_and_averaged_orders_have_the_spread_that_was_planned() -> None:
    rng = np.random.default_rng(2)
    both = rng.multivariate_normal([0, 0], [[1, 0.4], [0.4, 1]], size=200_000)
    assert both.mean(1).std() == pytest.approx(planning.averaged_sd(1.0, 2, 0.4), rel=0.01)
    assert (both[:, 0] - both[:, 1]).std() == pytest.approx(planning.paired_sd(1.0, 1.0, 0.4), rel=0.01)
    only_first, only_second = 0.13, 0.07
    gaps = rng.choice([1.0, -1.0, 0.0], p=[only_first, only_second, 0.8], size=200_000)
    assert gaps.std() == pytest.approx(planning.accuracy_sd(0.2, 0.06), rel=0.01)


def test_correlation_of_orders() -> None:
    assert planning.correlation([0, 1, 0, 1], [0, 1, 1, 0]) == pytest.approx(0.0)
    assert planning.correlation([0, 1, 0.5], [0, 1, 0.5]) == pytest.approx(1.0)
    assert planning.correlation([0, 1], [0, 1]) is None
    assert planning.correlation([1, 1, 1], [0, 1, 0]) is None


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        planning.needed(1, 0)
    with pytest.raises(ValueError, match="alpha and power"):
        planning.needed(1, 1, alpha=0)
    with pytest.raises(ValueError, match="standard deviation"):
        planning.needed(float("nan"), 1)
    with pytest.raises(ValueError, match="at least 3"):
        planning.detectable(1, 2)
    with pytest.raises(ValueError, match="ties"):
        planning.win_rate_sd(ties=0.6, rate=0.9)
    with pytest.raises(ValueError, match="apart"):
        planning.accuracy_sd(0.1, 0.2)
    with pytest.raises(ValueError, match="correlate"):
        planning.averaged_sd(1, 3, -0.9)

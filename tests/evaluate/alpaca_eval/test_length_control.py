"""The length-controlled win rate's fit: against scipy, against its own optimality conditions, against brute-force refitting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from starling.evaluate.alpaca_eval import length_control as lc
from starling.evaluate.alpaca_eval.length_control import Floats, Gamed, Impossible, LengthControlled


def rows(n: int = 120, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Preferences, length differences, difficulties of a candidate that gains by length."""
    rng = np.random.default_rng(seed)
    delta, difficulty = rng.normal(200, 400, n), rng.normal(0, 1.5, n)
    eta = -1.2 * np.tanh(delta / delta.std(ddof=1)) + 0.8 * difficulty - 0.7
    return 1 / (1 + np.exp(-eta - rng.normal(0, 1, n))), delta, difficulty


def gamed(n: int = 80, seed: int = 1) -> Gamed:
    rng = np.random.default_rng(seed)
    return Gamed(rng.uniform(0, 1, n), rng.normal(0, 1.5, n), rng.normal(0, 1.5, n))


def fitted(*given: object, c: float | None = 2.0) -> LengthControlled:
    found = lc.length_controlled(*given, c=c)  # type: ignore[arg-type]
    assert isinstance(found, LengthControlled)
    return found


def gradient(x: Floats, y: Floats, s: Floats, w: Floats) -> Floats:
    found: Floats = (s * (1 / (1 + np.exp(-x @ w)) - y)) @ x
    return found


@pytest.mark.parametrize("c", [0.003, 0.05, 1.0, 100.0, 1e4])
def test_the_fit_meets_its_optimality_conditions(c: float) -> None:
    y, delta, difficulty = rows()
    x = np.stack([np.tanh(delta / delta.std(ddof=1)), difficulty, np.ones(len(y))], 1)
    s = np.random.default_rng(2).uniform(0.1, 1, len(y))
    (w,) = lc.fit(x, y, s[:, None], c)
    slope = c * gradient(x, y, s, w)
    for weight, one in zip(w, slope, strict=True):
        if weight:
            assert one == pytest.approx(-math.copysign(1, weight), abs=1e-5)
        else:
            assert abs(one) <= 1 + 1e-6


def test_the_fit_is_that_of_another_optimiser() -> None:
    y, delta, difficulty = rows(seed=3)
    x = np.stack([np.tanh(delta / delta.std(ddof=1)), difficulty, np.ones(len(y))], 1)

    def objective(parts: Floats) -> float:  # positive and negative part of each weight
        eta = x @ (parts[:3] - parts[3:])
        return float(parts.sum() + 0.4 * (np.logaddexp(0, eta) - y * eta).sum())

    other = minimize(objective, np.full(6, 0.1), bounds=[(0, None)] * 6, tol=1e-14, options={"maxiter": 5000, "maxfun": 10**5})
    (w,) = lc.fit(x, y, np.ones((len(y), 1)), 0.4)
    assert w == pytest.approx(other.x[:3] - other.x[3:], abs=2e-4)


def test_a_strong_penalty_leaves_no_weight_and_half_of_the_wins() -> None:
    found = fitted(*rows(), gamed(), c=1e-4)
    assert set(found.weights.values()) == {0.0}
    assert found.win_rate == 50
    assert found.influence == pytest.approx(np.full(120, 50.0))


def test_several_fits_at_once_are_those_one_by_one() -> None:
    y, delta, difficulty = rows()
    x = np.stack([np.tanh(delta / 300), difficulty, np.ones(len(y))], 1)
    weights = np.random.default_rng(0).uniform(0, 2, (len(y), 3))
    together = lc.fit(x, y, weights, 5.0)
    for k in range(3):
        assert together[k] == pytest.approx(lc.fit(x, y, weights[:, k : k + 1], 5.0)[0], abs=1e-7)


def test_the_weight_of_a_row_is_that_many_rows() -> None:
    y, delta, difficulty = rows(60)
    x = np.stack([np.tanh(delta / 300), difficulty, np.ones(len(y))], 1)
    double = np.arange(len(y)) % 2 + 1
    once = lc.fit(x, y, double[:, None].astype(float), 1.0)
    assert lc.fit(np.repeat(x, double, 0), np.repeat(y, double), np.ones((double.sum(), 1)), 1.0) == pytest.approx(once, abs=1e-7)


@pytest.mark.parametrize(("n", "seed"), [(53, 5), (6, 0), (7, 1), (7, 2), (8, 3), (9, 4)])
def test_cross_validation_is_a_plain_loop_over_folds_and_grid(n: int, seed: int) -> None:
    y, delta, difficulty = rows(n, seed)
    x = np.stack([np.tanh(delta / 300), difficulty, np.ones(len(y))], 1)
    s = np.where(np.arange(len(y)) < n // 3, 0.1, 1.0)
    losses = []
    for c in lc.GRID:
        loss = 0.0
        for fold in range(5):
            held = np.array([(len(y) - 1 - i) % 5 == fold for i in range(len(y))])
            (w,) = lc.fit(x[~held], y[~held], s[~held][:, None], c)
            p = 1 / (1 + np.exp(-x[held] @ w))
            loss += float(np.mean(-s[held] * (y[held] * np.log(p) + (1 - y[held]) * np.log(1 - p)))) / 5
        losses.append(loss)
    weights, chosen = lc.cross_validated(x, y, s)
    assert chosen == lc.GRID[int(np.argmin(losses))]
    assert weights == pytest.approx(lc.fit(x, y, s[:, None], chosen)[0], abs=1e-6)
    assert lc.GRID[0] == pytest.approx(1e-4)
    assert lc.GRID[-1] == pytest.approx(1e4)


def test_the_rate_is_the_mean_prediction_at_equal_lengths() -> None:
    y, delta, difficulty = rows()
    found = fitted(y, delta, difficulty, gamed())
    w = found.weights
    p = 1 / (1 + np.exp(-(w["difficulty"] * difficulty + w["model"])))
    assert found.win_rate == pytest.approx(100 * p.mean())
    assert found.standard_error == pytest.approx(100 * p.std(ddof=1) / math.sqrt(len(p)))
    assert found.predicted == pytest.approx(p)
    assert found.variant == "full"


def test_answers_are_told_apart_by_length_in_units_of_its_spread_only() -> None:
    y, delta, difficulty = rows()
    once, scaled = fitted(y, delta, difficulty, gamed()), fitted(y, 7 * delta, difficulty, gamed())
    assert scaled.win_rate == pytest.approx(once.win_rate, abs=1e-7)


def test_swapping_the_sides_mirrors_the_minimal_rate() -> None:
    y, delta, _ = rows()
    one, other = fitted(y, delta, None, None), fitted(1 - y, -delta, None, None)
    assert one.variant == "minimal"
    assert one.win_rate + other.win_rate == pytest.approx(100)
    assert one.standard_error == pytest.approx(0, abs=1e-9)  # all predictions are the same: the official error says nothing
    assert set(one.weights) == {"length", "model"}


def test_noreg_does_without_the_gamed_rows() -> None:
    y, delta, difficulty = rows()
    found = fitted(y, delta, difficulty, None)
    assert found.variant == "noreg"
    assert found.win_rate != pytest.approx(fitted(y, delta, difficulty, gamed()).win_rate, abs=1e-3)


def test_a_row_without_a_preference_counts_in_the_spread_and_the_mean_as_officially() -> None:
    y, delta, difficulty = rows()
    holed = y.copy()
    holed[[3, 50]] = np.nan
    found = fitted(holed, delta, difficulty, gamed())
    known = ~np.isnan(holed)
    x = np.stack([np.tanh(delta / delta.std(ddof=1)), difficulty, np.ones(len(y))], 1)[known]
    g = gamed()
    beside = np.stack([np.tanh(g.std_delta_len), g.difficulty, np.zeros(len(g.preference))], 1)
    s = np.concatenate([np.full(len(beside), 0.1), np.ones(len(x))])
    (w,) = lc.fit(np.concatenate([beside, x]), np.concatenate([g.preference, y[known]]), s[:, None], 2.0)
    assert found.win_rate == pytest.approx(100 * np.mean(1 / (1 + np.exp(-(w[1] * difficulty + w[2])))))
    assert len(found.predicted) == 120
    assert len(found.influence) == 118
    assert found.influence.mean() == pytest.approx(found.win_rate)


def test_influence_is_what_more_of_a_row_changes() -> None:
    """Every row twenty times, one of them once more: the change of the rate, times the rows, is the row's influence."""
    y, delta, difficulty = rows(40)
    sd = float(delta.std(ddof=1))
    found = fitted(y, delta, difficulty, gamed())
    x = np.stack([np.tanh(delta / sd), difficulty, np.ones(len(y))], 1)
    g = gamed()
    beside = np.stack([np.tanh(g.std_delta_len), g.difficulty, np.zeros(len(g.preference))], 1)

    def rate(weight: Floats) -> float:
        s = np.concatenate([np.full(len(beside), 0.1), weight])
        (w,) = lc.fit(np.concatenate([beside, x]), np.concatenate([g.preference, y]), s[:, None], 2.0)
        return float(100 * np.average(1 / (1 + np.exp(-(w[1] * difficulty + w[2]))), weights=weight))

    for i in (0, 7, 23):
        up, down = np.ones(40), np.ones(40)
        up[i], down[i] = 1.01, 0.99
        # a bootstrap keeps the number of rows, so every row gives what the added weight takes
        change = np.array([rate(up * 40 / up.sum()) - rate(down * 40 / down.sum())]) / 0.02 * 40
        assert found.influence[i] - found.win_rate == pytest.approx(float(change[0]), rel=0.02, abs=0.05)


def test_the_first_order_bootstrap_has_the_spread_of_refitting() -> None:
    y, delta, difficulty = rows(300, seed=8)
    found = fitted(y, delta, difficulty, gamed())
    rng = np.random.default_rng(0)
    refitted = []
    for _ in range(150):
        drawn = rng.integers(0, 300, 300)
        refitted.append(fitted(y[drawn], delta[drawn], difficulty[drawn], gamed()).win_rate)
    assert found.influence.std() / math.sqrt(300) == pytest.approx(np.std(refitted), rel=0.2)
    assert found.standard_error < 0.8 * np.std(refitted)  # why the official one is not shown as an interval


@pytest.mark.parametrize(
    ("preference", "delta", "reason"),
    [
        ([0.2, math.nan, math.nan], [1, 2, 3], "1 rows have a preference"),
        ([math.nan] * 3, [1, 2, 3], "0 rows have a preference"),
        ([0.25] * 3, [1, 2, 3], "all preferences are 1.25"),
        ([0.2, 0.4, 0.1], [5, 5, 5], "same number of characters"),
        ([0.2, 0.4, 0.1], [1, 2, 3], "cannot be cross-validated in 5 folds"),
    ],
)
def test_what_cannot_be_fitted_has_a_reason(preference: list[float], delta: list[float], reason: str) -> None:
    found = lc.length_controlled(np.array(preference), np.array(delta, dtype=float), None, None)
    assert isinstance(found, Impossible)
    assert reason in found.reason


def test_separable_preferences_have_finite_weights() -> None:
    delta = np.linspace(-5, 5, 40)
    found = fitted((delta < 0).astype(float), delta, None, None, c=1e4)
    assert all(math.isfinite(w) for w in found.weights.values())
    assert 0 < found.win_rate < 100


def test_another_baseline_by_hand() -> None:
    one, other = {"difficulty": 1.0, "model": 0.5}, {"difficulty": 0.5, "model": 1.0}
    # σ(−0.5 + 0.5 d) at d = 0 and d = 2: σ(−0.5), σ(0.5): together 1
    assert lc.against(one, other, np.array([0.0, 2.0])) == pytest.approx(50)
    assert lc.against(one, one, np.array([0.3, -1.0])) == 50
    assert lc.against(one, other, np.array([0.7])) + lc.against(other, one, np.array([0.7])) == pytest.approx(100)

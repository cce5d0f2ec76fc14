"""Style control: values by hand, parity with a dense fit by scipy, laws, coverage of the intervals, data that cannot be used."""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from starling.errors import InputError
from starling.progress import Silent
from starling.ratings import style_fit
from starling.ratings.battles import STYLE_FEATURES, Battles, Named
from starling.ratings.bradley_terry import bradley_terry
from starling.ratings.intervals import sandwich
from starling.ratings.style import Ridge, StyleRatings, style_control
from starling.ratings.style_fit import Redrawn, derivatives, make_design, maximise

Array = NDArray[np.float64]
EFFECTS = np.array([0.4, -0.2, 0.1, 0.0])


def simulated(count: int, models: int = 5, *, seed: int, effects: Array = EFFECTS, spread: float = 0.8) -> tuple[Battles, Array]:
    """Battles with a known truth, and the strengths; a battle's score is the mean of two coins, so that many are ties whose
    expectation follows the model."""
    rng = np.random.default_rng(seed)
    strength_M = np.linspace(-spread, spread, models)
    a_N = rng.integers(0, models, count)
    b_N = (a_N + rng.integers(1, models, count)) % models
    counts_2NF = np.concatenate([rng.lognormal(5, 0.7, (2, count, 1)).round(), rng.poisson(2, (2, count, 3))], axis=2)
    x_NF = differences(*counts_2NF)
    x_NF /= np.sqrt((x_NF**2).mean(0))
    chance_N = 1 / (1 + np.exp(strength_M[b_N] - strength_M[a_N] - x_NF @ effects))
    score_N = (rng.random((2, count)) < chance_N).mean(0)
    battles = Battles(
        models=tuple("abcdefghijklmnop"[:models]),
        a_N=a_N.astype(np.int32),
        b_N=b_N.astype(np.int32),
        score_a_N=score_N.astype(np.float32),
        style_a_NF=counts_2NF[0].astype(np.float32),
        style_b_NF=counts_2NF[1].astype(np.float32),
    )
    return battles, strength_M


def differences(a_NF: Array, b_NF: Array) -> Array:
    return np.asarray((a_NF - b_NF) / (a_NF + b_NF + 1))


def dense(battles: Battles, ridge: Ridge = "none") -> tuple[Array, Array, Array]:
    """The design as a matrix [N, P] in natural units, scores and penalties: written down anew from the formulas."""
    count, models = len(battles), len(battles.models)
    assert battles.style_a_NF is not None
    assert battles.style_b_NF is not None
    x_NF = differences(battles.style_a_NF.astype(float), battles.style_b_NF.astype(float))
    x_NF -= 0 if ridge == "none" else x_NF.mean(0)
    x_NF /= np.sqrt((x_NF**2).mean(0))
    one_NM = np.eye(models)
    design_NP = np.hstack([one_NM[battles.a_N] - one_NM[battles.b_N], x_NF])
    on_strengths = 0.5 / log(10) ** 2 if ridge == "fastchat" else 0.0
    on_effects = {"none": 0.0, "fastchat": 0.5, "coefficients": float(count)}[ridge]
    penalty_P = np.array([on_strengths] * models + [on_effects] * x_NF.shape[1])
    return design_NP, battles.score_a_N.astype(float), penalty_P


def slope(theta_P: Array, design_NP: Array, score_N: Array, penalty_P: Array, weight_N: Any = 1.0) -> Array:
    """Gradient of the negative objective."""
    chance_N = 1 / (1 + np.exp(-design_NP @ theta_P))
    return np.asarray(design_NP.T @ (weight_N * (chance_N - score_N)) + penalty_P * theta_P)


def theta(found: StyleRatings) -> Array:
    return np.r_[found.strength_M, found.coefficient_F]


def close(found: StyleRatings, other: StyleRatings, within: float = 1e-8) -> None:
    """The same ratings, coefficients and intervals."""
    np.testing.assert_allclose(theta(found), theta(other), atol=within)
    np.testing.assert_allclose(found.uncertainty.covariance_MM, other.uncertainty.covariance_MM, atol=within)
    np.testing.assert_allclose(found.coefficient_interval_F2, other.coefficient_interval_F2, atol=within)
    np.testing.assert_allclose(found.without.strength_M, other.without.strength_M, atol=within)


def rows(battles: Battles, index_K: NDArray[np.int64]) -> Battles:
    """These battles, in this order, each as often as its number is there."""
    assert battles.style_a_NF is not None
    assert battles.style_b_NF is not None
    return Battles(
        models=battles.models,
        a_N=battles.a_N[index_K],
        b_N=battles.b_N[index_K],
        score_a_N=battles.score_a_N[index_K],
        style_a_NF=battles.style_a_NF[index_K],
        style_b_NF=battles.style_b_NF[index_K],
    )


def swapped(battles: Battles, turn_N: NDArray[np.bool_]) -> Battles:
    """The same battles; where True, told from the other side."""
    assert battles.style_a_NF is not None
    assert battles.style_b_NF is not None
    turn_N1 = turn_N[:, None]
    return replace(
        battles,
        a_N=np.where(turn_N, battles.b_N, battles.a_N),
        b_N=np.where(turn_N, battles.a_N, battles.b_N),
        score_a_N=np.where(turn_N, 1 - battles.score_a_N, battles.score_a_N),
        style_a_NF=np.where(turn_N1, battles.style_b_NF, battles.style_a_NF),
        style_b_NF=np.where(turn_N1, battles.style_a_NF, battles.style_b_NF),
    )


# ── the optimum ──────────────────────────────────────────────────────────────────────────────────────────────────────


def two_lengths(wins: tuple[int, int], of: tuple[int, int]) -> Battles:
    """Model a against b; in the first kind of battle a's answer is 3 tokens to 1, in the second both are 1 token long."""
    score = [1] * wins[0] + [0] * (of[0] - wins[0]) + [1] * wins[1] + [0] * (of[1] - wins[1])
    count = len(score)
    style_a, style_b = np.zeros((count, 4), np.float32), np.zeros((count, 4), np.float32)
    style_a[:, 0], style_b[:, 0] = [3] * of[0] + [1] * of[1], 1
    zeros = np.zeros(count, np.int32)
    return Battles(
        models=("a", "b"), a_N=zeros, b_N=zeros + 1, score_a_N=np.float32(score), style_a_NF=style_a, style_b_NF=style_b
    )


@pytest.mark.parametrize(("plus_one", "difference"), [(True, 2 / 5), (False, 2 / 4)])
def test_a_model_as_rich_as_its_data_meets_every_share(plus_one: bool, difference: float) -> None:
    """60 of 80 with the longer answer and 20 of 80 with an equal one: ratings by the second kind alone, the rest is length."""
    found = style_control(two_lengths((60, 20), (80, 80)), ["length"], plus_one=plus_one)
    assert found.strength_M[0] - found.strength_M[1] == pytest.approx(log(20 / 60))
    assert found.coefficient_F[0] / found.spread_F[0] * difference == pytest.approx(log(60 / 20) - log(20 / 60))
    assert found.spread_F[0] == pytest.approx(difference / np.sqrt(2))
    assert found.without.strength_M == pytest.approx([0, 0], abs=1e-9)
    assert found.rating_M[0] == pytest.approx(1000 - 200 * log(3) / log(10))
    assert found.coefficient_points_F[0] == pytest.approx(400 / log(10) * found.coefficient_F[0])
    assert (found.battles, found.style_unknown, found.mean_F[0]) == (160, 0, 0)


@pytest.mark.parametrize("ridge", ["none", "coefficients", "fastchat"])
def test_parity_with_a_dense_fit(ridge: Ridge) -> None:
    battles, _ = simulated(600, seed=1)
    design_NP, score_N, penalty_P = dense(battles, ridge)

    def value(theta_P: Array) -> float:
        logit_N = design_NP @ theta_P
        return float((np.logaddexp(0, logit_N) - score_N * logit_N).sum() + (penalty_P * theta_P**2).sum() / 2)

    start = np.zeros(design_NP.shape[1])
    peer = minimize(
        value, start, args=(), jac=lambda t: slope(t, design_NP, score_N, penalty_P), method="BFGS", options={"gtol": 1e-9}
    )
    found = style_control(battles, ridge=ridge)
    assert np.abs(peer.jac).max() < 1e-4
    np.testing.assert_allclose(theta(found), peer.x, atol=1e-6)
    assert np.abs(slope(theta(found), design_NP, score_N, penalty_P)).max() < 1e-8
    assert found.gradient < 1e-8
    assert found.strength_M.sum() == pytest.approx(0, abs=1e-9)


def test_the_effects_of_a_simulation_are_found() -> None:
    battles, strength_M = simulated(20_000, seed=2)
    found = style_control(battles)
    assert found.coefficient_F == pytest.approx(EFFECTS, abs=0.04)
    assert found.strength_M == pytest.approx(strength_M, abs=0.06)
    strong = style_control(battles, ridge="coefficients")
    assert (np.abs(strong.coefficient_F[:3]) < np.abs(found.coefficient_F[:3]) / 3).all()


def test_a_log_split_into_small_blocks_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    battles, _ = simulated(500, seed=3)
    whole = style_control(battles, rounds=5)
    monkeypatch.setattr(style_fit, "_BLOCK", 7)
    close(style_control(battles, rounds=5), whole)


def test_far_more_models_than_a_byte_counts() -> None:
    """Pairs of up to 256 models are sorted as 16-bit numbers, those of more as longer ones."""
    battles, _ = simulated(400, seed=4)
    named = Battles(
        models=tuple(f"idle {i}" for i in range(300)) + battles.models,
        a_N=battles.a_N + np.int32(300),
        b_N=battles.b_N + np.int32(300),
        score_a_N=battles.score_a_N,
    )
    x_NF = np.arange(800.0).reshape(400, 2)
    few, many = make_design(battles, x_NF), make_design(named, x_NF)
    assert (few.order_N == many.order_N).all()
    assert (few.low_C + 300 == many.low_C).all()
    assert (few.x_FN == many.x_FN).all()


def test_two_counts_of_zero_are_no_difference() -> None:
    """Without the 1, an answer without headers against one without: the battle weighs on the ratings as one of equal style."""
    battles = two_lengths((60, 20), (80, 80))
    assert battles.style_a_NF is not None
    assert battles.style_b_NF is not None
    style_a, style_b = battles.style_a_NF.copy(), battles.style_b_NF.copy()
    style_a[80:, 0], style_b[80:, 0] = 0, 0
    none = style_control(with_style(battles, style_a, style_b), ["length"], plus_one=False)
    close(none, style_control(battles, ["length"], plus_one=False))


def test_derivatives_by_the_formula() -> None:
    battles, _ = simulated(300, seed=23)
    design_NP, score_N, penalty_P = dense(battles)
    design = make_design(battles, design_NP[:, 5:])
    rng = np.random.default_rng(0)
    theta_P, weight_N = rng.normal(0, 0.5, 9), rng.integers(0, 4, 300).astype(float)
    totals = derivatives(design, theta_P, weight_N[design.order_N])
    chance_N = 1 / (1 + np.exp(-design_NP @ theta_P))
    expected_PP = (design_NP.T * (weight_N * chance_N * (1 - chance_N))) @ design_NP
    np.testing.assert_allclose(totals.vector(), -slope(theta_P, design_NP, score_N, penalty_P, weight_N), atol=1e-9)
    np.testing.assert_allclose(totals.matrix(), expected_PP, atol=1e-9)
    np.testing.assert_allclose(
        derivatives(design, theta_P, weight_N[design.order_N], "pairs").table(), expected_PP[:5, :5], atol=1e-9
    )


def test_the_maximum_is_reached_from_far_away() -> None:
    """Ratings 3,000 points apart and a coefficient of 8: plain Newton steps from there run off."""
    battles, _ = simulated(300, seed=24)
    design_NP, _, penalty_P = dense(battles)
    design = make_design(battles, design_NP[:, 5:])
    near = maximise(design, np.zeros(9), penalty_P)
    far = maximise(design, np.r_[9.0, 0, -9, 5, 20, 8, -8, 0, 3], penalty_P)
    assert near.settled
    assert far.settled
    np.testing.assert_allclose(far.theta_P, near.theta_P, atol=1e-9)
    assert far.theta_P[:5].sum() == pytest.approx(0, abs=1e-9)


def test_a_round_that_did_not_draw_a_model_or_links_between_groups_has_no_maximum_nearby() -> None:
    battles, _ = simulated(400, seed=25)
    design_NP, _, penalty_P = dense(battles)
    design = make_design(battles, design_NP[:, 5:])
    near = Redrawn(design, maximise(design, np.zeros(9), penalty_P).theta_P, penalty_P)
    a_N, b_N = battles.a_N[design.order_N], battles.b_N[design.order_N]
    assert near.maximum(np.ones(400)) is not None
    assert near.maximum(((a_N != 2) & (b_N != 2)).astype(float)) is None
    assert near.maximum(((a_N < 2) == (b_N < 2)).astype(float)) is None


def test_a_table_bends_in_every_direction_only_if_all_models_met() -> None:
    chain = np.array([[1.0, -1, 0], [-1, 2, -1], [0, -1, 1]])
    apart = np.array([[1.0, -1, 0], [-1, 1, 0], [0, 0, 0]])
    assert style_fit._definite(style_fit.filled(chain, np.zeros(3), 3))
    assert not style_fit._definite(style_fit.filled(apart, np.zeros(3), 3))
    assert style_fit._definite(style_fit.filled(apart, np.ones(3), 3))


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_telling_any_battles_from_the_other_side_changes_nothing() -> None:
    battles, _ = simulated(500, seed=5)
    turn_N = np.random.default_rng(0).random(500) < 0.4
    close(style_control(swapped(battles, turn_N)), style_control(battles))


def test_fastchats_objective_depends_on_the_side_but_not_when_all_are_exchanged() -> None:
    battles, _ = simulated(500, seed=6)
    found = style_control(battles, ridge="fastchat")
    close(style_control(swapped(battles, np.ones(500, dtype=bool)), ridge="fastchat"), found)
    part = style_control(swapped(battles, np.arange(500) < 200), ridge="fastchat")
    assert np.abs(theta(part) - theta(found)).max() > 1e-4


def test_the_order_of_rows_does_not_matter() -> None:
    battles, _ = simulated(500, seed=7)
    shuffled = rows(battles, np.random.default_rng(0).permutation(500))
    close(style_control(shuffled), style_control(battles))


def test_style_that_is_unrelated_to_the_votes_leaves_bradley_terry_and_its_sandwich() -> None:
    """Each battle also with its two styles exchanged: no effect can be seen, exactly."""
    battles, _ = simulated(300, seed=8)
    assert battles.style_a_NF is not None
    assert battles.style_b_NF is not None
    twice = rows(battles, np.tile(np.arange(300), 2))
    exchanged = replace(
        twice,
        style_a_NF=np.concatenate([battles.style_a_NF, battles.style_b_NF]),
        style_b_NF=np.concatenate([battles.style_b_NF, battles.style_a_NF]),
    )
    found = style_control(exchanged)
    plain = bradley_terry(twice)
    np.testing.assert_allclose(found.coefficient_F, 0, atol=1e-9)
    np.testing.assert_allclose(found.strength_M, plain.strength_M, atol=1e-9)
    np.testing.assert_allclose(found.without.strength_M, plain.strength_M, atol=1e-12)
    np.testing.assert_allclose(found.uncertainty.covariance_MM, sandwich(plain, twice).covariance_MM, atol=1e-9)
    np.testing.assert_allclose(found.without_uncertainty.covariance_MM, sandwich(plain, twice).covariance_MM, atol=1e-12)


def test_features_may_be_some_in_any_order() -> None:
    battles, _ = simulated(400, seed=9)
    one, other = style_control(battles, ["bold", "length"]), style_control(battles, ["length", "bold"])
    assert one.coefficient_F == pytest.approx(other.coefficient_F[::-1])
    assert one.strength_M == pytest.approx(other.strength_M)
    assert one.features == ("bold", "length")


# ── intervals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sandwich_by_the_formula() -> None:
    battles, _ = simulated(400, seed=10)
    found = style_control(battles)
    design_NP, score_N, _ = dense(battles)
    chance_N = 1 / (1 + np.exp(-design_NP @ theta(found)))
    inverse = np.linalg.pinv((design_NP.T * (chance_N * (1 - chance_N))) @ design_NP)
    scores_NP = (score_N - chance_N)[:, None] * design_NP
    covariance = inverse @ scores_NP.T @ scores_NP @ inverse * 400 / 399
    np.testing.assert_allclose(found.uncertainty.covariance_MM, covariance[:5, :5], rtol=1e-6, atol=1e-10)
    half_F = 1.959963984540054 * np.sqrt(np.diag(covariance)[5:])
    np.testing.assert_allclose(found.coefficient_interval_F2[:, 1] - found.coefficient_F, half_F, rtol=1e-6)
    np.testing.assert_allclose(found.coefficient_F - found.coefficient_interval_F2[:, 0], half_F, rtol=1e-6)
    low_M, high_M = found.uncertainty.bounds()
    np.testing.assert_allclose(found.rating_interval_M2[:, 0], 1000 + 400 / log(10) * low_M)
    np.testing.assert_allclose(found.rating_interval_M2[:, 1], 1000 + 400 / log(10) * high_M)


@pytest.mark.parametrize("rounds", [0, 150])
@pytest.mark.parametrize("column", ["prompt", "judge"])
def test_battles_repeated_inside_their_cluster_say_nothing_new(rounds: int, column: str) -> None:
    battles, _ = simulated(300, seed=11)
    index = np.random.default_rng(0).permutation(np.tile(np.arange(300), 3))
    clusters = Named(names=tuple(map(str, range(900))), codes_N=(899 - index).astype(np.int32))
    tripled = replace(rows(battles, index), **{column: clusters})
    once = replace(battles, **{column: Named(names=clusters.names, codes_N=(899 - np.arange(300)).astype(np.int32))})
    single, clustered = (
        style_control(b, ["length", "lists"], cluster=column, rounds=rounds, seed=4)  # type: ignore[arg-type]
        for b in (once, tripled)
    )
    close(clustered, single, within=1e-5 if rounds else 1e-8)
    np.testing.assert_allclose(clustered.without_uncertainty.covariance_MM, single.without_uncertainty.covariance_MM, atol=1e-8)
    assert clustered.uncertainty.clusters == 300
    naive = style_control(tripled, ["length", "lists"], rounds=rounds)
    ratio = naive.uncertainty.sd_M() / clustered.uncertainty.sd_M()
    assert ratio.mean() == pytest.approx(1 / np.sqrt(3), rel=0.15 if rounds else 0.02)


def test_clusters_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    battles, _ = simulated(300, seed=12)
    judged = replace(battles, judge=Named(names=tuple("0123456"), codes_N=(np.arange(300) % 7).astype(np.int32)))
    whole = style_control(judged, cluster="judge")
    monkeypatch.setattr("starling.ratings.style_intervals._NUMBERS", 20)
    close(style_control(judged, cluster="judge"), whole)


@pytest.mark.parametrize("ridge", ["none", "fastchat"])
def test_every_bootstrap_round_is_at_the_optimum_of_its_battles(ridge: Ridge) -> None:
    battles, _ = simulated(800, seed=13)
    x_NF = np.zeros((800, 1))
    design_NP, score_N, penalty_P = dense(battles, ridge)
    found = style_control(battles, ridge=ridge, rounds=30, seed=5)
    draws_RM = found.uncertainty.draws_RM
    assert draws_RM is not None
    order_N, rng = make_design(battles, x_NF).order_N, np.random.Generator(np.random.PCG64(5))
    for strength_M in draws_RM:
        weight_N = np.empty(800)
        weight_N[order_N] = np.bincount(rng.integers(0, 800, 800), minlength=800)
        # Coefficients are not told per round; with the strengths at the optimum they follow.
        best = minimize(
            lambda beta, s=strength_M, w=weight_N: float(
                (w * (np.logaddexp(0, design_NP @ np.r_[s, beta]) - score_N * (design_NP @ np.r_[s, beta]))).sum()
                + (penalty_P * np.r_[s, beta] ** 2).sum() / 2
            ),
            found.coefficient_F,
            jac=lambda beta, s=strength_M, w=weight_N: slope(np.r_[s, beta], design_NP, score_N, penalty_P, w)[5:],
            options={"gtol": 1e-9},
        )
        gradient_P = slope(np.r_[strength_M, best.x], design_NP, score_N, penalty_P, weight_N)
        assert np.abs(gradient_P).max() < 1e-3  # of 800 battles; 1e-3 moves a rating by 1e-3 points
    assert found.uncertainty.without_maximum == 0
    assert (found.uncertainty.method, found.uncertainty.clusters) == ("bootstrap", 800)


def test_bootstrap_and_sandwich_agree_on_enough_battles() -> None:
    battles, _ = simulated(3000, seed=14)
    drawn, direct = style_control(battles, rounds=300), style_control(battles)
    assert drawn.uncertainty.sd_M() == pytest.approx(direct.uncertainty.sd_M(), rel=0.15)
    widths = [np.diff(r.coefficient_interval_F2, axis=1) for r in (drawn, direct)]
    assert widths[0] == pytest.approx(widths[1], rel=0.2)
    assert theta(drawn) == pytest.approx(theta(direct))
    again, other = style_control(battles, rounds=20, seed=1), style_control(battles, rounds=20, seed=2)
    close(style_control(battles, rounds=20, seed=1), again, within=0)
    assert not np.allclose(again.coefficient_interval_F2, other.coefficient_interval_F2)


def test_a_round_far_from_the_whole_is_solved_with_damped_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    battles, _ = simulated(400, seed=26)
    usual = style_control(battles, rounds=10)
    monkeypatch.setattr(style_fit, "_ROUND_STEPS", 1)
    damped = style_control(battles, rounds=10)
    close(damped, usual, within=1e-5)
    assert damped.uncertainty.without_maximum == 0


def test_rounds_are_told_as_they_are_done() -> None:
    heard: list[Any] = []

    class Heard(Silent):
        def start(self, what: str, total: int) -> None:
            heard.append((what, total))

        def advance(self, n: int = 1, note: str = "") -> None:
            heard.append(n)

        def finish(self) -> None:
            heard.append("end")

    battles, _ = simulated(100, seed=27)
    style_control(battles, ["length"], rounds=3, progress=Heard())
    assert heard == [("redrawn battles", 3), 1, 1, 1, "end"]


def test_rounds_without_a_maximum_are_fitted_with_a_ridge_and_counted() -> None:
    """Model a won one of its eight battles: one round in three does not draw it."""
    battles, _ = simulated(200, models=3, seed=15)
    rare = (battles.a_N == 0) | (battles.b_N == 0)
    kept = rows(battles, np.concatenate([np.flatnonzero(~rare), np.flatnonzero(rare)[:8]]))
    ahead = np.where(kept.a_N == 0, 0.0, np.where(kept.b_N == 0, 1.0, kept.score_a_N)).astype(np.float32)
    last = len(ahead) - 1
    ahead[last] = 1.0 - ahead[last]
    found = style_control(replace(kept, score_a_N=ahead), ["length"], rounds=60)
    assert 10 <= found.uncertainty.without_maximum <= 35
    assert np.isfinite(found.rating_interval_M2).all()
    assert found.rating_interval_M2[0, 0] < found.rating_M[0] - 200


def test_intervals_cover_the_truth() -> None:
    """200 simulated logs with ties: 9 parameters each, of which 95 % lie in their intervals (± 2: the logs' own noise is 0.8)."""
    inside = []
    for seed in range(200):
        battles, strength_M = simulated(700, seed=1000 + seed)
        found = style_control(battles)
        low_M, high_M = found.uncertainty.bounds()
        inside += list((low_M <= strength_M) & (strength_M <= high_M))
        inside += list((found.coefficient_interval_F2[:, 0] <= EFFECTS) & (found.coefficient_interval_F2[:, 1] >= EFFECTS))
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


# ── data that cannot be used ─────────────────────────────────────────────────────────────────────────────────────────


def with_style(battles: Battles, a_NF: Any, b_NF: Any) -> Battles:
    return replace(battles, style_a_NF=np.float32(a_NF), style_b_NF=np.float32(b_NF))


def test_battles_without_counts_are_left_out_and_counted() -> None:
    battles, _ = simulated(400, seed=16)
    assert battles.style_a_NF is not None
    assert battles.style_b_NF is not None
    style_a, style_b = battles.style_a_NF.copy(), battles.style_b_NF.copy()
    style_a[:30, 1], style_b[20:50, 0] = np.nan, np.nan
    style_a[60:90, 3] = np.nan
    found = style_control(with_style(battles, style_a, style_b), ["length", "headers"])
    assert (found.style_unknown, found.battles) == (50, 350)
    close(found, style_control(rows(battles, np.arange(50, 400)), ["length", "headers"]))


def test_votes_without_style_are_refused() -> None:
    battles, _ = simulated(100, seed=17)
    with pytest.raises(InputError, match=r"do not tell the style of the answers.*conv_metadata"):
        style_control(replace(battles, style_a_NF=None, style_b_NF=None))
    nothing = np.full((100, 4), np.nan)
    with pytest.raises(InputError, match="None of the 100 votes tells the style"):
        style_control(with_style(battles, nothing, nothing))


def test_counts_below_zero_are_refused() -> None:
    battles, _ = simulated(100, seed=17)
    assert battles.style_b_NF is not None
    style_b = battles.style_b_NF.copy()
    style_b[[3, 70], 2] = -1
    with pytest.raises(InputError, match=r"lists is below 0 in 2 battles.*battle 4 of 100"):
        style_control(replace(battles, style_b_NF=style_b))
    style_control(replace(battles, style_b_NF=style_b), ["length"])


@pytest.mark.parametrize("ridge", ["none", "fastchat"])
@pytest.mark.parametrize("a_count", [2, 7])
def test_a_feature_that_never_differs_is_named(ridge: Ridge, a_count: int) -> None:
    battles, _ = simulated(100, seed=18)
    assert battles.style_a_NF is not None
    assert battles.style_b_NF is not None
    style_a, style_b = battles.style_a_NF.copy(), battles.style_b_NF.copy()
    style_a[:, 2], style_b[:, 2] = a_count, 2
    with pytest.raises(InputError, match=r"lists differs equally in all battles.*leave lists out"):
        style_control(with_style(battles, style_a, style_b), ridge=ridge)


def test_a_feature_that_others_tell_is_named_unless_there_is_a_ridge() -> None:
    battles, _ = simulated(200, seed=19)
    assert battles.style_a_NF is not None
    assert battles.style_b_NF is not None
    style_a, style_b = battles.style_a_NF.copy(), battles.style_b_NF.copy()
    style_a[:, 3], style_b[:, 3] = style_a[:, 1], style_b[:, 1]
    same = with_style(battles, style_a, style_b)
    with pytest.raises(InputError, match=r"effect of bold cannot be told.*and by length, headers, lists"):
        style_control(same)
    found = style_control(same, ridge="fastchat")
    assert found.coefficient_F[1] == pytest.approx(found.coefficient_F[3])


def test_a_feature_that_the_models_tell_is_named() -> None:
    """Two models; the second always writes three times as much, so that length and model are one."""
    battles = two_lengths((30, 0), (80, 0))
    assert battles.style_a_NF is not None
    assert battles.style_b_NF is not None
    half = swapped(battles, np.arange(80) % 2 == 0)
    with pytest.raises(InputError, match="effect of length cannot be told: in these battles it is given by which models meet"):
        style_control(half, ["length"])


def test_votes_that_style_predicts_without_error_have_no_maximum() -> None:
    battles = two_lengths((40, 20), (40, 60))  # whenever a's answer is longer it wins
    with pytest.raises(InputError, match=r"predict the votes without error.*ask for a ridge"):
        style_control(battles, ["length"])
    assert np.isfinite(style_control(battles, ["length"], ridge="fastchat").coefficient_F).all()


def test_models_without_a_common_scale_are_refused() -> None:
    battles, _ = simulated(100, models=2, seed=20)
    apart = replace(
        battles,
        models=("a", "b", "c", "d"),
        a_N=np.r_[battles.a_N[:50], battles.a_N[50:] + 2].astype(np.int32),
        b_N=np.r_[battles.b_N[:50], battles.b_N[50:] + 2].astype(np.int32),
    )
    with pytest.raises(InputError, match="cannot be put on one scale"):
        style_control(apart)


@pytest.mark.parametrize("features", [["tokens"], [], ["length", "length"]])
def test_unknown_features_are_refused(features: list[str]) -> None:
    battles, _ = simulated(50, seed=21)
    with pytest.raises(ValueError, match=f"features are some of {', '.join(STYLE_FEATURES)}"):
        style_control(battles, features)


def test_wrong_use_is_refused_before_the_work() -> None:
    battles, _ = simulated(50, seed=22)
    with pytest.raises(ValueError, match="no such ridge"):
        style_control(battles, ridge="lasso")  # type: ignore[arg-type]
    for rounds in (1, -5):
        with pytest.raises(ValueError, match="number of rounds"):
            style_control(battles, rounds=rounds)
    with pytest.raises(ValueError, match="do not say their prompt"):
        style_control(battles, cluster="prompt")

"""Sandwich and bootstrap: by hand, against plain loops, laws of clusters, and coverage on simulated votes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from starling.ratings import intervals
from starling.ratings.battles import Battles, Named, of_scores
from starling.ratings.bradley_terry import bradley_terry, components, strengths
from starling.ratings.intervals import Z95, bootstrap, cells, connected, members, sandwich


def some_battles(seed: int, models: int = 5, count: int = 300, clusters: int = 30) -> Battles:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, models, count)
    b = (a + rng.integers(1, models, count)) % models
    column = Named(
        names=tuple(f"c{i}" for i in range(clusters + 2)), codes_N=rng.integers(1, clusters + 1, count).astype(np.int32)
    )
    return Battles(
        models=tuple(f"m{i}" for i in range(models)),
        a_N=a.astype(np.int32),
        b_N=b.astype(np.int32),
        score_a_N=rng.choice([0, 0.5, 1, 1, 0.25], count).astype(np.float32),
        prompt=column,
        judge=column,
    )


# ── sandwich ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_models_by_hand() -> None:
    # Three wins to one: p = ¾, curvature 4 · 3/16 of the difference, Σ (S − p)² = 3/16 · 4; factor 4/3 for four battles.
    battles = of_scores([("x", "y", 1.0)] * 3 + [("y", "x", 1.0)])
    found = sandwich(bradley_terry(battles), battles)
    variance_of_difference = (4 / 3) * (3 / 4) / (3 / 4) ** 2
    assert found.sd_M(1)[0] ** 2 == pytest.approx(variance_of_difference)
    assert found.sd_M() == pytest.approx([np.sqrt(variance_of_difference) / 2] * 2)
    low_M, high_M = found.bounds(1)
    assert (low_M[1], high_M[1]) == pytest.approx([found.center_M[1]] * 2)
    assert high_M[0] - low_M[0] == pytest.approx(2 * Z95 * np.sqrt(variance_of_difference))


def test_ties_are_no_coins() -> None:
    """With ties only, nothing varies; the textbook's inverse curvature would say otherwise."""
    battles = of_scores([("x", "y", 0.5)] * 10)
    assert sandwich(bradley_terry(battles), battles).sd_M() == pytest.approx([0, 0], abs=1e-9)


@pytest.mark.parametrize("cluster", [None, "prompt"])
@pytest.mark.parametrize("ridge", [0.0, 2.0])
def test_the_covariance_is_that_of_plain_loops(cluster: intervals.Cluster | None, ridge: float) -> None:
    battles = some_battles(0)
    fit = bradley_terry(battles, ridge=ridge)
    models = len(fit.models)
    curvature, slopes = ridge * np.eye(models), {}
    for n in range(len(battles)):
        x = np.zeros(models)
        x[battles.a_N[n]], x[battles.b_N[n]] = 1, -1
        p = 1 / (1 + np.exp(-x @ fit.strength_M))
        curvature += p * (1 - p) * np.outer(x, x)
        key = n if cluster is None else battles.prompt.codes_N[n]  # type: ignore[union-attr]
        slopes[key] = slopes.get(key, np.zeros(models)) + (battles.score_a_N[n] - p) * x
    spread = sum(np.outer(s, s) for s in slopes.values()) * len(slopes) / (len(slopes) - 1)
    centred = np.eye(models) - 1 / models
    inverse = np.linalg.pinv(centred @ curvature @ centred, hermitian=True)
    found = sandwich(fit, battles, cluster=cluster)
    assert found.covariance_MM @ centred == pytest.approx(inverse @ spread @ inverse, abs=1e-9)
    assert found.clusters == len(slopes)


def test_blocks_of_clusters_do_not_change_the_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    battles = some_battles(1)
    fit = bradley_terry(battles)
    expected = sandwich(fit, battles, cluster="judge").covariance_MM
    for numbers in (1, 40, 200):
        monkeypatch.setattr(intervals, "_NUMBERS", numbers)
        assert sandwich(fit, battles, cluster="judge").covariance_MM == pytest.approx(expected, abs=1e-12)


def test_a_cluster_per_battle_is_no_cluster_and_copies_bring_no_certainty() -> None:
    battles = some_battles(2)
    own = Named(names=tuple(map(str, range(len(battles)))), codes_N=np.arange(len(battles), dtype=np.int32))
    alone = replace(battles, prompt=own)
    fit = bradley_terry(battles)
    plain = sandwich(fit, battles)
    assert sandwich(fit, alone, cluster="prompt").covariance_MM == pytest.approx(plain.covariance_MM, abs=1e-7)
    twice = np.repeat(np.arange(len(battles)), 2)
    copies = Battles(
        models=battles.models,
        a_N=battles.a_N[twice],
        b_N=battles.b_N[twice],
        score_a_N=battles.score_a_N[twice],
        prompt=Named(names=own.names, codes_N=own.codes_N[twice]),
    )
    doubled = bradley_terry(copies)
    assert doubled.strength_M == pytest.approx(fit.strength_M, abs=1e-8)
    assert sandwich(doubled, copies, cluster="prompt").sd_M() == pytest.approx(plain.sd_M(), abs=1e-7)
    assert sandwich(doubled, copies).sd_M() == pytest.approx(plain.sd_M() / np.sqrt(2), rel=0.01)


def test_a_column_that_is_not_there() -> None:
    battles = of_scores([("x", "y", 1.0), ("y", "x", 1.0)])
    for estimate in (sandwich, bootstrap):
        with pytest.raises(ValueError, match="do not say their judge"):
            estimate(bradley_terry(battles), battles, cluster="judge")
    number_N, clusters = members(some_battles(0), "prompt")
    assert (number_N.min(), number_N.max() + 1) == (0, clusters) == (0, 30)


# ── bootstrap ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cells_are_the_distinct_battles() -> None:
    battles = of_scores([("x", "y", 1.0), ("y", "x", 0.0), ("x", "y", 0.5), ("z", "y", 1.0)])
    pair_K, score_K, count_K = cells(battles)
    assert [*zip(pair_K.tolist(), score_K.tolist(), count_K.tolist(), strict=True)] == [(1, 0.5, 1), (1, 1, 2), (5, 0, 1)]
    soft = cells(of_scores([("x", "y", 0.25), ("y", "x", 0.75), ("x", "y", 1.0)]))
    assert [column.tolist() for column in soft] == [[1, 1], [0.25, 1], [2, 1]]


def test_the_bootstrap_agrees_with_the_sandwich_and_is_the_same_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    battles = some_battles(3, count=3000)
    fit = bradley_terry(battles)
    first = bootstrap(fit, battles, rounds=800, seed=1)
    assert first.sd_M() == pytest.approx(sandwich(fit, battles).sd_M(), rel=0.1)
    assert first.draws_RM is not None
    assert first.draws_RM.mean(0) == pytest.approx(fit.strength_M, abs=0.02)
    assert (bootstrap(fit, battles, rounds=800, seed=1).draws_RM == first.draws_RM).all()
    assert (bootstrap(fit, battles, rounds=800, seed=2).draws_RM != first.draws_RM).any()
    # The middle 95 % of the draws: of 800, places 20.025 and 780.975.
    ordered = np.sort(first.draws_RM, axis=0)
    assert first.bounds()[0] == pytest.approx(ordered[19] + 0.025 * (ordered[20] - ordered[19]))
    assert first.bounds()[1] == pytest.approx(ordered[779] + 0.975 * (ordered[780] - ordered[779]))
    low_M, high_M = first.bounds(2)
    assert (low_M[2], high_M[2]) == pytest.approx([fit.strength_M[2]] * 2)
    assert first.without_maximum == 0
    with pytest.raises(ValueError, match="at least two"):
        bootstrap(fit, battles, rounds=1)


def test_the_bootstrap_of_clusters_agrees_with_their_sandwich() -> None:
    battles = some_battles(4, count=4000, clusters=400)
    battles = replace(battles, score_a_N=np.where(battles.prompt.codes_N % 2 == 0, 1, 0.25).astype(np.float32))  # type: ignore[union-attr]
    fit = bradley_terry(battles)
    expected = sandwich(fit, battles, cluster="prompt").sd_M()
    found = bootstrap(fit, battles, rounds=800, cluster="prompt")
    assert found.sd_M() == pytest.approx(expected, rel=0.1)
    assert found.clusters == 400


def test_rounds_without_a_maximum_are_fitted_far_out_and_counted() -> None:
    battles = of_scores([("x", "y", 1.0)] * 6 + [("y", "x", 1.0)])  # one loss: missing in a third of the rounds
    fit = bradley_terry(battles)
    found = bootstrap(fit, battles, rounds=1000, seed=0)
    assert found.without_maximum == pytest.approx(1000 * (6 / 7) ** 7, rel=0.15)
    assert found.draws_RM is not None
    assert np.isfinite(found.draws_RM).all()
    assert found.bounds()[1][0] > fit.strength_M[0] + 1


@pytest.mark.parametrize("seed", range(3))
def test_connected_is_that_there_is_one_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tables = (rng.random((60, 5, 5)) < 0.35) * 1.0
    for won_MM in tables:
        np.fill_diagonal(won_MM, 0)
    expected = [len(components(won_MM)) == 1 for won_MM in tables]
    assert connected(tables).tolist() == expected
    assert 5 < sum(expected) < 55


# ── coverage ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SIMULATIONS = 500
TRUTH = np.array([0.9, 0.4, 0.0, -0.5, -0.8])
PAIRS = np.array([(i, j) for i in range(5) for j in range(5) if i != j], dtype=np.int32)
TIES = 0.3


def simulated(rng: np.random.Generator, prompts: int, votes: int, spread: float) -> Battles:
    """Each prompt has its own strengths around TRUTH and one pair of models, on which some people vote."""
    own = TRUTH + spread * rng.standard_normal((prompts, 5))
    pair = PAIRS[rng.integers(0, len(PAIRS), prompts)]
    which = np.repeat(np.arange(prompts), votes)
    a, b = pair[which].T
    wins = rng.random(len(which)) < 1 / (1 + np.exp(own[which, b] - own[which, a]))
    scores = np.where(rng.random(len(which)) < TIES, 0.5, wins)
    prompt = Named(names=tuple(map(str, range(prompts))), codes_N=which.astype(np.int32))
    return Battles(models=("A", "B", "C", "D", "E"), a_N=a, b_N=b, score_a_N=scores.astype(np.float32), prompt=prompt)


def what_is_estimated(spread: float) -> np.ndarray:
    """The strengths of endlessly many votes: with ties and prompts of their own they are not TRUTH, but its best description."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    margin = TRUTH[:, None, None] - TRUTH[None, :, None] + spread * np.sqrt(2) * nodes
    chance = (weights / weights.sum() / (1 + np.exp(-margin))).sum(2)
    return strengths(TIES / 2 + (1 - TIES) * chance)


def covered(
    estimate: str, *, prompts: int, votes: int, spread: float, cluster: intervals.Cluster | None, reference: int | None = None
) -> float:
    truth, rng, inside = what_is_estimated(spread), np.random.default_rng(7), []
    for _ in range(SIMULATIONS):
        battles = simulated(rng, prompts, votes, spread)
        fit = bradley_terry(battles)
        if estimate == "sandwich":
            found = sandwich(fit, battles, cluster=cluster)
        else:
            found = bootstrap(fit, battles, rounds=200, seed=int(rng.integers(2**31)), cluster=cluster)
        low_M, high_M = found.bounds(reference)
        shift = 0.0 if reference is None else truth[reference] - fit.strength_M[reference]
        inside.append(np.delete((low_M + shift <= truth) & (truth <= high_M + shift), [] if reference is None else [reference]))
    return float(np.mean(inside))


@pytest.mark.parametrize("estimate", ["sandwich", "bootstrap"])
@pytest.mark.parametrize("reference", [None, 2], ids=["mean", "anchor"])
def test_intervals_of_independent_votes_cover_the_truth(estimate: str, reference: int | None) -> None:
    assert covered(estimate, prompts=800, votes=1, spread=0.0, cluster=None, reference=reference) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("estimate", ["sandwich", "bootstrap"])
def test_intervals_of_votes_that_share_prompts_cover_the_truth(estimate: str) -> None:
    assert covered(estimate, prompts=250, votes=6, spread=0.7, cluster="prompt") == pytest.approx(0.95, abs=0.02)


def test_votes_that_share_prompts_are_not_independent() -> None:
    assert covered("sandwich", prompts=250, votes=6, spread=0.7, cluster=None) < 0.9


def test_the_inverse_of_the_curvature_is_too_wide_with_ties() -> None:
    battles = simulated(np.random.default_rng(0), 20_000, 1, 0.0)
    fit = bradley_terry(battles)
    naive = np.sqrt(np.diag(np.linalg.pinv(intervals.curvature(fit.strength_M, fit.pairs))))
    assert (naive > 1.15 * sandwich(fit, battles).sd_M()).all()

"""Bradley–Terry strengths: by hand, against independent implementations, laws, and what has no maximum."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from starling.errors import InputError
from starling.ratings import bradley_terry as module
from starling.ratings.battles import Battles, of_scores
from starling.ratings.bradley_terry import ELO, Scale, bradley_terry, check_connected, components, newton, pair_sums, strengths
from starling.ratings.reading import read_votes


def test_two_models_by_hand() -> None:
    # 3 wins to 1: odds 3, so the strengths differ by ln 3; a tie counts half to each.
    assert strengths([[0, 3], [1, 0]]) == pytest.approx(np.array([np.log(3) / 2, -np.log(3) / 2]))
    assert strengths([[0, 2.5], [0.5, 0]])[0] == pytest.approx(np.log(5) / 2)
    assert strengths([[7, 3], [1, 9]])[0] == pytest.approx(np.log(3) / 2)  # against itself: says nothing
    assert strengths([[0.0]]) == pytest.approx(np.zeros(1))


def test_strengths_are_recovered_from_expected_wins() -> None:
    truth = np.array([1.2, 0.3, -0.5, -1.0])
    wins = 100 / (1 + np.exp(truth[None, :] - truth[:, None]))
    assert strengths(wins) == pytest.approx(truth, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_strengths_agree_with_a_general_optimiser(seed: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(seed)
    wins = rng.integers(0, 6, size=(6, 6)) + 0.5 * rng.integers(0, 2, size=(6, 6))
    np.fill_diagonal(wins, 0)

    def loss(strength: np.ndarray) -> float:
        return float((wins * np.log1p(np.exp(strength[None, :] - strength[:, None]))).sum())

    expected = optimize.minimize(loss, np.zeros(6), method="BFGS", options={"gtol": 1e-9}).x
    assert strengths(wins) == pytest.approx(expected - expected.mean(), abs=1e-5)


def test_lopsided_tables_still_converge() -> None:
    wins = np.array([[0, 1e6, 3.0], [1e-3, 0, 1e6], [0, 1e-3, 0]])
    strength = strengths(wins)
    chance = 1 / (1 + np.exp(strength[None, :] - strength[:, None]))
    assert ((wins + wins.T) * chance).sum(1) == pytest.approx(wins.sum(1), rel=1e-6)


@pytest.mark.parametrize(
    ("wins", "loser"),
    [
        ([[0, 3], [0, 0]], r"none of \(b\) ever beat one of \(a\)"),
        ([[0, 0], [3, 0]], r"none of \(a\) ever beat one of \(b\)"),
        ([[0, 1, 0], [1, 0, 0], [0, 0, 0]], r"2 groups never met: \(a, b\), \(c\)"),
        ([[0, 1, 1], [0, 0, 1], [0, 1, 0]], r"none of \(b, c\) ever beat one of \(a\)"),
        ([[0, 0, 1], [1, 0, 1], [0, 0, 0]], r"none of a later group ever beat one of an earlier: \(b\), \(a\), \(c\)"),
    ],
    ids=["never lost", "never won", "never met", "two against one", "a ladder"],
)
def test_groups_that_cannot_be_compared_are_named(wins: list[list[int]], loser: str) -> None:
    with pytest.raises(InputError, match=loser):
        strengths(wins, ["a", "b", "c"][: len(wins)])


@pytest.mark.parametrize("wins", [[], [1, 2], [[0, 1, 2], [1, 0, 2]], [[0, -1], [1, 0]], [[0, float("nan")], [1, 0]]])
def test_tables_that_are_none(wins: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="square"):
        strengths(wins)


# ── battles into a table ─────────────────────────────────────────────────────────────────────────────────────────────


def test_sums_of_pairs_by_hand() -> None:
    pairs = pair_sums(of_scores([("x", "y", 1.0), ("y", "x", 0.0), ("y", "x", 0.5), ("x", "z", 0.25)]))
    assert pairs.won_MM.tolist() == [[0, 2.5, 0.25], [0.5, 0, 0], [0.75, 0, 0]]
    assert pairs.squared_MM.tolist() == [[0, 2.25, 0.0625], [0.25, 0, 0], [0.5625, 0, 0]]
    assert pairs.battles_MM.tolist() == [[0, 3, 1], [3, 0, 0], [1, 0, 0]]
    assert pairs.battles == 4


def test_two_models_with_a_tie_and_a_soft_verdict() -> None:
    # x has 1 + ½ + ¾ of three battles: odds 3, in points 400 · log10 3 between them, around 1000.
    fit = bradley_terry(of_scores([("x", "y", 1.0), ("y", "x", 0.5), ("x", "y", 0.75)]))
    assert fit.models == ("x", "y")
    assert fit.rating_M == pytest.approx([1000 + 200 * np.log10(3), 1000 - 200 * np.log10(3)])
    assert Scale(points=100, base=np.e, initial=0).per_unit == pytest.approx(100)


def some_battles(seed: int, models: int = 7, count: int = 400) -> Battles:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, models, count)
    b = (a + rng.integers(1, models, count)) % models
    return Battles(
        models=tuple(f"m{i}" for i in range(models)),
        a_N=a.astype(np.int32),
        b_N=b.astype(np.int32),
        score_a_N=rng.choice([0, 0.5, 1, 0.3], count).astype(np.float32),
    )


def test_which_side_a_model_was_on_and_the_order_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    battles = some_battles(1)
    turned = Battles(models=battles.models, a_N=battles.b_N, b_N=battles.a_N, score_a_N=1 - battles.score_a_N)
    order = np.random.default_rng(0).permutation(len(battles))
    shuffled = Battles(models=battles.models, a_N=battles.a_N[order], b_N=battles.b_N[order], score_a_N=battles.score_a_N[order])
    expected = bradley_terry(battles).strength_M
    assert expected.sum() == pytest.approx(0, abs=1e-12)
    monkeypatch.setattr(module, "_CHUNK", 37)  # and in pieces
    for same in (battles, turned, shuffled):
        assert bradley_terry(same).strength_M == pytest.approx(expected, abs=1e-6)  # 1 − 0.3 is not exact in 32 bits


def test_a_ridge_solves_its_own_equation_and_gives_ratings_where_there_is_no_maximum() -> None:
    battles = of_scores([("x", "y", 1.0)] * 5 + [("p", "q", 1.0), ("p", "q", 0.5)])
    with pytest.raises(InputError, match=r"2 groups never met: \(x, y\), \(p, q\)"):
        bradley_terry(battles)
    fit = bradley_terry(battles, ridge=0.1)
    chance_MM = 1 / (1 + np.exp(fit.strength_M[None] - fit.strength_M[:, None]))
    slope_M = (fit.pairs.won_MM - fit.pairs.battles_MM * chance_MM).sum(1)
    assert slope_M == pytest.approx(0.1 * fit.strength_M, abs=1e-8)
    assert fit.strength_M.sum() == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="ridge at least 0"):
        strengths([[0, 1], [1, 0]], ridge=-1)


def test_many_tables_at_once_are_each_table_alone() -> None:
    tables = np.stack([pair_sums(some_battles(seed)).won_MM for seed in range(4)])
    found, settled = newton(tables, np.tile(np.linspace(-3, 3, 7), (4, 1)))
    assert settled.all()
    for won_MM, strength_M in zip(tables, found, strict=True):
        assert strengths(won_MM) == pytest.approx(strength_M, abs=1e-9)


def test_a_start_far_away_still_arrives() -> None:
    """Undamped Newton steps from here overshoot without end."""
    won_MM = pair_sums(some_battles(3)).won_MM
    found, settled = newton(won_MM[None], np.array([[9.0, -9, 9, -9, 9, -9, 0]]))
    assert settled[0]
    assert found[0] == pytest.approx(strengths(won_MM), abs=1e-9)


# ── human votes ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def crowd() -> tuple[Path, Battles]:
    path = Path(os.environ.get("STARLING_DATA", "../shared/data")) / "human_votes_llmfao" / "crowd-comparisons.csv"
    if not path.is_file():
        pytest.skip(f"the public votes are not at {path}; set STARLING_DATA")
    return path, read_votes([path]).battles


def test_human_votes_reach_the_optimum_of_scipy(crowd: tuple[Path, Battles]) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    path, battles = crowd
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    number = {name: i for i, name in enumerate(battles.models)}
    left, right = (np.array([number[row[side]] for row in rows]) for side in ("left", "right"))
    share = np.array([{"left": 1.0, "right": 0.0, "tie": 0.5}[row["winner"]] for row in rows])

    def loss(strength: np.ndarray) -> tuple[float, np.ndarray]:
        margin = strength[left] - strength[right]
        error = share - 1 / (1 + np.exp(-margin))
        slope = np.bincount(right, error, len(strength)) - np.bincount(left, error, len(strength))
        return float((np.logaddexp(0, margin) - share * margin).sum()), slope

    expected = optimize.minimize(loss, np.zeros(len(number)), jac=True, method="BFGS", options={"gtol": 1e-6}).x
    expected = 1000 + ELO.per_unit * (expected - expected.mean())
    found = bradley_terry(battles)
    assert np.abs(found.rating_M - expected).max() < 0.05
    assert (found.pairs.battles, len(found.models)) == (8931, 59)


def test_human_votes_reach_the_optimum_of_evalica(crowd: tuple[Path, Battles]) -> None:
    evalica = pytest.importorskip("evalica")
    path, battles = crowd
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    winners = {"left": evalica.Winner.X, "right": evalica.Winner.Y, "tie": evalica.Winner.Draw}
    columns = [r["left"] for r in rows], [r["right"] for r in rows], [winners[r["winner"]] for r in rows]
    scores = evalica.bradley_terry(*columns, tolerance=1e-10, limit=10_000).scores
    expected = np.log([scores[name] for name in battles.models])
    found = bradley_terry(battles)
    assert np.abs(found.rating_M - (1000 + ELO.per_unit * (expected - expected.mean()))).max() < 0.05


# ── no maximum ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_groups_come_with_winners_first() -> None:
    beats = np.zeros((6, 6))
    beats[0, 1] = beats[1, 0] = 1  # two on one scale
    beats[2, 0] = 1  # 2 beat one of them
    beats[3, 4] = beats[4, 3] = 1  # 3 and 4 met nobody else, nor did 5
    assert sorted(g.tolist() for g in components(beats)) == [[0, 1], [2], [3, 4], [5]]
    order = [g.tolist() for g in components(beats)]
    assert order.index([2]) < order.index([0, 1])
    with pytest.raises(InputError, match=r"3 groups never met: \(0, 1, 2\), \(3, 4\), \(5\)"):
        check_connected(beats)


def test_long_groups_are_cut_in_the_message() -> None:
    beats = np.zeros((20, 20))
    for i in range(9):
        beats[i, (i + 1) % 9] = 1  # one circle of nine, eleven loners
    with pytest.raises(InputError, match=r"12 groups never met: \(m0, m1, m2, m3, m4, … 4 more\), .*… 6 more groups"):
        check_connected(beats, [f"m{i}" for i in range(20)])


def test_no_battle_and_too_many_models() -> None:
    with pytest.raises(InputError, match="no battle"):
        bradley_terry(of_scores([]))
    many = Battles(
        models=tuple(map(str, range(module.MOST_MODELS + 1))),
        a_N=np.zeros(1, np.int32),
        b_N=np.ones(1, np.int32),
        score_a_N=np.ones(1, np.float32),
    )
    with pytest.raises(InputError, match=r"5,001 models; a table of pairs holds 5,000"):
        bradley_terry(many)


def test_wins_beyond_floating_point_are_refused() -> None:
    with pytest.raises(InputError, match="too lopsided"):
        strengths([[0, 1e300], [1e-300, 0]])

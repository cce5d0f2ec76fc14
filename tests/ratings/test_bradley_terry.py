"""Bradley–Terry strengths: by hand, against other optimisers, and what has no maximum."""

from __future__ import annotations

import numpy as np
import pytest

from starling.errors import InputError
from starling.ratings.bradley_terry import strengths


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

"""Calibration: by hand, on data that is calibrated by construction, and against scipy's own minimiser."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from starling.evaluate.reward_benchmarks import calibration as cal
from starling.evaluate.reward_benchmarks.intervals import Floats


def pairs(margins: list[float] | Floats, clusters: list[str] | None = None) -> cal.Choices:
    """Pairs whose first answer is the better one, scored `margin` above the other."""
    return cal.choices(
        [[m, 0.0] for m in margins], [[1.0, 0.0]] * len(margins), clusters or [str(i) for i in range(len(margins))]
    )


def drawn(n: int, temperature: float, seed: int = 0) -> Floats:
    """Margins of pairs whose labels follow Bradley and Terry at a temperature: the sign is that of the truth."""
    rng = np.random.default_rng(seed)
    gap = np.abs(rng.normal(0, 2, n))
    right = rng.random(n) < 1 / (1 + np.exp(-gap / temperature))
    return np.where(right, gap, -gap)


def test_ece_brier_and_log_loss_by_hand() -> None:
    """Margins ±log 3 (σ = .75) and ±log 9 (σ = .9): two bins of four, each with one error."""
    of = pairs([log(3)] * 3 + [-log(3)] + [log(9)] * 3 + [-log(9)])
    found = cal.measure(of, cal.log_chances(of.scores_NK, 1.0), seed=0, bins=2)
    assert [(row["n"], row["right"]) for row in found["table"]] == [(4, 0.75), (4, 0.75)]
    assert [row["confidence"] for row in found["table"]] == pytest.approx([0.75, 0.9])
    assert found["ece"] == pytest.approx((0 + 0.15) / 2)
    assert found["brier"] == pytest.approx((3 * 0.25**2 + 0.75**2 + 3 * 0.1**2 + 0.9**2) / 8)
    assert found["log_loss"] == pytest.approx(-(3 * log(0.75) + log(0.25) + 3 * log(0.9) + log(0.1)) / 8)
    # bins' squared gaps 0 and .0225, each less var / n = .25 / 4
    assert found["rms_debiased"] == pytest.approx(max(0.0, (0.0 + 0.0225) / 2 - 0.0625) ** 0.5)


def test_k_wise_by_hand() -> None:
    """Scores log 1, log 2, log 1 → chances ¼, ½, ¼; the best is the middle one, then the first."""
    scores = [[0.0, log(2), 0.0]] * 2
    of = cal.choices(scores, [[1, 3, 2], [3, 2, 1]], ["a", "b"])
    found = cal.measure(of, cal.log_chances(of.scores_NK, 1.0), seed=0)
    assert found["confidence"] == pytest.approx(0.5)
    assert found["accuracy"] == 0.5
    assert found["log_loss"] == pytest.approx((log(2) + log(4)) / 2)
    first, second = 2 * 0.25**2 + 0.5**2, 0.75**2 + 0.5**2 + 0.25**2
    assert found["brier"] == pytest.approx((first + second) / 4)


def test_pairs_are_k_wise_with_two_answers_in_either_order() -> None:
    margins = [0.3, -0.2, 2.0, -1.0, 0.7]
    of = pairs(margins)
    turned = cal.choices([[0.0, m] for m in margins], [[0.0, 1.0]] * 5, list(of.clusters))
    one, other = (cal.measure(c, cal.log_chances(c.scores_NK, 1.0), seed=0, bins=3) for c in (of, turned))
    assert one == other
    sigmoid = 1 / (1 + np.exp(-np.array(margins)))
    assert one["brier"] == pytest.approx(float(((1 - sigmoid) ** 2).mean()))


def test_ties_share() -> None:
    """Equal scores are a coin; two truly best answers share the label, and one of them is the best by half."""
    of = cal.choices([[1.0, 1.0], [2.0, 1.0, 0.0]], [[1, 0], [1, 1, 0]], ["a", "b"])
    found = cal.measure(of, cal.log_chances(of.scores_NK, 1.0), seed=0, bins=1)
    assert found["accuracy"] == pytest.approx((0.5 + 0.5) / 2)
    chance = np.exp([2.0, 1.0, 0.0]) / np.exp([2.0, 1.0, 0.0]).sum()
    assert found["log_loss"] == pytest.approx((log(2) - 0.5 * log(chance[0]) - 0.5 * log(chance[1])) / 2)


def test_a_model_that_is_sure_of_two_equally_best_answers_is_calibrated() -> None:
    of = cal.choices([[9.0, 9.0, -30.0], [9.0, 9.0, -30.0]], [[1, 1, 0], [1, 1, 0]], ["a", "b"])
    found = cal.measure(of, cal.log_chances(of.scores_NK, 1.0), seed=0)
    assert found["ece"] == pytest.approx(0.0)
    assert found["log_loss"] == pytest.approx(log(2))


def test_equal_confidences_are_never_split() -> None:
    confidence = np.array([0.5] * 6 + [0.6, 0.7, 0.8, 0.9])
    found = cal.bins_of(confidence, 5)
    assert len(set(found[:6])) == 1
    assert sorted(set(found)) == list(range(len(set(found))))
    shuffled = np.random.default_rng(0).permutation(10)
    assert (cal.bins_of(confidence[shuffled], 5) == found[shuffled]).all()
    assert np.bincount(cal.bins_of(np.linspace(0.5, 1, 30), 15)).tolist() == [2] * 15


def test_fitted_temperature_is_the_one_drawn_with_and_minimises_the_loss() -> None:
    from scipy.optimize import minimize_scalar

    margins = drawn(20_000, temperature=2.5)
    of = pairs(margins)
    found = cal.fit_temperature(of)
    assert found == pytest.approx(2.5, rel=0.06)
    best = minimize_scalar(
        lambda t: np.logaddexp(0, -margins / t).mean(), bounds=(0.1, 20), method="bounded", options={"xatol": 1e-9}
    )
    assert found == pytest.approx(best.x, rel=1e-5)


@pytest.mark.parametrize("margins", [[1.0, 2.0], [-1.0, -2.0, 0.5], [0.0, 0.0]])
def test_no_best_temperature(margins: list[float]) -> None:
    """Never wrong: T → 0. Worse than chance: T → ∞. No scores at all: no T."""
    assert cal.fit_temperature(pairs(margins)) is None


def test_a_calibrated_model_shows_no_error_and_an_overconfident_one_does() -> None:
    honest = cal.calibrate(pairs(drawn(6000, 1.0)), seed=0, resamples=200)
    assert honest["raw"]["rms_debiased"] < 0.02
    assert honest["raw"]["ece_ci"][0] == 0.0
    assert honest["raw"]["ece"] < honest["raw"]["ece_noise"][1]
    loud = cal.calibrate(pairs(3 * drawn(6000, 1.0)), seed=0, resamples=200)
    assert loud["raw"]["ece"] > 0.08 > loud["raw"]["ece_noise"][1]
    assert loud["raw"]["ece_ci"][0] > 0.05
    assert loud["raw"]["ece_ci"][0] < loud["raw"]["ece"] < loud["raw"]["ece_ci"][1]
    assert loud["temperature"] == pytest.approx(3, rel=0.1)
    assert loud["fitted"]["ece"] < 0.03
    assert loud["fitted"]["log_loss"] == pytest.approx(honest["raw"]["log_loss"], abs=0.003)
    assert loud["raw"]["accuracy"] == loud["fitted"]["accuracy"] == honest["raw"]["accuracy"]
    assert loud["baseline"] == {"brier": pytest.approx(0.25), "log_loss": pytest.approx(log(2))}


def test_debiased_error_is_zero_on_average_where_the_plain_one_is_not() -> None:
    """40 calibrated sets of 300 pairs: the plain ECE is around .05, the debiased squares have mean 0."""
    plain, squares, noise = [], [], []
    for seed in range(40):
        of = pairs(drawn(300, 1.0, seed))
        found = cal.measure(of, cal.log_chances(of.scores_NK, 1.0), seed=0, resamples=40)
        plain.append(found["ece"])
        noise.append(found["ece_noise"][0])
        squares.append(found["rms_debiased"])
    assert np.mean(plain) > 0.04
    assert np.mean(noise) == pytest.approx(np.mean(plain), rel=0.1), "the noise says how large the plain one is by chance"
    assert np.median(squares) < 0.04


def test_no_cluster_is_in_both_halves_and_halves_do_not_depend_on_the_rest() -> None:
    clusters = [f"c{i // 2}" for i in range(400)]
    first = cal.halves(clusters, 0)
    assert (first[0::2] == first[1::2]).all()
    assert 140 < first.sum() < 260
    assert (cal.halves(clusters[:100], 0) == first[:100]).all()


def test_each_half_is_judged_at_the_temperature_of_the_other() -> None:
    """Halves that need T = 1 and T = 4: cross-fitting must do worse than each half's own temperature would."""
    clusters = [str(i) for i in range(4000)]
    first = cal.halves(clusters, 0)
    margins = np.where(first, drawn(4000, 1.0, 1), 4 * drawn(4000, 1.0, 2))
    found = cal.calibrate(pairs(margins, clusters), seed=0, resamples=2)
    assert found["temperature_halves"] == pytest.approx([1, 4], rel=0.15)
    crossed = np.where(first, margins / found["temperature_halves"][1], margins / found["temperature_halves"][0])
    assert found["fitted"]["log_loss"] == pytest.approx(float(np.logaddexp(0, -crossed).mean()))


@pytest.mark.parametrize(
    ("scores", "truths"), [([], []), ([[1.0]], [[1.0]]), ([[1.0, float("nan")]], [[1.0, 0.0]]), ([[1.0, 2.0]], [[1.0]])]
)
def test_bad_items_are_refused(scores: list[list[float]], truths: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="item"):
        cal.choices(scores, truths, ["a"] * len(scores))

"""Length preference: by hand, and models that look at nothing but length."""

from __future__ import annotations

import numpy as np
import pytest

from starling.evaluate.reward_benchmarks import length
from starling.evaluate.reward_benchmarks.length import Pair


def test_shares_and_accuracies_by_hand() -> None:
    pairs = [
        Pair("a", 200, 100, 1.0),  # longer is better, preferred
        Pair("b", 100, 300, -1.0),  # shorter is better, the longer preferred
        Pair("c", 100, 105, 2.0),  # matched; shorter is better, preferred
        Pair("d", 120, 100, 0.0),  # longer is better, a tie: half a preference, wrong
        Pair("e", 50, 50, 3.0),  # equal lengths: matched only
    ]
    found = length.measure(pairs, seed=0)
    assert found["truth_longer"] == pytest.approx(2 / 4)
    assert found["model_longer"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert found["excess"] == pytest.approx(0.625 - 0.5)
    assert found["excess_n"] == found["truth_longer_n"] == 4
    assert found["accuracy_longer_right"] == pytest.approx(1 / 2)
    assert found["accuracy_shorter_right"] == pytest.approx(1 / 2)
    assert (found["matched"], found["matched_n"]) == (1.0, 2)
    assert [(row["from"], row["to"], row["n"], row["accuracy"]) for row in found["by_gap"]] == [
        (1.0, 1.1, 2, 1.0), (1.1, 1.5, 1, 0.0), (1.5, 2.0, 1, 1.0), (2.0, 4.0, 1, 0.0),
    ]  # fmt: skip
    assert sum(row["n"] for row in found["by_gap"]) == found["pairs"] == 5


def test_a_model_of_length_prefers_the_longer_always_and_its_opposite_never() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 2000, (300, 2))
    for sign, expected in ((1, 1.0), (-1, 0.0)):
        pairs = [Pair(str(i), int(a), int(b), float(sign * (a - b))) for i, (a, b) in enumerate(lengths)]
        found = length.measure(pairs, seed=0)
        assert found["model_longer"] == expected
        assert found["excess"] == pytest.approx(expected - found["truth_longer"])
        assert found["accuracy_longer_right"] == expected
        assert found["accuracy_shorter_right"] == 1 - expected


def test_a_share_of_all_or_none_has_an_interval_with_width() -> None:
    """Three clusters, five pairs: Wilson's interval of 3 of 3, 3 / (3 + 1.96²) to 1, and its mirror image."""
    pairs = [Pair(cluster, 200, 100, 1.0) for cluster in "aabbc"]
    found = length.measure(pairs, seed=0)
    low = 3 / (3 + 1.959964**2)
    assert found["model_longer_ci"] == found["accuracy_longer_right_ci"] == pytest.approx([low, 1.0])
    assert found["by_gap"][0]["ci"] == pytest.approx([low, 1.0])
    assert found["excess_ci"] == [0.0, 0.0]
    turned = length.measure([Pair(p.cluster, p.worse, p.better, -p.margin) for p in pairs], seed=0)
    assert turned["truth_longer_ci"] == pytest.approx([0.0, 1 - low])


def test_which_side_is_named_first_does_not_matter() -> None:
    one = length.pairs_of([10, 30, 20], [3.0, 1.0, 1.0], [0.5, 0.1, 0.9], "c")
    assert one == [Pair("c", 10, 30, pytest.approx(0.4)), Pair("c", 10, 20, pytest.approx(-0.4))]
    turned = length.pairs_of([20, 30, 10], [1.0, 1.0, 3.0], [0.9, 0.1, 0.5], "c")
    assert sorted(turned, key=lambda p: p.worse, reverse=True) == one


@pytest.mark.parametrize(
    ("better", "worse", "expected"), [(110, 100, 0), (111, 100, 1), (100, 400, 3), (100, 401, 4), (0, 0, 0), (0, 5, 4)]
)
def test_gap_classes(better: int, worse: int, expected: int) -> None:
    assert length.gap_class(better, worse) == length.gap_class(worse, better) == expected


def test_correlation_within_items() -> None:
    lengths = [[1, 2, 3], [30, 10, 20], [5, 6]]
    truths = [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0]]
    scores = [[0.1, 0.2, 0.3], [3.0, 1.0, 2.0], [2.0, 1.0]]
    found = length.correlation(lengths, truths, scores, ["a", "b", "c"], seed=0)
    assert found["items"] == 2
    assert found["reward_tau"] == pytest.approx(1.0)
    assert found["truth_tau"] == pytest.approx((1 - 1 / 3) / 2)
    assert found["excess_tau"] == pytest.approx(found["reward_tau"] - found["truth_tau"])


def test_nothing_to_measure() -> None:
    assert length.measure([], seed=0) == {"pairs": 0, "clusters": 0, "by_gap": []}
    assert length.correlation([[1, 2]], [[1.0, 0.0]], [[1.0, 0.0]], ["a"], seed=0)["reward_tau"] is None
    only_equal = length.measure([Pair("a", 5, 5, 1.0)], seed=0)
    assert only_equal["truth_longer"] is None
    assert only_equal["matched"] == 1.0

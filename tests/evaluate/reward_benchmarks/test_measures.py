"""The arithmetic against numbers worked by hand, an independent implementation, and simulation."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from starling.evaluate.reward_benchmarks import measures
from starling.evaluate.reward_benchmarks.items import Item, Scored
from starling.records import Message


def pair(
    number: int, scores: tuple[float, float], answers: tuple[str, str] = ("xx", "y"), cluster: str = "", subset: str = ""
) -> Scored:
    """Two answers of which the first is better."""
    item = Item(
        id=str(number),
        cluster=cluster or str(number),
        subset=subset,
        messages=(Message(role="user", content="q"),),
        answers=answers,
        truth=(1.0, 0.0),
    )
    return Scored(item, scores)


def measured(*rows: Scored) -> dict[str, object]:
    return measures.measure_pairs(rows, 200, 0)


def test_right_wrong_and_equal_scores() -> None:
    found = measured(pair(1, (2, 1)), pair(2, (1, 2)), pair(3, (1, 1)), pair(4, (5, -5)))
    assert (found["accuracy"], found["ties"], found["accuracy_half_ties"]) == (0.5, 1, 0.625)
    assert (found["n"], found["clusters"]) == (4, 4)
    # −log σ of 1, −1, 0 and 10
    assert found["loss"] == pytest.approx((0.313262 + 1.313262 + 0.693147 + 0.0000454) / 4, abs=1e-6)


def test_parts_are_the_subsets_when_there_are_several() -> None:
    found = measured(pair(1, (2, 1), subset="s"), pair(2, (1, 2), subset="t"), pair(3, (3, 2), subset="t"))
    assert {name: (part["accuracy"], part["n"]) for name, part in found["parts"].items()} == {"s": (1.0, 1), "t": (0.5, 2)}  # type: ignore[attr-defined]
    assert measured(pair(1, (2, 1)))["parts"] == {}


def test_trivial_scorers_of_length() -> None:
    rows = (
        pair(1, (1, 2), ("a" * 2, "b" * 8)),  # a quarter as long
        pair(2, (2, 1), ("a" * 4, "b" * 8)),  # half as long
        pair(3, (2, 1), ("a" * 10, "b" * 10)),  # as long
        pair(4, (2, 1), ("a" * 8, "b" * 4)),  # twice as long
        pair(5, (1, 1), ("a" * 9, "b" * 5)),  # 1.8 times as long
    )
    found = measured(*rows)
    # the longer answer is right in rows 4 and 5, the shorter in 1 and 2; equal lengths are wrong for both
    assert found["baselines"] == {"chance": 0.5, "longest": 0.4, "shortest": 0.4, "most_distinct_words": 0.0}


def test_most_distinct_words_counts_each_word_once() -> None:
    found = measured(pair(1, (1, 0), ("a b c", "a a a a a")), pair(2, (1, 0), ("a a a", "b b")))
    assert found["baselines"]["most_distinct_words"] == 0.5  # type: ignore[index]


def test_the_gap_to_the_best_baseline_is_paired() -> None:
    """Right exactly where the longer one is right: no gap and no width, though both accuracies have some."""
    rows = [pair(i, (2, 1) if i % 3 else (1, 2), ("aaaa", "bb") if i % 3 else ("aa", "bbbb")) for i in range(30)]
    found = measured(*rows)
    assert found["over_baseline"] == {"baseline": "longest", "difference": 0.0, "ci": [0.0, 0.0]}
    assert found["ci"][0] < found["accuracy"] < found["ci"][1]  # type: ignore[index]


def test_above_chance_has_the_width_of_the_accuracy() -> None:
    """All ten right: the differences are all one half and resampling them shows no width, but ten pairs are only ten."""
    found = measured(*(pair(i, (2, 1), ("ab", "cd")) for i in range(10)))
    assert found["over_baseline"]["baseline"] == "chance"  # type: ignore[index]
    assert found["over_baseline"]["ci"] == pytest.approx([end - 0.5 for end in found["ci"]])  # type: ignore[index, attr-defined]
    assert found["ci"][1] - found["ci"][0] > 0.2  # type: ignore[index]


def test_a_subset_without_a_pair_is_no_part() -> None:
    tied = Item(id="9", cluster="c", subset="tied", messages=(), answers=("a", "b"), truth=(1.0, 1.0))
    rows = (pair(1, (2, 1), subset="s"), Scored(tied, (1.0, 2.0)), pair(2, (2, 1), subset="t"))
    assert list(measured(*rows)["parts"]) == ["s", "t"]  # type: ignore[call-overload]


def test_only_pairs_that_differ_in_truth_and_neighbours() -> None:
    item = Item(id="1", cluster="c", subset="", messages=(), answers=("a", "b", "c", "d"), truth=(-1.0, -2.0, -2.0, -7.0))
    pairs = measures.Pairs()
    pairs.add(item, (4.0, 3.0, 5.0, 1.0))
    assert pairs.margins.tolist() == [1.0, -1.0, 3.0, 2.0, 4.0]
    assert pairs.steps.tolist() == [1, 1, 2, 1, 1]


def test_nothing_to_measure_has_no_number() -> None:
    item = Item(id="1", cluster="c", subset="", messages=(), answers=("a", "b"), truth=(1.0, 1.0))
    found = measured(Scored(item, (1.0, 2.0)))
    assert (found["n"], found["accuracy"], found["ci"]) == (0, None, None)


def test_all_right_still_has_an_interval_with_width() -> None:
    """The bootstrap would say [1, 1]; ten clusters without a failure leave room: Wilson's 10 / (10 + z²)."""
    right = measures.share([1] * 10, range(10), 100, 0)
    assert right["ci"] == pytest.approx([10 / (10 + 1.959964**2), 1.0])
    assert measures.share([0] * 10, range(10), 100, 0)["ci"] == pytest.approx([0.0, 1.959964**2 / (10 + 1.959964**2)])
    # a hundred pairs of ten clusters are no more evidence than ten
    assert measures.share([1] * 100, [i % 10 for i in range(100)], 100, 0)["ci"] == right["ci"]
    assert measures.mean_of_shares([([1] * 5, range(5)), ([1] * 5, range(5, 10))], 100, 0) == (1.0, right["ci"])


def test_the_interval_covers_the_truth_where_pairs_of_a_cluster_agree() -> None:
    """40 prompts of 5 pairs each; a prompt's pairs share their chance of being right. Pairs taken singly cover far too rarely."""
    rng = np.random.default_rng(0)
    inside = {"clustered": 0, "single": 0}
    for trial in range(300):
        chance = rng.beta(1.4, 0.6, size=40)  # mean 0.7
        right = (rng.random((40, 5)) < chance[:, None]).ravel()
        for name, clusters in (("clustered", np.repeat(np.arange(40), 5)), ("single", np.arange(200))):
            low, high = measures.share(right, clusters, 300, trial)["ci"]
            inside[name] += low <= 0.7 <= high
    assert 0.91 <= inside["clustered"] / 300 <= 0.98
    assert inside["single"] / 300 < 0.85


def test_mean_of_shares_weighs_the_parts_equally() -> None:
    mean, (low, high) = measures.mean_of_shares([([1, 1, 1, 0], [0, 1, 2, 3]), ([0, 1], [0, 4])], 500, 0)
    assert mean == pytest.approx((0.75 + 0.5) / 2)
    assert 0 <= low < mean < high <= 1


def test_top_one_shares() -> None:
    assert measures.top_one([0.9, 0.1, 0.0], [1.0, 1.0, 0.0]) == 1.0
    assert measures.top_one([0.1, 0.1, 0.9], [1.0, 1.0, 0.0]) == 0.0
    assert measures.top_one([0.9, 0.9, 0.0], [1.0, 0.0, 0.0]) == 0.5


# ── AUROC ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_auroc_by_hand() -> None:
    # positives 3, 1; negatives 1, 0: three of four pairs right, one equal
    assert measures.auroc([3, 1, 1, 0], [1, 1, 0, 0], [0, 1, 2, 3], 100, 0)["auroc"] == 3.5 / 4
    assert measures.auroc([1, 2], [1, 1], [0, 1], 100, 0) == {"auroc": None, "ci": None, "n": 2}


def test_auroc_is_mann_whitneys_u() -> None:
    rng = random.Random(1)
    scores = [rng.randint(0, 20) / 4 for _ in range(300)]
    positive = [rng.random() < 0.3 + 0.02 * score for score in scores]
    found = measures.auroc(scores, positive, [i // 3 for i in range(300)], 300, 0)
    up, down = ([s for s, p in zip(scores, positive, strict=True) if p is wanted] for wanted in (True, False))
    assert found["auroc"] == pytest.approx(mannwhitneyu(up, down).statistic / (len(up) * len(down)))
    assert found["ci"][0] < found["auroc"] < found["ci"][1]


def test_auroc_resamples_clusters() -> None:
    """Two clusters, one all right and one all wrong: the interval spans everything."""
    scores = [2.0] * 10 + [1.0] * 10 + [1.0] * 10 + [2.0] * 10
    positive = [True] * 10 + [False] * 10 + [True] * 10 + [False] * 10
    assert measures.auroc(scores, positive, [0] * 20 + [1] * 20, 200, 0)["ci"] == [0.0, 1.0]

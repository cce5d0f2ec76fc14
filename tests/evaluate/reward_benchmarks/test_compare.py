"""Comparisons of models: Holm and sign flips against scipy, letters by their definition, planted differences."""

from __future__ import annotations

import numpy as np
import pytest

from starling.errors import InputError
from starling.evaluate.reward_benchmarks import compare
from starling.evaluate.reward_benchmarks.compare import Verdict
from starling.evaluate.reward_benchmarks.items import Item, Scored


def test_verdicts_of_items_add_up_to_the_accuracy_over_pairs() -> None:
    def scored(name: str, truth: tuple[float, ...], scores: tuple[float, ...]) -> Scored:
        return Scored(Item(id=name, cluster="c", subset="", messages=(), answers=("x",) * len(truth), truth=truth), scores)

    found = compare.verdicts(
        [
            scored("three", (2.0, 1.0, 0.0), (5.0, 1.0, 3.0)),  # two of three pairs
            scored("tie", (1.0, 0.0), (4.0, 4.0)),  # equal rewards order nothing
            scored("equal", (1.0, 1.0), (4.0, 1.0)),  # nothing to order
            scored("one", (1.0,), (4.0,)),
        ]
    )
    assert found == [Verdict("three", "c", 2 / 3, 3.0), Verdict("tie", "c", 0.0, 1.0)]
    assert sum(v.value * v.weight for v in found) / sum(v.weight for v in found) == pytest.approx(2 / 4)


def verdicts(values: list[float], cluster_of: int = 1, weight: float = 1.0) -> list[Verdict]:
    return [Verdict(f"i{i}", f"c{i // cluster_of}", v, weight) for i, v in enumerate(values)]


def test_a_planted_difference_is_found_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    good = (rng.random(800) < 0.8).astype(float)
    twin = np.where(rng.random(800) < 0.95, good, 1 - good)
    bad = (rng.random(800) < 0.6).astype(float)
    found = compare.compare({n: {"b": verdicts(list(v))} for n, v in (("good", good), ("twin", twin), ("bad", bad))})
    by = {(row["a"], row["b"]): row for row in found["pairs"]}
    assert by["good", "bad"]["different"]
    assert by["good", "bad"]["ci"][0] > 0.05
    assert by["good", "bad"]["difference"] == pytest.approx(good.mean() - bad.mean())
    standing = found["benchmarks"]["b"]
    assert set(standing["letters"]["bad"]).isdisjoint(standing["letters"]["good"])
    assert found["tests"] == 3
    assert all(row["p_adjusted"] >= row["p"] for row in found["pairs"])


def test_two_hundred_comparisons_of_equal_models_find_nothing() -> None:
    """Without adjustment about ten of them would be below .05."""
    rng = np.random.default_rng(3)
    outcomes = {f"m{i}": {f"b{j}": verdicts(list(rng.integers(0, 2, 200).astype(float))) for j in range(20)} for i in range(5)}
    found = compare.compare(outcomes, flips=20_000, resamples=50)
    assert found["tests"] == 200
    assert sum(row["p"] < 0.05 for row in found["pairs"]) >= 2
    assert not any(row["different"] for row in found["pairs"])
    assert all(set(s["letters"].values()) == {"a"} for s in found["benchmarks"].values())


def test_copies_within_a_cluster_are_no_evidence() -> None:
    """Every item ten times over: the p-value of ten times as many clusters would be far smaller."""
    one = [1.0] * 9 + [0.0] * 4
    other = [0.0] * 9 + [1.0] * 4
    plain = compare.compare({"x": {"b": verdicts(one)}, "y": {"b": verdicts(other)}})["pairs"][0]
    copied = {
        name: {"b": verdicts([v for v in values for _ in range(10)], cluster_of=10)}
        for name, values in (("x", one), ("y", other))
    }
    again = compare.compare(copied)["pairs"][0]
    assert again["p"] == plain["p"]
    assert again["clusters"] == 13
    assert again["ci"] == pytest.approx(plain["ci"], abs=0.2)


def test_only_common_items_are_compared_and_the_rest_is_counted() -> None:
    left, right = verdicts([1.0, 0.0, 1.0]), verdicts([0.0, 0.0, 1.0, 1.0])[1:]
    row = compare.compare({"x": {"b": left}, "y": {"b": right}})["pairs"][0]
    assert (row["n"], row["only_one"], row["difference"]) == (2, 2, 0.0)


def test_weights() -> None:
    x = [Verdict("1", "1", 1.0, 3.0), Verdict("2", "2", 0.0, 1.0)]
    y = [Verdict("1", "1", 0.0, 3.0), Verdict("2", "2", 1.0, 1.0)]
    found = compare.compare({"x": {"b": x}, "y": {"b": y}})
    assert found["pairs"][0]["difference"] == pytest.approx(0.5)
    assert found["benchmarks"]["b"]["values"] == {"x": 0.75, "y": 0.25}


def test_tables() -> None:
    outcomes = {"x": {"b": verdicts([1.0] * 30), "only": verdicts([1.0])}, "y": {"b": verdicts([0.0] * 30)}}
    found = compare.compare(outcomes)
    assert compare.standing_rows(found) == [
        {"model": "x", "b": "100.0 a", "only": "100.0 a"}, {"model": "y", "b": "0.0 b", "only": "–"},
    ]  # fmt: skip
    (row,) = compare.pair_rows(found)
    assert (row["difference"], row["95 %"], row[""]) == ("+100.0", "+100.0 to +100.0", "different")


def test_nothing_in_common_and_items_that_differ_are_refused() -> None:
    with pytest.raises(InputError, match="nothing to compare"):
        compare.compare({"x": {"b": verdicts([1.0])}, "y": {"c": verdicts([1.0])}})
    with pytest.raises(InputError, match="nothing to compare"):
        compare.compare({"x": {"b": verdicts([1.0])}})
    with pytest.raises(InputError, match="not the same for both"):
        compare.compare({"x": {"b": verdicts([1.0])}, "y": {"b": [Verdict("i0", "elsewhere", 1.0)]}})

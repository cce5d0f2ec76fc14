"""Comparisons of models: Holm and sign flips against scipy, letters by their definition, planted differences."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starling.errors import InputError
from starling.evaluate.reward_benchmarks import compare
from starling.evaluate.reward_benchmarks.compare import Verdict
from starling.evaluate.reward_benchmarks.items import Item, Scored


def test_holm_by_hand() -> None:
    # sorted .005, .01, .03, .04 times 4, 3, 2, 1 = .02, .03, .06, .04 → running maximum .02, .03, .06, .06
    assert compare.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert compare.holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p: list[float]) -> None:
    """Walk up the sorted p-values, reject while p ≤ α / (tests left), stop at the first that is not."""
    alpha, rejected = 0.05, set()
    for rank, i in enumerate(sorted(range(len(p)), key=lambda j: p[j])):
        if (len(p) - rank) * p[i] > alpha:
            break
        rejected.add(i)
    assert {i for i, adjusted in enumerate(compare.holm(p)) if adjusted <= alpha} == rejected


def test_sign_flips_by_hand_and_exactly() -> None:
    assert compare.sign_flip_p([1, 1, 1], seed=0) == 2 / 8
    assert compare.sign_flip_p([3, 1, -1], seed=0) == 6 / 8  # the eight sums are ±5, ±3, ±3, ±1
    assert compare.sign_flip_p([0, 0], seed=0) == 1.0
    assert compare.sign_flip_p([], seed=0) == 1.0


def test_few_clusters_are_flipped_exhaustively() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 10)
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in product((1, -1), repeat=10)]
    share = np.mean([s >= abs(values.sum()) - 1e-9 for s in sums])
    assert compare.sign_flip_p(values, seed=5) == pytest.approx(float(share))


@pytest.mark.parametrize("kind", ["equal sizes", "all different"])
def test_random_flips_agree_with_scipy(kind: str) -> None:
    from scipy.stats import binomtest, permutation_test

    rng = np.random.default_rng(1)
    if kind == "equal sizes":  # then it is the sign test
        values = np.array([1.0] * 60 + [-1.0] * 40)
        expected = binomtest(60, 100).pvalue
    else:
        values = rng.normal(0.25, 1, 80)
        found = permutation_test((values,), np.sum, permutation_type="samples", n_resamples=50_000, rng=np.random.default_rng(2))
        expected = found.pvalue
    assert compare.sign_flip_p(values, seed=0) == pytest.approx(expected, abs=0.004)


def test_many_different_sizes_take_the_normal_limit_of_the_same_test(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).normal(0.06, 1, 1500)
    limit = compare.sign_flip_p(values, seed=0)
    monkeypatch.setattr(compare, "MANY_SIZES", 10**9)
    assert limit == pytest.approx(compare.sign_flip_p(values, seed=0, flips=20_000), abs=0.005)
    assert 0.005 < limit < 0.2


def test_sizes_that_differ_by_rounding_only_are_one_size() -> None:
    rough = [0.3 - 0.2] * 10 + [0.1] * 10 + [-(0.7 - 0.6)] * 5
    assert compare.sign_flip_p(rough, seed=0) == compare.sign_flip_p([1.0] * 20 + [-1.0] * 5, seed=0)


names = st.integers(2, 7).flatmap(
    lambda n: st.tuples(st.just([f"m{i}" for i in range(n)]), st.sets(st.sampled_from(list(combinations(range(n), 2)))))
)


@given(names)
@settings(max_examples=60)
def test_models_share_a_letter_exactly_when_they_are_not_different(case: tuple[list[str], set[tuple[int, int]]]) -> None:
    models, apart = case
    different = [(models[i], models[j]) for i, j in sorted(apart)]
    shown = compare.letters(models, different)
    for a, b in combinations(models, 2):
        assert bool(set(shown[a]) & set(shown[b])) == ((a, b) not in different)
    assert all(shown.values())
    letters = set("".join(shown.values()))
    groups = [{m for m in models if letter in shown[m]} for letter in letters]
    assert not any(one < other for one, other in product(groups, groups)), "no letter that says nothing new"


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

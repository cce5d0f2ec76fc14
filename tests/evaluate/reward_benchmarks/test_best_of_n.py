"""Best of n in closed form, against all subsets and their argmaxes."""

from __future__ import annotations

from itertools import combinations
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling.evaluate.reward_benchmarks import best_of_n


def by_force(rewards: list[float], truths: list[float], n: int) -> float:
    """Mean over all subsets of n of the mean truth of the subset's best-rewarded answers."""
    picks = []
    for chosen in combinations(range(len(rewards)), n):
        best = max(rewards[i] for i in chosen)
        picks.append(np.mean([truths[i] for i in chosen if rewards[i] == best]))
    return float(np.mean(picks))


small = st.integers(-3, 3).map(float)


@given(st.lists(st.tuples(small, small), min_size=1, max_size=7))
def test_closed_form_equals_all_subsets(answers: list[tuple[float, float]]) -> None:
    rewards, truths = [list(side) for side in zip(*answers, strict=True)]
    ns = range(1, len(answers) + 1)
    found = best_of_n.expected_truths(rewards, truths, ns)
    assert found == pytest.approx([by_force(rewards, truths, n) for n in ns])


@given(st.lists(st.tuples(small, small), min_size=2, max_size=7))
def test_any_increasing_change_of_the_rewards_changes_nothing(answers: list[tuple[float, float]]) -> None:
    rewards, truths = [list(side) for side in zip(*answers, strict=True)]
    ns = range(1, len(answers) + 1)
    assert best_of_n.expected_truths(np.exp(rewards), truths, ns) == pytest.approx(best_of_n.expected_truths(rewards, truths, ns))


def test_by_hand() -> None:
    # of the three pairs the reward picks 1, 1 and 0 → 2/3
    assert best_of_n.expected_truths([0.1, 0.9, 0.5], [0.0, 1.0, 0.0], [2]) == pytest.approx([2 / 3])
    # of 1,000 answers that the reward orders exactly wrongly the worst of 100 is picked; the least of n of 1 … N has
    # mean (N + 1) / (n + 1)
    truths = list(range(1, 1001))
    found = best_of_n.expected_truths([-t for t in truths], truths, [100])
    assert found == pytest.approx([1001 / 101])


def test_the_oracle_is_the_expected_maximum() -> None:
    truths = list(range(1, 51))
    assert best_of_n.expected_truths(truths, truths, [9]) == pytest.approx([9 * 51 / 10])  # n (N + 1) / (n + 1)


def test_sizes_and_kl() -> None:
    assert best_of_n.sizes(7) == [1, 2, 3, 4, 5, 6, 7]
    assert best_of_n.sizes(64) == [*range(1, 17), 32, 64]
    assert best_of_n.sizes(100) == [*range(1, 17), 32, 64, 100]
    assert best_of_n.kl_bound(4) == pytest.approx(log(4) - 0.75)


def test_curve_of_a_perfect_an_inverted_and_a_constant_reward() -> None:
    truths = [[0.0, 1.0, 2.0], [5.0, 3.0, 4.0]]
    clusters = ["a", "b"]
    perfect = best_of_n.curve(truths, truths, clusters, seed=0)
    assert [row["truth"] for row in perfect["n"]] == pytest.approx([2.5, (5 / 3 + 14 / 3) / 2, 3.5])
    assert [row["share"] for row in perfect["n"]] == [None, pytest.approx(1.0), pytest.approx(1.0)]
    inverted = best_of_n.curve([[-t for t in one] for one in truths], truths, clusters, seed=0)
    assert inverted["n"][2]["truth"] == pytest.approx(1.5)
    assert inverted["n"][2]["share"] == pytest.approx(-1.0)
    constant = best_of_n.curve([[1.0] * 3] * 2, truths, clusters, seed=0)
    assert [row["truth"] for row in constant["n"]] == pytest.approx([2.5] * 3)
    assert constant["n"][2]["random"] == pytest.approx(2.5)
    assert constant["n"][2]["oracle"] == pytest.approx(3.5)


def test_prompts_with_too_few_answers_are_counted_not_mixed_in() -> None:
    truths = [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [9.0, 9.0], [9.0]]
    found = best_of_n.curve(truths, truths, ["a", "b", "c", "d"], seed=0)
    assert found["left_out"] == {"fewer_than_3_answers": 2}
    assert found["prompts"] == 2
    assert found["n"][0]["truth"] == pytest.approx(1.0)


def test_one_prompt_with_more_answers_does_not_set_the_size_for_all() -> None:
    truths = [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0, 2.0, 3.0]]
    found = best_of_n.curve(truths, truths, ["a", "b", "c"], seed=0)
    assert [row["n"] for row in found["n"]] == [1, 2]
    assert (found["prompts"], found["left_out"]) == (3, {})
    assert found["n"][1]["truth"] == pytest.approx((1 + 1 + 14 / 6) / 3)  # of six pairs the maxima are 1, 2, 2, 3, 3, 3


def test_no_prompt_that_could_be_used() -> None:
    found = best_of_n.curve([[1.0]], [[1.0]], ["a"], seed=0)
    assert found["n"] == []
    assert found["left_out"] == {"fewer_than_two_answers": 1}
    assert best_of_n.curve([], [], [], seed=0)["left_out"] == {}


def test_an_n_beyond_the_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="n of"):
        best_of_n.expected_truths([1.0, 2.0], [1.0, 2.0], [3])


def test_a_proxy_that_is_gamed_by_few_answers_turns_down() -> None:
    """Gao et al.: the reward follows the truth but for one answer in sixteen, which it overrates and which is worth nothing."""
    rng = np.random.default_rng(0)
    truths = rng.random((300, 16)) + 1
    truths[:, 0] = 0.0
    rewards = truths + 3 * (truths == 0)
    found = best_of_n.curve(rewards.tolist(), truths.tolist(), [str(i) for i in range(300)], seed=0)
    truth = [row["truth"] for row in found["n"]]
    peak = int(np.argmax(truth))
    assert 0 < peak < 8
    assert truth[-1] == 0.0

"""Best of n over the prompts of a benchmark, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from starling.evaluate.reward_benchmarks import best_of_n


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

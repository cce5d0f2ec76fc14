"""Reward accuracy against numbers worked by hand."""

from __future__ import annotations

import pytest

from starling.evaluate import reward_accuracy
from starling.evaluate.rows import ScoredAnswer


def answers(prompt: str, rewards: list[float], truths: list[float]) -> list[ScoredAnswer]:
    return [
        ScoredAnswer(prompt_id=prompt, model=f"m{i}", text=f"{i}", finished=True, reward=r, truth=t)
        for i, (r, t) in enumerate(zip(rewards, truths, strict=True))
    ]


def test_pairs_that_tie_in_truth_do_not_count_and_equal_rewards_are_wrong() -> None:
    # truths 1, 1, 0: pairs (0,2) and (1,2) differ; rewards order the first rightly and tie on the second
    found = reward_accuracy.measure(answers("p", [2.0, 0.5, 0.5], [1.0, 1.0, 0.0]), resamples=100, seed=0)
    assert (found["pair_accuracy"], found["pairs"], found["ties"]) == (0.5, 2, 1)


def test_top_one_accepts_any_of_the_truly_best_and_shares_equal_rewards() -> None:
    for rewards, truths, share in (
        ([0.9, 0.1, 0.0], [1.0, 1.0, 0.0], 1.0),
        ([0.1, 0.1, 0.9], [1.0, 1.0, 0.0], 0.0),
        ([0.9, 0.9, 0.0], [1.0, 0.0, 0.0], 0.5),
    ):
        assert reward_accuracy.measure(answers("p", rewards, truths), resamples=100, seed=0)["top1"] == share


def test_measure_pools_pairs_over_prompts() -> None:
    rows = answers("p", [3, 2, 1], [1.0, 0.5, 0.0]) + answers("q", [1, 2], [1.0, 0.0]) + answers("r", [1, 2], [0.4, 0.4])
    found = reward_accuracy.measure(rows, resamples=200, seed=0)
    assert found["pairs"] == 4  # three of p, one of q, none of r
    assert found["pair_accuracy"] == pytest.approx(3 / 4)
    assert found["top1"] == pytest.approx(1 / 2)
    assert found["kendall_tau"] == pytest.approx((1 - 1) / 2)
    assert found["prompts"] == 2
    assert found["answers"] == 7
    assert found["ci"][0] <= found["pair_accuracy"] <= found["ci"][1]


def test_intervals_resample_prompts_not_pairs() -> None:
    """Two prompts of many pairs each, one all right and one all wrong: the interval must span almost everything."""
    truths = [float(i) for i in range(10)]
    rows = answers("p", truths, truths) + answers("q", [-t for t in truths], truths)
    found = reward_accuracy.measure(rows, resamples=500, seed=1)
    assert found["pair_accuracy"] == pytest.approx(0.5)
    assert found["ci"] == [0.0, 1.0]


def test_no_differing_pair_gives_no_number() -> None:
    found = reward_accuracy.measure(answers("p", [1, 2], [0.5, 0.5]), resamples=100, seed=0)
    assert found["pair_accuracy"] is None
    assert found["pairs"] == 0

"""Best of n in closed form, against all subsets and their argmaxes."""

from __future__ import annotations

from itertools import combinations
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling import stats_best_of_n


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
    found = stats_best_of_n.expected_values(rewards, truths, ns)
    assert found == pytest.approx([by_force(rewards, truths, n) for n in ns])


@given(st.lists(st.tuples(small, small), min_size=2, max_size=7))
def test_any_increasing_change_of_the_rewards_changes_nothing(answers: list[tuple[float, float]]) -> None:
    rewards, truths = [list(side) for side in zip(*answers, strict=True)]
    ns = range(1, len(answers) + 1)
    assert stats_best_of_n.expected_values(np.exp(rewards), truths, ns) == pytest.approx(
        stats_best_of_n.expected_values(rewards, truths, ns)
    )


def test_by_hand() -> None:
    # of the three pairs the reward picks 1, 1 and 0 → 2/3
    assert stats_best_of_n.expected_values([0.1, 0.9, 0.5], [0.0, 1.0, 0.0], [2]) == pytest.approx([2 / 3])
    # of 1,000 answers that the reward orders exactly wrongly the worst of 100 is picked; the least of n of 1 … N has
    # mean (N + 1) / (n + 1)
    truths = list(range(1, 1001))
    found = stats_best_of_n.expected_values([-t for t in truths], truths, [100])
    assert found == pytest.approx([1001 / 101])


def test_the_oracle_is_the_expected_maximum() -> None:
    truths = list(range(1, 51))
    assert stats_best_of_n.expected_values(truths, truths, [9]) == pytest.approx([9 * 51 / 10])  # n (N + 1) / (n + 1)


def test_sizes_and_kl() -> None:
    assert stats_best_of_n.sizes(7) == [1, 2, 3, 4, 5, 6, 7]
    assert stats_best_of_n.sizes(64) == [*range(1, 17), 32, 64]
    assert stats_best_of_n.sizes(100) == [*range(1, 17), 32, 64, 100]
    assert stats_best_of_n.kl_bound(4) == pytest.approx(log(4) - 0.75)


def test_an_n_beyond_the_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="n of"):
        stats_best_of_n.expected_values([1.0, 2.0], [1.0, 2.0], [3])

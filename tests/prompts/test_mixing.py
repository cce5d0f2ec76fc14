"""Mixing: quotas by hand and their laws; which prompts are chosen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling.prompts.mixing import chosen, quotas


@pytest.mark.parametrize(
    ("sizes", "weights", "total", "expected"),
    [
        ([100, 100], [1, 3], 40, [10, 30]),
        ([10, 100, 100], [1, 1, 2], 70, [10, 20, 40]),  # equal parts would be 17.5, but the first has 10
        ([10, 20, 100], [5, 5, 1], 100, [10, 20, 70]),
        ([100, 100, 100], [1, 1, 1], 100, [34, 33, 33]),  # a third each; the earlier source gets the odd one
        ([100, 100], [1, 2], 100, [33, 67]),  # 33.3 and 66.7
        ([3, 4], [1, 1], 9, [3, 4]),
        ([0, 5], [1, 1], 2, [0, 2]),
        ([5], [0.1], 0, [0]),
    ],
)
def test_quotas_by_hand(sizes: list[int], weights: list[float], total: int, expected: list[int]) -> None:
    assert quotas(sizes, weights, total) == expected


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0.01, 100)), min_size=1, max_size=6), st.integers(0, 200))
def test_quotas_give_the_total_and_never_more_than_there_is(sources: list[tuple[int, float]], total: int) -> None:
    sizes, weights = [s for s, _ in sources], [w for _, w in sources]
    given_ = quotas(sizes, weights, total)
    assert sum(given_) == min(total, sum(sizes))
    assert all(0 <= g <= s for g, s in zip(given_, sizes, strict=True))
    # Of two sources that both have enough, the heavier gives at least as many, but for rounding.
    for i, (size, weight) in enumerate(sources):
        for j, other in enumerate(weights):
            if weight >= other and given_[i] < size:
                assert given_[i] >= given_[j] - 1


def test_the_chosen_depend_on_seed_purpose_and_ids_only() -> None:
    ids = [f"{i:016x}" for i in range(50)]
    some = chosen(ids, 10, "take", 0)
    assert len(some) == 10
    assert some == chosen(ids[::-1], 10, "take", 0) < chosen(ids, 11, "take", 0)
    assert some not in (chosen(ids, 10, "take", 1), chosen(ids, 10, "total", 0))

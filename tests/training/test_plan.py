"""The plan is a pure function: every item once per epoch, budgets kept, order fixed by the seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starling.training.plan import Plan, deal, micro_batches, steps


@given(n=st.integers(1, 60), per_step=st.integers(1, 20), epochs=st.integers(1, 3), seed=st.integers(0, 9))
def test_every_item_once_per_epoch_in_steps_of_nearly_equal_size(n: int, per_step: int, epochs: int, seed: int) -> None:
    plan = steps(n, per_step, epochs, seed)
    per_epoch = -(-n // per_step)
    assert len(plan) == epochs * per_epoch
    for e in range(epochs):
        epoch = plan[e * per_epoch : (e + 1) * per_epoch]
        assert sorted(i for step in epoch for i in step) == list(range(n))
        sizes = [len(s) for s in epoch]
        assert max(sizes) <= per_step
        assert max(sizes) - min(sizes) <= 1


def test_order_depends_on_seed_and_epoch_only() -> None:
    assert steps(20, 6, 2, 1) == steps(20, 6, 2, 1)
    assert steps(20, 6, 3, 1)[: 2 * 4] == steps(20, 6, 2, 1)  # more epochs do not change the first ones
    assert steps(20, 6, 2, 1)[:4] != steps(20, 6, 2, 1)[4:]
    assert steps(20, 6, 1, 1) != steps(20, 6, 1, 2)


def test_known_order() -> None:
    # numpy's PCG64 is stable by its own policy: a changed order would silently change every trained model
    assert steps(5, 2, 1, 0) == KNOWN


KNOWN = [(2, 4), (3, 0), (1,)]


@given(items=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 7)), min_size=1, max_size=30), budget=st.integers(1, 400))
def test_micro_batches_keep_the_budget_and_every_item(items: list[tuple[int, int]], budget: int) -> None:
    lengths, rows = [length for length, _ in items], [k for _, k in items]
    batches = micro_batches(range(len(items)), lengths, budget, rows)
    assert sorted(i for b in batches for i in b) == list(range(len(items)))
    for batch in batches:
        assert len(batch) == 1 or sum(rows[i] for i in batch) * max(lengths[i] for i in batch) <= budget


def test_micro_batches_by_hand() -> None:
    assert micro_batches([0, 1, 2, 3, 4], [3, 9, 2, 9, 4], 20) == [(1, 3), (4, 0, 2)]
    assert micro_batches([3, 4], [3, 9, 2, 9, 4], 1) == [(3,), (4,)]
    assert micro_batches([], [], 10) == []


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="n ≥ 1"):
        steps(0, 4, 1, 0)


class TestDeal:
    def test_by_hand(self) -> None:
        # dearest first to whoever has least: 9 to rank 0, 8 to 1, 7 to 1 (8 < 9), 5 to 0 (9 < 15), 2 to 0 (14 < 15)
        costs = [7, 9, 2, 8, 5]
        assert deal(range(5), costs, 100, 2) == [[(1, 4, 2)], [(3, 0)]]
        assert deal(range(5), costs, 14, 2) == [[(1, 4), (2,)], [(3,), (0,)]]
        assert deal(range(5), costs, 1, 2) == [[(1,), (4,), (2,)], [(3,), (0,), ()]]  # one more on the first: an empty one
        assert deal([2, 0], costs, 100, 3) == [[(0,)], [(2,)], [()]]
        assert deal(range(5), costs, 20, 1) == [[(1, 3), (0, 4, 2)]]

    @given(costs=st.lists(st.integers(1, 60), min_size=1, max_size=40), budget=st.integers(1, 200), ranks=st.integers(1, 6))
    def test_laws(self, costs: list[int], budget: int, ranks: int) -> None:
        dealt = deal(range(len(costs)), costs, budget, ranks)
        assert len(dealt) == ranks
        assert len({len(batches) for batches in dealt}) == 1  # as many micro-batches on every rank
        assert sorted(i for batches in dealt for batch in batches for i in batch) == list(range(len(costs)))
        for batches in dealt:
            assert all(len(batch) <= 1 or sum(costs[i] for i in batch) <= budget for batch in batches)
            assert sorted(map(bool, batches), reverse=True) == list(map(bool, batches))  # empty ones last
        loads = [sum(costs[i] for batch in batches for i in batch) for batches in dealt]
        assert max(loads) - min(loads) <= max(costs)  # longest first never lets one fall further behind

    @given(costs=st.lists(st.integers(1, 60), min_size=1, max_size=40), per_step=st.integers(1, 9), ranks=st.integers(1, 4))
    def test_the_steps_do_not_depend_on_ranks_costs_or_budget(self, costs: list[int], per_step: int, ranks: int) -> None:
        alone = Plan(np.ones(len(costs), dtype=np.int64), per_step, 2, 7, 10**6)
        shared = Plan(np.array(costs), per_step, 2, 7, 50, ranks)
        assert len(alone) == len(shared) == len(steps(len(costs), per_step, 2, 7))
        for step in range(1, len(alone) + 1):
            assert alone.items(step) == shared.items(step)
            assert sorted(i for batches in shared.batches(step) for b in batches for i in b) == sorted(alone.items(step))


def test_padded_items_cost_as_much_as_the_dearest_of_their_micro_batch() -> None:
    costs = [10, 6, 5, 4, 4]
    assert deal(range(5), costs, 21, 1) == [[(0, 1, 2), (3, 4)]]
    assert deal(range(5), costs, 20, 1, padded=True) == [[(0, 1), (2, 3, 4)]]
    assert deal(range(5), costs, 19, 1, padded=True) == [[(0,), (1, 2, 3), (4,)]]
    assert deal(range(5), costs, 3, 1, padded=True) == [[(0,), (1,), (2,), (3,), (4,)]]

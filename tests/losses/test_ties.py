"""Ties, partial rankings, weights, margins and soft labels: by hand, by brute force, against an independent Cox likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from itertools import combinations, pairwise, permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from starling.losses.ranking import LOSSES, Targets, bradley_terry, plackett_luce, strict_order

TIES = ("efron", "breslow", "strict")


def targets(*ranks: Sequence[int], **more: torch.Tensor) -> Targets:
    width = max(len(r) for r in ranks)
    rank_BK = torch.tensor([[*r, *[0] * (width - len(r))] for r in ranks])
    return Targets(rank_BK, rank_BK > 0, **more)


def loss(scores: Sequence[float], ranks: Sequence[int], **how: object) -> float:
    return float(plackett_luce(torch.tensor([scores], dtype=torch.float64), targets(ranks), **how).loss)  # type: ignore[arg-type]


def draw(rows: int, k: int) -> torch.Tensor:
    return torch.randn(rows, k, dtype=torch.float64, generator=torch.Generator().manual_seed(17 * rows + k))


def order_probability(scores: Sequence[float], order: Sequence[int]) -> float:
    """Plackett–Luce probability of a strict order, straight from its definition."""
    weights = [math.exp(s) for s in scores]
    chance, left = 1.0, sum(weights)
    for i in order:
        chance *= weights[i] / left
        left -= weights[i]
    return chance


def consistent_probability(scores: Sequence[float], ranks: Sequence[int]) -> float:
    """Probability that a strict order agrees with a ranking with ties: the sum over the orders of the tied."""
    orders = permutations(range(len(scores)))
    agreeing = [o for o in orders if all(ranks[i] <= ranks[j] for i, j in pairwise(o))]
    return sum(order_probability(scores, order) for order in agreeing)


def cox(scores: Sequence[float], ranks: Sequence[int], ties: str) -> float:
    """Negative log partial likelihood of one stratum (R's `coxph` formulas), failures in the order of the ranks; without the
    last tied group, whose own risk set is all that is left."""
    risk = {rank: [s for s, r in zip(scores, ranks, strict=True) if r >= rank] for rank in set(ranks)}
    total = 0.0
    for rank in sorted(set(ranks))[:-1]:
        events = np.array([s for s, r in zip(scores, ranks, strict=True) if r == rank])
        at_risk, tied, d = np.exp(risk[rank]).sum(), np.exp(events).sum(), len(events)
        for step in range(d):
            total += math.log(at_risk - (step / d if ties == "efron" else 0.0) * tied)
        total -= float(events.sum())
    return total


# ── Plackett–Luce ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_probabilities_of_all_orders_sum_to_one() -> None:
    scores = draw(1, 5)[0].tolist()
    losses = [loss([scores[i] for i in order], range(1, 6)) for order in permutations(range(5))]
    assert sum(math.exp(-4 * value) for value in losses) == pytest.approx(1.0, abs=1e-12)
    best_first = sorted(range(5), key=lambda i: -scores[i])
    assert min(losses) == loss([scores[i] for i in best_first], range(1, 6))


@pytest.mark.parametrize(
    ("ties", "expected"),
    # e², e¹ tied first, e⁰ last: Σ = e² + e + 1
    [
        ("breslow", math.log(math.e**2 + math.e + 1) - 1.5),
        ("efron", (math.log(math.e**2 + math.e + 1) + math.log((math.e**2 + math.e) / 2 + 1)) / 2 - 1.5),
        ("strict", (math.log(math.e**2 + 1) + math.log(math.e + 1)) / 2 - 1.5),
    ],
)
def test_two_tied_at_the_top_by_hand(ties: str, expected: float) -> None:
    assert loss([2.0, 1.0, 0.0], [1, 1, 3], ties=ties) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("ranks", [(1, 1, 3), (1, 2, 2, 4), (1, 1, 1, 4, 5, 5), (1, 2, 3, 3, 3, 6, 7)])
def test_parity_with_a_cox_likelihood(ties: str, ranks: tuple[int, ...]) -> None:
    scores = draw(1, len(ranks))[0].tolist()
    choices = sum(any(other > rank for other in ranks) for rank in ranks)
    assert loss(scores, ranks, ties=ties) == pytest.approx(cox(scores, ranks, ties) / choices, abs=1e-12)


@pytest.mark.parametrize("ties", TIES)
def test_without_ties_the_three_are_the_same(ties: str) -> None:
    scores = draw(1, 6)[0].tolist()
    expected = -math.log(order_probability(scores, range(6))) / 5
    assert loss(scores, range(1, 7), ties=ties) == pytest.approx(expected, abs=1e-12)


def test_efron_is_nearest_to_the_sum_over_orders() -> None:
    """d tied answers leave in d! orders: up to that constant Efron approximates the sum, and better than Breslow."""
    for row in draw(40, 5).tolist():
        exact = -math.log(consistent_probability(row, (1, 1, 1, 4, 5)))
        once = exact + math.log(math.factorial(3))
        off = {ties: abs(4 * loss(row, (1, 1, 1, 4, 5), ties=ties) - once) for ties in ("efron", "breslow")}
        assert off["efron"] < off["breslow"]
    flat = [0.3, 0.3, 0.3, -1.0, 0.0]  # equal scores: exact
    exact = -math.log(consistent_probability(flat, (1, 1, 1, 4, 5))) + math.log(6)
    assert 4 * loss(flat, (1, 1, 1, 4, 5)) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("ties", TIES)
def test_a_partial_ranking_is_the_sum_over_the_orders_of_the_rest(ties: str) -> None:
    """Unranked answers share the last rank: exactly the marginal likelihood of what is known."""
    row = draw(1, 6)[0].tolist()
    exact = -math.log(consistent_probability(row, (1, 2, 3, 3, 3, 3))) / 2
    assert loss(row, (1, 2, 3, 3, 3, 3), ties=ties) == pytest.approx(exact, abs=1e-12)
    assert loss(row, range(1, 7), ties=ties, top_k=2) == pytest.approx(exact, abs=1e-12)


def test_top_k_with_ties_counts_ranks() -> None:
    row = draw(1, 5)[0].tolist()
    assert loss(row, (1, 2, 2, 4, 5), top_k=2) == pytest.approx(loss(row, (1, 2, 2, 4, 4)), abs=1e-12)
    assert loss(row, (1, 2, 2, 4, 5), top_k=1) == pytest.approx(loss(row, (1, 2, 2, 2, 2)), abs=1e-12)


@pytest.mark.parametrize("ties", TIES)
def test_all_tied_costs_nothing_and_does_not_count(ties: str) -> None:
    scores_BK = draw(2, 4).requires_grad_()
    found = plackett_luce(scores_BK, targets((1, 1, 1, 1), (1, 2, 3, 4)), ties=ties).loss  # type: ignore[arg-type]
    alone = plackett_luce(scores_BK[1:]).loss
    assert found.item() == pytest.approx(alone.item(), abs=1e-12)
    found.backward()
    assert torch.all(scores_BK.grad[0] == 0)  # type: ignore[index]
    assert plackett_luce(scores_BK[:1], targets((1, 1, 1, 1))).loss.item() == 0.0


@pytest.mark.parametrize("ties", TIES)
class TestLawsOfTies:
    ranks = ((1, 1, 3, 4, 4), (1, 2, 2, 2, 5), (1, 2, 3, 0, 0))

    def test_the_order_of_the_tied_changes_nothing(self, ties: str) -> None:
        row = draw(1, 5)[0].tolist()
        expected = loss(row, (1, 2, 2, 2, 5), ties=ties)
        for order in permutations((1, 2, 3)):
            assert loss([row[i] for i in (0, *order, 4)], (1, 2, 2, 2, 5), ties=ties) == pytest.approx(expected, abs=1e-12)

    def test_gradient_shift_and_padding(self, ties: str) -> None:
        of = targets(*self.ranks)
        scores_BK = draw(3, 5).requires_grad_()
        assert torch.autograd.gradcheck(lambda s: plackett_luce(s, of, ties=ties).loss, (scores_BK,))  # type: ignore[arg-type]
        holed_BK = scores_BK.detach().masked_fill(~of.present_BK, torch.nan).requires_grad_()
        found = plackett_luce(holed_BK, of, ties=ties)  # type: ignore[arg-type]
        found.loss.backward()
        shifted = plackett_luce(scores_BK.detach() + 50, of, ties=ties)  # type: ignore[arg-type]
        assert found.loss.item() == pytest.approx(shifted.loss.item(), abs=1e-10)
        assert torch.isfinite(holed_BK.grad).all()  # type: ignore[arg-type]
        assert torch.all(holed_BK.grad[~of.present_BK] == 0)  # type: ignore[index]
        torch.testing.assert_close(holed_BK.grad.sum(1), torch.zeros(3, dtype=torch.float64))  # type: ignore[union-attr]


def test_targets_move_whole() -> None:
    of = targets(
        (1, 2), weight_B=torch.ones(1), pair_weight_BKK=torch.full((1, 2, 2), 2.0), prefer_BKK=torch.full((1, 2, 2), 0.5)
    )
    there, back = of.to("meta"), of.to("cpu")
    for field in fields(of):
        assert getattr(there, field.name).device.type == "meta"
        assert torch.equal(getattr(back, field.name), getattr(of, field.name))
    assert targets((1, 2)).to("meta").prefer_BKK is None


# ── Bradley–Terry ────────────────────────────────────────────────────────────────────────────────────────────────────


def pair_cost(d: float, chance: float = 1.0) -> float:
    return chance * math.log1p(math.exp(-d)) + (1 - chance) * math.log1p(math.exp(d))


@pytest.mark.parametrize(
    ("ranks", "how", "pairs"),
    [
        ((1, 2, 3, 4), {}, list(combinations(range(4), 2))),
        ((1, 2, 3, 4), {"pairs": "adjacent"}, [(0, 1), (1, 2), (2, 3)]),
        ((1, 2, 2, 4), {}, [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]),
        ((1, 2, 2, 4), {"pairs": "adjacent"}, [(0, 1), (0, 2), (1, 3), (2, 3)]),
        ((1, 1, 3, 3), {"pairs": "adjacent"}, [(0, 2), (0, 3), (1, 2), (1, 3)]),
    ],
)
def test_which_pairs(ranks: tuple[int, ...], how: dict[str, str], pairs: list[tuple[int, int]]) -> None:
    row = draw(1, 4)
    expected = sum(pair_cost(float(row[0, i] - row[0, j])) for i, j in pairs) / len(pairs)
    assert bradley_terry(row, targets(ranks), **how).loss.item() == pytest.approx(expected, abs=1e-12)  # type: ignore[arg-type]


def test_tied_pairs_pull_together() -> None:
    row = torch.tensor([[2.0, 0.5, -1.0]], dtype=torch.float64)
    expected = (pair_cost(3.0) + pair_cost(1.5) + pair_cost(1.5, 0.5)) / 3
    assert bradley_terry(row, targets((1, 1, 3)), tied_pairs=True).loss.item() == pytest.approx(expected, abs=1e-12)
    alone = bradley_terry(row, targets((1, 1, 1)), tied_pairs=True).loss.item()
    assert alone == pytest.approx((pair_cost(1.5, 0.5) + pair_cost(3.0, 0.5) + pair_cost(1.5, 0.5)) / 3, abs=1e-12)


def test_margins_by_hand() -> None:
    row = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    found = bradley_terry(row, targets((1, 2, 3)), margin=0.5, margin_per_rank=0.25).loss.item()
    assert found == pytest.approx((pair_cost(0.25) + pair_cost(1.0) + pair_cost(0.25)) / 3, abs=1e-12)
    found = bradley_terry(row, targets((1, 1, 3)), margin=0.5, tied_pairs=True).loss.item()  # none is asked of equal ones
    assert found == pytest.approx((pair_cost(1.0, 0.5) + pair_cost(1.5) + pair_cost(0.5)) / 3, abs=1e-12)


def test_soft_labels_and_pair_weights_by_hand() -> None:
    row = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    prefer = torch.tensor([[[0.5, 0.8], [0.2, 0.5]]])
    assert bradley_terry(row, targets((1, 2), prefer_BKK=prefer)).loss.item() == pytest.approx(pair_cost(1.0, 0.8), abs=1e-7)
    row = torch.tensor([[1.0, 0.0, -2.0]], dtype=torch.float64)
    weights = torch.tensor([[[1.0, 3.0, 0.0], [3.0, 1.0, 1.0], [0.0, 1.0, 1.0]]])
    found = bradley_terry(row, targets((1, 2, 3), pair_weight_BKK=weights)).loss.item()
    assert found == pytest.approx((3 * pair_cost(1.0) + pair_cost(2.0)) / 4, abs=1e-12)


# ── both ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", list(LOSSES))
class TestBoth:
    def test_weights_of_rankings(self, name: str) -> None:
        scores_BK = draw(2, 3)
        alone = [LOSSES[name](scores_BK[i : i + 1]).loss.item() for i in range(2)]
        of = targets((1, 2, 3), (1, 2, 3), weight_B=torch.tensor([3.0, 1.0]))
        assert LOSSES[name](scores_BK, of).loss.item() == pytest.approx((3 * alone[0] + alone[1]) / 4, abs=1e-12)
        assert LOSSES[name](scores_BK, of, normaliser=8).loss.item() == pytest.approx((3 * alone[0] + alone[1]) / 8, abs=1e-12)

    def test_zero_sum_penalty_is_divided_by_the_choices(self, name: str) -> None:
        scores_BK = torch.tensor([[2.0, 1.0, -1.0]], dtype=torch.float64)
        plain = LOSSES[name](scores_BK).loss.item()
        assert LOSSES[name](scores_BK, zero_sum=0.1).loss.item() == pytest.approx(plain + 0.1 * 2.0**2 / 2, abs=1e-12)

    def test_metrics_count_only_what_differs_in_rank(self, name: str) -> None:
        of = targets((1, 1, 3, 4), (1, 1, 1, 1), (1, 2, 0, 0))
        scores_BK = torch.tensor([[0.0, 2.0, 1.0, 1.0], [9.0, 1.0, 2.0, 3.0], [1.0, 1.0, torch.nan, torch.nan]])
        found = LOSSES[name](scores_BK, of).metrics
        # pairs of the first: 0>2 wrong, 0>3 wrong, 1>2, 1>3 right, 2>3 equal; adjacent: (0,2), (1,2), (2,3); the third: equal
        assert found["pair_accuracy"].item() == pytest.approx((2.5 / 5 + 0.5) / 2)
        assert found["adjacent_accuracy"].item() == pytest.approx((1.5 / 3 + 0.5) / 2)
        assert found["top1"].item() == pytest.approx((1.0 + 0.5) / 2)
        assert found["margin"].item() == pytest.approx(((-1 - 1 + 1 + 1 + 0) / 5 + 0.0) / 2)
        assert found["score_mean"].item() == pytest.approx((4 + 15 + 2) / 10)

    def test_strict_order_is_the_default(self, name: str) -> None:
        scores_BK = draw(3, 4)
        of = strict_order(torch.ones(3, 4, dtype=torch.bool))
        assert torch.equal(of.rank_BK, torch.tensor([[1, 2, 3, 4]] * 3))
        assert LOSSES[name](scores_BK, of).loss.item() == LOSSES[name](scores_BK).loss.item()

    @pytest.mark.parametrize("ties", TIES)
    def test_single_precision_stays_single(self, name: str, ties: str) -> None:
        """Some accelerators have no double precision at all."""

        class NoDoubles(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                found = func(*args, **(kwargs or {}))
                assert not (isinstance(found, torch.Tensor) and found.dtype is torch.float64), func
                return found

        how = {"ties": ties} if name == "plackett_luce" else {"margin": 0.1, "tied_pairs": True}
        of = targets((1, 1, 3, 4), (1, 2, 0, 0), weight_B=torch.tensor([1.0, 2.0]))
        with NoDoubles():
            LOSSES[name](torch.ones(2, 4), of, **how)  # type: ignore[arg-type]

    def test_weights_of_pairs_say_what_a_ranking_counts(self, name: str) -> None:
        scores_BK = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
        of = targets((1, 2), (1, 2), pair_weight_BKK=torch.tensor([0.5, 1.0])[:, None, None].expand(2, 2, 2))
        expected = {"bradley_terry": (0.5 * pair_cost(1.0) + pair_cost(-2.0)) / 1.5}
        expected["plackett_luce"] = (pair_cost(1.0) + pair_cost(-2.0)) / 2  # does not read them
        assert LOSSES[name](scores_BK, of).loss.item() == pytest.approx(expected[name], abs=1e-12)

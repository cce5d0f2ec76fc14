"""Ranking losses: hand values, probability axioms, invariances, finite differences."""

import itertools
import math

import pytest
import torch

from starling.losses.ranking import LOSSES, bradley_terry, plackett_luce, strict_order

GENERATOR = torch.Generator().manual_seed(0)


def scores(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def test_three_answers_by_hand() -> None:
    # e^2, e^1, e^0 = 7.389056, 2.718282, 1; first choice −ln(7.389056/11.107338), second −ln(2.718282/3.718282)
    expected = (0.4076059 + 0.3132617) / 2
    assert plackett_luce(torch.tensor([[2.0, 1.0, 0.0]])).loss.item() == pytest.approx(expected, abs=1e-6)
    # pairs: −ln σ(1), −ln σ(2), −ln σ(1)
    expected = (0.3132617 + 0.1269280 + 0.3132617) / 3
    assert bradley_terry(torch.tensor([[2.0, 1.0, 0.0]])).loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_probabilities_of_all_rankings_sum_to_one(k: int) -> None:
    scores_K = scores(k)
    total = sum(
        math.exp(-(k - 1) * plackett_luce(scores_K[list(order)][None]).loss.item()) for order in itertools.permutations(range(k))
    )
    assert total == pytest.approx(1.0, abs=1e-12)


def test_equals_sequential_choice_written_as_loops() -> None:
    scores_BK = scores(4, 7)
    expected = 0.0
    for row in scores_BK.tolist():
        for k in range(6):
            expected -= (row[k] - math.log(sum(math.exp(s) for s in row[k:]))) / 6 / 4
    assert plackett_luce(scores_BK).loss.item() == pytest.approx(expected, abs=1e-12)


def test_two_answers_are_bradley_terry() -> None:
    scores_BK = scores(9, 2)
    expected = torch.nn.functional.softplus(scores_BK[:, 1] - scores_BK[:, 0]).mean()
    assert plackett_luce(scores_BK).loss.item() == pytest.approx(expected.item(), abs=1e-12)
    assert bradley_terry(scores_BK).loss.item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("name", list(LOSSES))
class TestLaws:
    def test_a_constant_per_ranking_changes_nothing(self, name: str) -> None:
        scores_BK = scores(5, 7)
        shifted = LOSSES[name](scores_BK + 100.0 * scores(5, 1)).loss
        assert shifted.item() == pytest.approx(LOSSES[name](scores_BK).loss.item(), abs=1e-9)

    def test_padding_changes_nothing_and_gets_no_gradient(self, name: str) -> None:
        scores_BK = scores(3, 4)
        lengths = [4, 2, 3]
        present_BK = torch.tensor([[k < n for k in range(6)] for n in lengths])
        padded_BK = torch.full((3, 6), torch.nan, dtype=torch.float64)
        padded_BK[:, :4] = scores_BK
        padded_BK[~present_BK] = torch.nan
        padded_BK.requires_grad_()
        padded = LOSSES[name](padded_BK, strict_order(present_BK))
        alone = [LOSSES[name](scores_BK[i : i + 1, :n]) for i, n in enumerate(lengths)]
        assert padded.loss.item() == pytest.approx(sum(o.loss.item() for o in alone) / 3, abs=1e-12)
        for metric in ("pair_accuracy", "adjacent_accuracy", "top1", "margin"):
            assert padded.metrics[metric].item() == pytest.approx(sum(o.metrics[metric].item() for o in alone) / 3, abs=1e-12)
        padded.loss.backward()
        assert padded_BK.grad is not None
        assert torch.all(padded_BK.grad[~present_BK] == 0)
        assert torch.isfinite(padded_BK.grad).all()

    def test_gradient_by_finite_differences(self, name: str) -> None:
        scores_BK = scores(3, 5).requires_grad_()
        present_BK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 2 + [False] * 3])
        assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, strict_order(present_BK)).loss, (scores_BK,))

    def test_micro_batches_add_up(self, name: str) -> None:
        scores_BK = scores(7, 4)
        parts = sum(LOSSES[name](part, normaliser=7).loss.item() for part in scores_BK.split([1, 4, 2]))
        assert parts == pytest.approx(LOSSES[name](scores_BK).loss.item(), abs=1e-12)

    def test_huge_scores_stay_finite_and_half_precision_is_raised(self, name: str) -> None:
        scores_BK = torch.tensor([[-300.0, 300.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
        outputs = LOSSES[name](scores_BK)
        assert outputs.loss.dtype is torch.float32
        outputs.loss.backward()
        assert torch.isfinite(outputs.loss)
        assert scores_BK.grad is not None
        assert torch.isfinite(scores_BK.grad).all()

    def test_half_precision_costs_no_digits(self, name: str) -> None:
        scores_BK = torch.tensor([[1.0, 0.5, -0.25, 0.125]])  # exact in bfloat16
        assert LOSSES[name](scores_BK.bfloat16()).loss.item() == pytest.approx(
            LOSSES[name](scores_BK.double()).loss.item(), abs=1e-6
        )

    def test_a_ranking_of_one_answer_contributes_nothing(self, name: str) -> None:
        present_BK = torch.tensor([[True, True], [True, False]])
        scores_BK = torch.tensor([[1.0, 0.0], [5.0, 9.0]])
        assert LOSSES[name](scores_BK, strict_order(present_BK)).loss.item() == pytest.approx(0.3132617, abs=1e-6)


def test_metrics_by_hand() -> None:
    # slots 0…3 score 3, 1, 2, 2: wrong pairs (1,2), (1,3); tie (2,3)
    metrics = plackett_luce(torch.tensor([[3.0, 1.0, 2.0, 2.0]])).metrics
    assert metrics["pair_accuracy"].item() == pytest.approx(3.5 / 6)
    assert metrics["adjacent_accuracy"].item() == pytest.approx((1 + 0 + 0.5) / 3)
    assert metrics["top1"].item() == 1.0
    assert metrics["margin"].item() == pytest.approx((2 + 1 + 1 - 1 - 1 + 0) / 6)
    assert metrics["score_mean"].item() == 2.0
    assert metrics["score_std"].item() == pytest.approx(math.sqrt(0.5))


def test_constant_scores_are_chance() -> None:
    metrics = plackett_luce(torch.zeros(2, 4)).metrics
    assert metrics["pair_accuracy"].item() == 0.5
    assert metrics["top1"].item() == 0.25
    assert plackett_luce(torch.zeros(2, 4)).loss.item() == pytest.approx(math.log(24) / 3, abs=1e-6)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_at_equal_scores_the_gradients_are_rank_scores(k: int) -> None:
    """Savage's scores 1 − Σ_{i ≤ j} 1/(K − i) for the K-wise loss (best rank test for Gumbel noise), Wilcoxon's for all pairs.

    Their squared correlation is the efficiency of all pairs where answers are alike, 1 at K = 2 and 3/4 for large K.
    """
    gradients = {}
    for name, loss in LOSSES.items():
        scores_BK = torch.zeros(1, k, dtype=torch.float64, requires_grad=True)
        loss(scores_BK).loss.backward()
        assert scores_BK.grad is not None
        gradients[name] = scores_BK.grad[0].tolist()
    savage = [1 - sum(1 / (k - i) for i in range(j + 1)) for j in range(k)]
    assert gradients["plackett_luce"] == pytest.approx([-s / (k - 1) for s in savage], abs=1e-12)
    assert gradients["bradley_terry"] == pytest.approx([-(k - 1 - 2 * j) / (k * (k - 1)) for j in range(k)], abs=1e-12)

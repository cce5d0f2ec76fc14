"""Policy objectives against hand arithmetic and their laws."""

import math

import pytest
import torch

from starling.losses.policy import apa, clipped_value_loss, gae, kl_k1, kl_k3, ppo

YES = torch.ones((1, 3), dtype=torch.bool)


def test_gae_by_hand() -> None:
    # γ = 0.5, λ = 0.5, values 1, 2, 3, rewards 0, 0, 4; the state after the last action is terminal.
    # δ₃ = 4 − 3 = 1; δ₂ = 0.5·3 − 2 = −0.5; δ₁ = 0.5·2 − 1 = 0
    # A₃ = 1; A₂ = −0.5 + 0.25·1 = −0.25; A₁ = 0 + 0.25·(−0.25) = −0.0625
    advantages, returns = gae(torch.tensor([[0.0, 0.0, 4.0]]), torch.tensor([[1.0, 2.0, 3.0]]), YES, gamma=0.5, lam=0.5)
    assert torch.allclose(advantages, torch.tensor([[-0.0625, -0.25, 1.0]]))
    assert torch.allclose(returns, torch.tensor([[0.9375, 1.75, 4.0]]))


def test_gae_with_lambda_1_is_return_minus_value_and_padding_does_not_matter() -> None:
    rewards = torch.tensor([[9.0, 1.0, 2.0, 9.0], [9.0, 5.0, 9.0, 9.0]])
    values = torch.tensor([[7.0, 0.5, 0.25, 7.0], [7.0, 1.0, 7.0, 7.0]])
    mask = torch.tensor([[False, True, True, False], [False, True, False, False]])
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert torch.allclose(advantages, torch.tensor([[0.0, 2.5, 1.75, 0.0], [0.0, 4.0, 0.0, 0.0]]))
    assert torch.allclose(returns, torch.tensor([[0.0, 3.0, 2.0, 0.0], [0.0, 5.0, 0.0, 0.0]]))


def test_apa_by_hand_and_its_minimum() -> None:
    # log-ratios 0.5 and −1, advantages 1 and 2, λ = 2: errors (0.5 − 0.5)² = 0 and (−1 − 1)² = 4; mean over 2 tokens = 2
    mask = torch.tensor([[True, True, False]])
    out = apa(
        torch.tensor([[-1.0, -3.0, 99.0]]),
        torch.tensor([[-1.5, -2.0, 0.0]]),
        torch.tensor([[1.0, 2.0, 5.0]]),
        mask,
        lam=2.0,
        normaliser=2,
    )
    assert float(out.loss) == pytest.approx(2.0)
    logprobs = torch.tensor([[-1.0, -0.5, -2.0]], requires_grad=True)
    anchor, advantages = torch.tensor([[-1.2, -0.9, -1.5]]), torch.tensor([[0.2, 0.4, -0.5]])
    (gradient,) = torch.autograd.grad(apa(logprobs, anchor, advantages, YES, lam=1.0, normaliser=3).loss, logprobs)
    assert torch.allclose(gradient, torch.zeros_like(gradient), atol=1e-6)  # log-ratio = A/λ everywhere


def test_ppo_by_hand() -> None:
    # ratios 1.5 and 0.5, ε = 0.2. A = 1 at ratio 1.5 → clipped 1.2; A = −1 at 0.5 → min(−0.5, −0.8) = −0.8; A = 2 at 1 → 2
    old = torch.zeros((1, 3))
    new = torch.tensor([[math.log(1.5), math.log(0.5), 0.0]])
    out = ppo(new, old, torch.tensor([[1.0, -1.0, 2.0]]), YES, clip=0.2, normaliser=3)
    assert float(out.loss) == pytest.approx(-(1.2 - 0.8 + 2.0) / 3)
    assert float(out.metrics["clipped"]) == pytest.approx(2 / 3)


def test_at_ratio_1_ppo_has_the_policy_gradient() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -0.3]], requires_grad=True)
    advantages = torch.tensor([[0.7, -1.1, 2.0]])
    (gradient,) = torch.autograd.grad(ppo(logprobs, logprobs.detach(), advantages, YES, clip=0.2, normaliser=3).loss, logprobs)
    assert torch.allclose(gradient, -advantages / 3)


@pytest.mark.parametrize("loss", ["apa", "ppo", "value"])
def test_micro_batches_add_up_and_masked_positions_do_not_count(loss: str) -> None:
    torch.manual_seed(0)
    a, b, c = torch.randn(3, 6, 5)
    mask = torch.rand(6, 5) > 0.4

    def value(rows: slice) -> torch.Tensor:
        args = (a[rows], b[rows], c[rows], mask[rows])
        if loss == "apa":
            return apa(*args, lam=0.5, normaliser=mask.sum()).loss
        if loss == "ppo":
            return ppo(*args, clip=0.2, normaliser=mask.sum()).loss
        return clipped_value_loss(*args, clip=0.2, normaliser=mask.sum()).loss

    whole = value(slice(None))
    assert torch.allclose(whole, value(slice(0, 2)) + value(slice(2, 6)), atol=1e-6)
    a = torch.where(mask, a, 1e6)
    assert torch.allclose(whole, value(slice(None)))


def test_value_loss_by_hand() -> None:
    # new 2, old 1, return 0, clip 0.2: near value 1.2; max(4, 1.44) = 4. new 0.5, old 1, return 0: max(0.25, 0.64) = 0.64
    mask = torch.tensor([[True, True]])
    loss = clipped_value_loss(
        torch.tensor([[2.0, 0.5]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.0]]), mask, clip=0.2, normaliser=2
    )
    assert float(loss.loss) == pytest.approx(0.5 * (4 + 0.64) / 2)


def test_kl_estimators_agree_in_expectation() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    true = (p * (p / q).log()).sum()
    assert torch.allclose((p * kl_k1(p.log(), q.log())).sum(), true)
    assert torch.allclose((p * kl_k3(p.log(), q.log())).sum(), true)
    assert (kl_k3(p.log(), q.log()) >= 0).all()

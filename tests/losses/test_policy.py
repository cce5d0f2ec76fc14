"""Objectives over tokens, GAE, the critic's loss and the KL estimators: hand arithmetic, and parity with plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from starling.losses.masked import LossOutputs
from starling.losses.policy import (
    apa,
    clipped_value_loss,
    gae,
    importance_weights,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_penalty,
    next_kl_coefficient,
    ppo,
)

YES = torch.ones((1, 3), dtype=torch.bool)


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def metrics(outputs: LossOutputs) -> dict[str, float]:
    return {name: float(value) for name, value in outputs.metrics.items()}


# ── GAE ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_gae_by_hand() -> None:
    # γ = 0.5, λ = 0.5, values 1, 2, 3, rewards 0, 0, 4; the state after the last action is terminal.
    # δ₃ = 4 − 3 = 1; δ₂ = 0.5·3 − 2 = −0.5; δ₁ = 0.5·2 − 1 = 0
    # A₃ = 1; A₂ = −0.5 + 0.25·1 = −0.25; A₁ = 0 + 0.25·(−0.25) = −0.0625
    advantages, returns = gae(row(0, 0, 4), row(1, 2, 3), YES, gamma=0.5, lam=0.5)
    assert torch.allclose(advantages, row(-0.0625, -0.25, 1.0))
    assert torch.allclose(returns, row(0.9375, 1.75, 4.0))


def test_gae_with_lambda_1_is_return_minus_value_and_padding_does_not_matter() -> None:
    nan = math.nan
    rewards = torch.tensor([[nan, 1.0, 2.0, nan], [nan, 5.0, nan, nan]])
    values = torch.tensor([[nan, 0.5, 0.25, nan], [nan, 1.0, nan, nan]])
    mask = torch.tensor([[False, True, True, False], [False, True, False, False]])
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert torch.allclose(advantages, torch.tensor([[0.0, 2.5, 1.75, 0.0], [0.0, 4.0, 0.0, 0.0]]))
    assert torch.allclose(returns, torch.tensor([[0.0, 3.0, 2.0, 0.0], [0.0, 5.0, 0.0, 0.0]]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.95), (0.7, 0.0), (0.9, 1.0), (0.0, 0.5)])
def test_gae_is_the_double_sum_of_its_definition(gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
    lengths = (7, 1, 4, 5)
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for b, length in enumerate(lengths):
        v = [*values[b, :length].tolist(), 0.0]
        delta = [float(rewards[b, t]) + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, length))
            assert float(advantages[b, t]) == pytest.approx(expected, abs=1e-12)
            assert float(returns[b, t]) == pytest.approx(expected + v[t], abs=1e-12)
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


def test_gae_gives_no_gradient_to_the_critic() -> None:
    values = row(1, 2, 3).requires_grad_()
    advantages, returns = gae(row(0, 0, 4), values, YES, gamma=1.0, lam=0.95)
    assert not advantages.requires_grad
    assert not returns.requires_grad


# ── APA ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_apa_by_hand() -> None:
    # log-ratios 0.5 and −1, advantages 1 and 2, λ = 2: targets 0.5 and 1, distances (0.5 − 0.5)² = 0 and (−1 − 1)² = 4
    mask = torch.tensor([[True, True, False]])
    out = apa(row(-1.0, -3.0, 99.0), row(-1.5, -2.0, 0.0), row(1, 2, 5), mask, lam=2.0, normaliser=2)
    assert float(out.loss) == pytest.approx(2.0)
    assert metrics(out) == pytest.approx(
        {
            "log_ratio": -0.25,
            "target": 0.75,
            "target_square": (0.25 + 1) / 2,
            "distance": 2.0,
            "approx_kl": (math.exp(0.5) - 1.5 + math.exp(-1)) / 2,
        }
    )
    weighted = apa(row(-1.0, -3.0), row(-1.5, -2.0), row(1, 2), mask[:, :2], lam=2.0, normaliser=2, weights=row(9.0, 0.5))
    assert float(weighted.loss) == pytest.approx(1.0)
    assert float(weighted.metrics["distance"]) == pytest.approx(2.0)


def test_apa_has_its_minimum_where_the_log_ratio_is_the_advantage_over_lambda() -> None:
    anchor, advantages, lam = row(-1.2, -0.9, -1.5), row(0.2, 0.4, -0.5), 0.5
    logprobs = (anchor + advantages / lam).requires_grad_()
    out = apa(logprobs, anchor, advantages, YES, lam=lam, normaliser=3)
    (gradient,) = torch.autograd.grad(out.loss, logprobs)
    assert float(out.loss.detach()) == pytest.approx(0, abs=1e-12)
    assert torch.allclose(gradient, torch.zeros_like(gradient), atol=1e-12)


def test_at_the_anchor_apa_has_2_over_lambda_times_the_policy_gradient() -> None:
    logprobs, advantages = row(-1.2, -0.9, -1.5).requires_grad_(), row(0.2, 0.4, -0.5)
    (gradient,) = torch.autograd.grad(apa(logprobs, logprobs, advantages, YES, lam=0.1, normaliser=3).loss, logprobs)
    (plain,) = torch.autograd.grad(ppo(logprobs, logprobs, advantages, YES, clip=0.2, normaliser=3).loss, logprobs)
    assert torch.allclose(gradient, 20 * plain)


def test_apa_is_reinforce_with_a_k2_penalty_of_lambda_to_the_anchor() -> None:
    lam, anchor, advantages = 0.5, row(-1.0, -0.7, -1.9), row(0.2, 0.4, -0.5)
    logprobs = row(-1.2, -0.9, -1.5).requires_grad_()
    (gradient,) = torch.autograd.grad(apa(logprobs, anchor, advantages, YES, lam=lam, normaliser=3).loss, logprobs)
    other = (-advantages * logprobs + lam * kl_k2(logprobs, anchor)).sum() / 3
    assert torch.allclose(0.5 * lam * gradient, torch.autograd.grad(other, logprobs)[0])


# ── PPO ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ppo_by_hand() -> None:
    # ratios 1.5, 0.5, 1, 1.5, 0.5 with ε = 0.2. A = 1 at 1.5: clipped at 1.2. A = −1 at 0.5: min(−0.5, −0.8) = −0.8, clipped.
    # A = 2 at 1: 2. The wrong way the clip does not hold: A = −1 at 1.5: min(−1.5, −1.2) = −1.5; A = 1 at 0.5: 0.5.
    new = row(*(math.log(r) for r in (1.5, 0.5, 1.0, 1.5, 0.5)))
    mask = torch.ones_like(new, dtype=torch.bool)
    out = ppo(new, torch.zeros_like(new), row(1, -1, 2, -1, 1), mask, clip=0.2, normaliser=5)
    assert float(out.loss) == pytest.approx(-(1.2 - 0.8 + 2.0 - 1.5 + 0.5) / 5)
    assert metrics(out) == pytest.approx(
        {
            "clipped": 2 / 5,
            "ratio": 5 / 5,
            "ratio_max": 1.5,
            "log_ratio": 2 * math.log(0.75) / 5,
            "approx_kl": -2 * math.log(0.75) / 5,  # Σ (ρ − 1) = 0 here
        }
    )


def test_the_clip_of_ppo_stops_the_gradient_only_where_the_ratio_went_far_enough() -> None:
    new = row(*(math.log(r) for r in (1.5, 0.5, 1.5, 0.5))).requires_grad_()
    mask = torch.ones_like(new, dtype=torch.bool)
    out = ppo(new, torch.zeros_like(new), row(1, -1, -1, 1), mask, clip=0.2, normaliser=1)
    (gradient,) = torch.autograd.grad(out.loss, new)
    assert torch.allclose(gradient, row(0, 0, 1.5, -0.5))  # −ρA


def test_at_ratio_1_ppo_has_the_policy_gradient() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    taken, advantages = torch.tensor([[0, 3, 4, 1]]), row(0.7, -1.1, 2.0, 0.4)
    mask = torch.tensor([[True, True, True, False]])

    def logprobs() -> Tensor:
        return logits.log_softmax(-1).gather(1, taken.T).T

    (gradient,) = torch.autograd.grad(
        ppo(logprobs(), logprobs(), advantages, mask, clip=0.2, normaliser=3).loss, logits
    )  # old with a gradient, too: it must not be used
    (expected,) = torch.autograd.grad(-(advantages * logprobs())[mask].sum() / 3, logits)
    assert torch.allclose(gradient, expected)
    assert gradient.abs().sum() > 0


def test_padding_is_no_candidate_for_the_largest_ratio() -> None:
    mask = torch.tensor([[True, True, False]])
    out = ppo(row(math.log(0.5), math.log(0.25), 0), row(0, 0, 0), row(1, 1, 1), mask, clip=0.2, normaliser=2)
    assert metrics(out)["ratio_max"] == pytest.approx(0.5)


def test_a_ratio_that_overflows_gives_no_nan() -> None:
    new = row(200.0, 200.0, -200.0).requires_grad_()
    out = ppo(new, row(0, 0, 0), row(1, -1, 1), YES, clip=0.2, normaliser=3)
    (gradient,) = torch.autograd.grad(out.loss, new)
    assert torch.isfinite(out.loss)
    assert torch.isfinite(gradient).all()
    assert metrics(out)["ratio_max"] == pytest.approx(math.exp(20))


# ── the critic's loss ────────────────────────────────────────────────────────────────────────────────────────────────


def test_value_loss_by_hand() -> None:
    # new 2, old 1, return 0, clip 0.2: near value 1.2; max(4, 1.44) = 4. new 0.5, old 1, return 0: near 0.8, max(0.25, 0.64)
    mask = torch.tensor([[True, True]])
    values = row(2.0, 0.5).requires_grad_()
    out = clipped_value_loss(values, row(1, 1), row(0, 0), mask, clip=0.2, normaliser=2)
    assert float(out.loss.detach()) == pytest.approx(0.5 * (4 + 0.64) / 2)
    assert metrics(out) == pytest.approx({"value_error": (4 + 0.25) / 2, "value_clipped": 0.5})
    (gradient,) = torch.autograd.grad(out.loss, values)
    assert torch.allclose(gradient, row(2.0 / 2, 0.0))  # (V − R)/2 where the clip does not hold


def test_value_loss_without_a_clip_is_half_the_squared_error() -> None:
    out = clipped_value_loss(row(2.0, 0.5, -1), row(9, 9, 9), row(0, 0, 1), YES, clip=math.inf, normaliser=3)
    assert float(out.loss) == pytest.approx(0.5 * (4 + 0.25 + 4) / 3)
    assert metrics(out)["value_clipped"] == 0


# ── plain loops ──────────────────────────────────────────────────────────────────────────────────────────────────────


def plain_apa(new: list[float], old: list[float], advantages: list[float], weights: list[float]) -> float:
    return sum(w * (n - o - a / 0.5) ** 2 for n, o, a, w in zip(new, old, advantages, weights, strict=True))


def plain_ppo(new: list[float], old: list[float], advantages: list[float], weights: list[float]) -> float:
    total = 0.0
    for n, o, a, w in zip(new, old, advantages, weights, strict=True):
        ratio = math.exp(n) / math.exp(o)
        within = 1.2 if ratio > 1.2 else 0.8 if ratio < 0.8 else ratio
        total -= w * min(ratio * a, within * a)
    return total


@pytest.mark.parametrize(
    ("objective", "plain"),
    [
        (lambda *args, **rest: apa(*args, lam=0.5, **rest), plain_apa),
        (lambda *args, **rest: ppo(*args, clip=0.2, **rest), plain_ppo),
    ],
)
def test_parity_with_a_loop_over_tokens(
    objective: Callable[..., LossOutputs], plain: Callable[[list[float], list[float], list[float], list[float]], float]
) -> None:
    generator = torch.Generator().manual_seed(3)
    old, advantages = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    new = old + 0.3 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    weights = torch.rand(6, 5, generator=generator, dtype=torch.float64) * 2
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 2, 4, 5])[:, None]
    out = objective(new, old, advantages, mask, normaliser=20, weights=weights)
    expected = sum(
        plain(*(x[b, : int(mask[b].sum())].tolist() for x in (new, old, advantages, weights))) for b in range(len(mask))
    )
    assert float(out.loss) == pytest.approx(expected / 20, abs=1e-12)


# ── KL ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

P, Q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)


def test_kl_estimators_by_hand() -> None:
    # π = 1/2, π_ref = 1/4: d = −log 2
    a, b = row(math.log(0.5)), row(math.log(0.25))
    assert float(kl_k1(a, b)) == pytest.approx(math.log(2))
    assert float(kl_k2(a, b)) == pytest.approx(math.log(2) ** 2 / 2)
    assert float(kl_k3(a, b)) == pytest.approx(0.5 - 1 + math.log(2))


def test_k1_and_k3_have_the_kl_as_their_expectation() -> None:
    true = (P * (P / Q).log()).sum()
    assert torch.allclose((P * kl_k1(P.log(), Q.log())).sum(), true)
    assert torch.allclose((P * kl_k3(P.log(), Q.log())).sum(), true)
    assert (kl_k3(P.log(), Q.log()) >= 0).all()


def test_the_mean_over_samples_comes_to_the_kl_with_less_spread_for_k3_when_policies_are_near() -> None:
    near = (P.log() + torch.tensor([0.1, -0.1, 0.05])).softmax(0)
    drawn = torch.multinomial(P, 100_000, replacement=True, generator=torch.Generator().manual_seed(4))
    true = float((P * (P / near).log()).sum())
    k1, k2, k3 = (f(P.log()[drawn], near.log()[drawn]) for f in (kl_k1, kl_k2, kl_k3))
    for samples in (k1, k3):
        assert float(samples.mean()) == pytest.approx(true, abs=4 * float(samples.std()) / math.sqrt(len(samples)))
    assert float(k2.mean()) == pytest.approx(true, rel=0.1)  # biased, little when near
    assert k3.std() < k1.std() / 5


def test_k2_is_the_kl_to_second_order() -> None:
    direction = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)
    off = []
    for size in (0.1, 0.05):
        near = (P.log() + size * direction).softmax(0)
        off.append(float((P * kl_k2(P.log(), near.log())).sum() - (P * (P / near).log()).sum()))
    assert off[0] / off[1] == pytest.approx(8, rel=0.1)  # what is left is of third order


def test_in_the_reward_only_k1_has_the_gradient_of_the_kl() -> None:
    logits = P.log().clone().requires_grad_()

    def policy_gradient(name: str) -> Tensor:
        """Σ π k ∇ log π: what a penalty k in the reward adds to the loss's gradient."""
        logprobs = logits.log_softmax(0)
        penalty = kl_penalty(name, logprobs, Q.log())  # type: ignore[arg-type]
        return torch.autograd.grad((logprobs.exp() * penalty).detach() @ logprobs, logits)[0]

    def kl_gradient(*, forward: bool) -> Tensor:
        logprobs = logits.log_softmax(0)
        kl = logprobs.exp() @ (logprobs - Q.log()) if forward else Q @ (Q.log() - logprobs)
        return torch.autograd.grad(kl, logits)[0]

    assert torch.allclose(policy_gradient("k1"), kl_gradient(forward=True))
    assert torch.allclose(policy_gradient("k3"), kl_gradient(forward=True) - kl_gradient(forward=False))
    assert not torch.allclose(policy_gradient("k2"), kl_gradient(forward=True), atol=0.01)


def test_kl_k3_keeps_its_digits_between_near_policies() -> None:
    a = torch.tensor([-1.0], dtype=torch.float32)
    assert float(kl_k3(a, a + 1e-3)) == pytest.approx(5e-7, rel=1e-2)


def test_kl_penalty_by_name() -> None:
    a, b = row(-1, -2, -3), row(-1.5, -1, -3)
    for name, function in (("k1", kl_k1), ("k2", kl_k2), ("k3", kl_k3)):
        assert torch.equal(kl_penalty(name, a, b), function(a, b))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no KL estimator is called 'k4'"):
        kl_penalty("k4", a, b)  # type: ignore[arg-type]


def test_next_kl_coefficient_by_hand() -> None:
    # 10 % too much: e = 0.1, 448 replies of a horizon of 10,000: 0.05 (1 + 0.1 · 0.0448)
    assert next_kl_coefficient(0.05, 6.6, 448, target=6, horizon=10_000) == pytest.approx(0.05 * 1.00448)
    assert next_kl_coefficient(0.05, 60, 448, target=6, horizon=10_000) == pytest.approx(0.05 * (1 + 0.2 * 0.0448))
    assert next_kl_coefficient(0.05, -1, 448, target=6, horizon=10_000) == pytest.approx(0.05 * (1 - 0.2 * 0.0448))
    assert next_kl_coefficient(0.05, 6, 448, target=6, horizon=10_000) == 0.05


def test_next_kl_coefficient_refuses_what_would_make_it_meaningless() -> None:
    with pytest.raises(ValueError, match="nan"):
        next_kl_coefficient(0.05, math.nan, 448, target=6, horizon=10_000)
    with pytest.raises(ValueError, match="too many"):
        next_kl_coefficient(0.05, 0, 5_000, target=6, horizon=1_000)
    assert next_kl_coefficient(0.05, 0, 4_999, target=6, horizon=1_000) > 0


def test_the_adaptive_coefficient_settles_where_the_kl_is_the_target() -> None:
    coefficient = 0.5
    for _ in range(600):
        coefficient = next_kl_coefficient(coefficient, 1.2 / coefficient, 500, target=6, horizon=10_000)  # KL = 1.2/β
    assert coefficient == pytest.approx(0.2, rel=1e-3)


# ── importance weights ───────────────────────────────────────────────────────────────────────────────────────────────


def test_importance_weights_by_hand() -> None:
    # π/μ = 1, 4 and 0.5; cap 2
    training = row(-1.0, -1.0 + math.log(4), -1.0 + math.log(0.5), math.nan).requires_grad_()
    mask = torch.tensor([[True, True, True, False]])
    weights, found = importance_weights(training, row(-1, -1, -1, 0), mask, cap=2.0)
    assert torch.allclose(weights, row(1, 2, 0.5, 0))
    assert not weights.requires_grad
    expected = {
        "weight": 3.5 / 3,
        "weight_max": 4.0,
        "weight_capped": 1 / 3,
        "mismatch": (math.log(4) + math.log(2)) / 3,
        "mismatch_kl": (3 - math.log(4) - 0.5 + math.log(2)) / 3,
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected)


def test_without_a_cap_the_weights_turn_an_expectation_under_the_engine_into_one_under_the_policy() -> None:
    mask = torch.ones((1, 3), dtype=torch.bool)
    weights, found = importance_weights(P.log()[None], Q.log()[None], mask, cap=math.inf)
    values = row(3, -1, 2)
    assert float((Q * weights * values).sum()) == pytest.approx(float((P * values).sum()))
    assert found["weight_capped"] == 0

"""Objectives over whole replies, RLOO and P3O: hand arithmetic, parity with plain loops, and what the two share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from starling.losses.policy import count_pairs, p3o, pairs_of, rloo, rloo_advantages

LOG2 = math.log(2)


def matrix(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_replies(seed: int, group: Sequence[int], moved: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logprobs, old, reference [B, 5], rewards, group, mask; lengths from 1 to 5."""
    generator = torch.Generator().manual_seed(seed)
    reference = -torch.rand(len(group), 5, generator=generator, dtype=torch.float64) * 3
    old = reference + 0.2 * torch.randn(reference.shape, generator=generator, dtype=torch.float64)
    new = old + moved * torch.randn(reference.shape, generator=generator, dtype=torch.float64)
    rewards = torch.randn(len(group), generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 6, (len(group),), generator=generator)
    return new, old, reference, rewards, torch.tensor(group), torch.arange(5) < lengths[:, None]


# ── RLOO ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rloo_advantages_by_hand() -> None:
    # group 7: rewards 1, 2, 6: 1 − (2 + 6)/2, 2 − (1 + 6)/2, 6 − (1 + 2)/2; group 3: 5, 4
    found = rloo_advantages(vector(1, 5, 2, 4, 6), torch.tensor([7, 3, 7, 3, 7]))
    assert torch.allclose(found, vector(-3, 1, -1.5, -1, 4.5))


def test_rloo_advantages_sum_to_0_and_are_the_scaled_distance_from_the_mean() -> None:
    group = torch.tensor([0, 0, 0, 4, 4, 4, 4, 9, 9])
    rewards = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    found = rloo_advantages(rewards, group)
    assert not found.requires_grad
    for g, n in ((0, 3), (4, 4), (9, 2)):
        of_group = found[group == g]
        assert float(of_group.sum()) == pytest.approx(0, abs=1e-12)
        mine = rewards.detach()[group == g]
        assert torch.allclose(of_group, n / (n - 1) * (mine - mine.mean()))
    shifted = rloo_advantages(rewards + torch.tensor([100.0, 200.0, 300.0]).repeat_interleave(torch.tensor([3, 4, 2])), group)
    assert torch.allclose(shifted, found)


def test_a_reply_without_another_to_its_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="two or more"):
        rloo_advantages(vector(1, 2, 3), torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="two or more"):
        pairs_of(torch.tensor([0, 0, 1]))
    assert len(rloo_advantages(vector(), torch.tensor([], dtype=torch.int64))) == 0


def test_rloo_by_hand() -> None:
    # whole-reply ratios 2·0.75 = 1.5, 0.5, 1; ε = 0.2; A 1, −1, 2: 1.2 and −0.8 are clipped, 2 is not
    new = matrix((LOG2, math.log(0.75)), (math.log(0.5), math.nan), (1, -1))
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    out = rloo(new, matrix((0, 0), (0, 0), (0, 0)), vector(1, -1, 2), mask, clip=0.2, normaliser=3)
    assert float(out.loss) == pytest.approx(-(1.2 - 0.8 + 2) / 3)
    assert {name: float(value) for name, value in out.metrics.items()} == pytest.approx(
        {
            "clipped": 2 / 3,
            "ratio": 1.0,
            "ratio_max": 1.5,
            "log_ratio": math.log(0.75) / 3,
            "approx_kl": -math.log(0.75) / 3,
        }
    )
    plain = rloo(new, matrix((0, 0), (0, 0), (0, 0)), vector(1, -1, 2), mask, clip=None, normaliser=3)
    assert float(plain.loss) == pytest.approx(-(math.log(1.5) + LOG2 + 0) / 3)
    assert "clipped" not in plain.metrics


@pytest.mark.parametrize("clip", [None, 0.2, 10.0])
def test_rloo_on_the_policy_that_sampled_has_the_policy_gradient(clip: float | None) -> None:
    _, old, _, rewards, group, mask = random_replies(1, (0, 0, 1, 1, 1), 0.0)
    advantages = rloo_advantages(rewards, group)
    logprobs = old.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(rloo(logprobs, old, advantages, mask, clip=clip, normaliser=5).loss, logprobs)
    assert torch.allclose(gradient, -(advantages[:, None] * mask) / 5)


def test_rloo_matches_a_loop_over_replies_and_its_gradient_is_that_of_its_value() -> None:
    new, old, _, rewards, group, mask = random_replies(2, (0, 0, 0, 1, 1, 2, 2), 0.15)
    advantages = rloo_advantages(rewards, group)
    total, clipped = 0.0, 0
    for b in range(len(group)):
        n = int(mask[b].sum())
        ratio = math.exp(sum(new[b, :n].tolist()) - sum(old[b, :n].tolist()))
        a = float(advantages[b])
        total -= min(ratio * a, min(max(ratio, 0.8), 1.2) * a)
        clipped += (a > 0 and ratio > 1.2) or (a < 0 and ratio < 0.8)
    out = rloo(new, old, advantages, mask, clip=0.2, normaliser=7)
    assert 0 < clipped < 7
    assert float(out.loss) == pytest.approx(total / 7, abs=1e-12)
    assert float(out.metrics["clipped"]) == pytest.approx(clipped / 7)
    assert torch.autograd.gradcheck(lambda x: rloo(x, old, advantages, mask, clip=0.2, normaliser=7).loss, new.requires_grad_())


@pytest.mark.parametrize("clip", [None, 0.5])
def test_weights_of_rloo_scale_each_tokens_share_of_the_gradient(clip: float | None) -> None:
    new, old, _, rewards, group, mask = random_replies(3, (0, 0, 1, 1), 0.02)
    advantages = rloo_advantages(rewards, group)
    weights = torch.rand(mask.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64) + 0.5
    weights[~mask] = math.nan
    logprobs = new.clone().requires_grad_()

    def gradient(given: Tensor | None) -> Tensor:
        out = rloo(logprobs, old, advantages, mask, clip=clip, normaliser=4, weights=given)
        return torch.autograd.grad(out.loss, logprobs)[0]

    assert torch.allclose(gradient(weights), gradient(None) * torch.where(mask, weights, 0.0))
    even, twice = (rloo(new, old, advantages, mask, clip=clip, normaliser=4, weights=w) for w in (None, 2 * mask.double()))
    assert float(twice.loss) == pytest.approx(2 * float(even.loss))


# ── P3O ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_p3o_by_hand() -> None:
    # Sums over tokens. π/π_ref: d = 0.3 and −0.1, so Δ = 0.4; at sampling 0.1 and 0, so Δ_old = 0.1.
    # β = 0.5: q = 2 − 1 − 0.5·0.4 = 0.8; w = e^(0.2 − 0.1) = e^0.1; Δ moved by 0.3 > ε = 0.2: Δ_clip = 0.3
    # L = ½ max(−0.8 w 0.4, −0.8 w 0.3) = −½ · 0.8 w 0.3
    new = matrix((-1.0, -0.7), (-1.1, math.nan))
    old = matrix((-1.0, -0.9), (-1.0, math.nan))
    reference = matrix((-1.0, -1.0), (-1.0, math.nan))
    mask = torch.tensor([[True, True], [True, False]])
    out = p3o(new, old, reference, vector(2, 1), torch.tensor([5, 5]), mask, kl=0.5, clip=0.2, weight_clip=10, normaliser=1)
    w = math.exp(0.1)
    assert float(out.loss) == pytest.approx(-0.5 * 0.8 * w * 0.3)
    expected = {"clipped": 1, "weight": w, "weight_max": w, "weight_capped": 0, "advantage": 0.8, "margin": 0.4}
    assert {name: float(value) for name, value in out.metrics.items()} == pytest.approx(
        expected | {"log_ratio": 0.05, "approx_kl": (math.exp(0.2) - 1.2 + math.exp(-0.1) - 0.9) / 2}
    )


def plain_p3o(new: list[float], old: list[float], rewards: list[float], kl: float, clip: float, weight_clip: float) -> float:
    """The published code's formula for one pair, from sums log π/π_ref of its replies; the loss before the mean over pairs."""
    q = (rewards[0] - rewards[1]) - kl * (new[0] - new[1])
    w = min(max(math.exp((new[0] - old[0]) + (new[1] - old[1])), 1 / weight_clip), weight_clip)
    delta, old_delta = new[0] - new[1], old[0] - old[1]
    near = min(max(delta, old_delta - clip), old_delta + clip)
    return max(-q * w * delta, -q * w * near) / 2


@pytest.mark.parametrize("group", [(0, 0, 1, 1, 2, 2), (0, 1, 2, 0, 1, 2), (3, 3, 3, 3, 1, 1), (0, 0, 0, 0, 0, 0)])
def test_p3o_matches_the_published_formula_over_all_pairs_of_each_group(group: tuple[int, ...]) -> None:
    new, old, reference, rewards, group_B, mask = random_replies(4, group, 0.3)
    above, old_above = ([float((x - reference)[b][mask[b]].sum()) for b in range(6)] for x in (new, old))
    pairs = [(i, j) for i, j in itertools.combinations(range(6), 2) if group[i] == group[j]]
    total = sum(
        plain_p3o([above[i], above[j]], [old_above[i], old_above[j]], [float(rewards[i]), float(rewards[j])], 0.3, 0.2, 2.0)
        for i, j in pairs
    )
    assert count_pairs(group_B) == len(pairs)
    assert list(zip(*(index.tolist() for index in pairs_of(group_B)), strict=True)) == pairs
    out = p3o(new, old, reference, rewards, group_B, mask, kl=0.3, clip=0.2, weight_clip=2.0, normaliser=len(pairs))
    assert float(out.loss) == pytest.approx(total / len(pairs), abs=1e-12)
    assert 0 < float(out.metrics["clipped"]) < 1
    assert 0 < float(out.metrics["weight_capped"]) < 1


def test_gradients_of_p3o_flow_only_through_the_difference_of_log_ratios() -> None:
    new, old, reference, rewards, group, mask = random_replies(6, (0, 0), 0.05)
    inputs = [x.clone().requires_grad_() for x in (new, old, reference, rewards)]
    loss = p3o(*inputs, group, mask, kl=0.3, clip=9.0, weight_clip=10, normaliser=1).loss
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
    above = torch.where(mask, new - reference, 0.0).sum(1)
    moved = torch.where(mask, new - old, 0.0).sum()
    q, w = float(rewards[0] - rewards[1] - 0.3 * (above[0] - above[1])), math.exp(float(moved))
    assert torch.allclose(gradients[0], -0.5 * q * w * vector(1, -1)[:, None] * mask)
    assert gradients[1:] == (None, None, None)


@pytest.mark.parametrize("group", [(0, 0, 1, 1, 2, 2), (0, 0, 0, 1, 1, 1), (0, 0, 0, 0, 0, 0)])
def test_at_ratio_1_p3o_has_the_gradient_of_rloo_with_the_kl_in_its_reward(group: tuple[int, ...]) -> None:
    _, old, reference, rewards, group_B, mask = random_replies(7, group, 0.0)
    logprobs = old.clone().requires_grad_()
    pairwise = p3o(
        logprobs, old, reference, rewards, group_B, mask, kl=0.3, clip=0.2, weight_clip=10, normaliser=count_pairs(group_B)
    )
    with_kl = rewards - 0.3 * torch.where(mask, old - reference, 0.0).sum(1)
    single = rloo(logprobs, old, rloo_advantages(with_kl, group_B), mask, clip=0.2, normaliser=6)
    expected = torch.autograd.grad(single.loss, logprobs)[0]
    assert torch.allclose(torch.autograd.grad(pairwise.loss, logprobs)[0], expected)
    assert expected.abs().sum() > 0.1


def test_p3o_does_not_see_a_constant_added_to_the_rewards_of_a_prompt_or_the_order_of_its_replies() -> None:
    group = (0, 0, 0, 1, 1)
    new, old, reference, rewards, group_B, mask = random_replies(8, group, 0.3)

    def loss(order: Sequence[int], shift: Tensor) -> Tensor:
        rows = torch.tensor(order)
        shifted = (rewards + shift)[rows]
        return p3o(
            new[rows],
            old[rows],
            reference[rows],
            shifted,
            group_B[rows],
            mask[rows],
            kl=0.3,
            clip=0.2,
            weight_clip=3,
            normaliser=4,
        ).loss

    plain = loss(range(5), torch.zeros(5))
    assert torch.allclose(loss(range(5), vector(7, 7, 7, -20, -20)), plain)
    assert torch.allclose(loss((4, 2, 0, 3, 1), torch.zeros(5)), plain)
    assert not torch.allclose(loss(range(5), vector(7, 0, 0, 0, 0)), plain)


def test_pairs_of_a_cut_group_are_refused_in_the_objective() -> None:
    new, old, reference, rewards, group, mask = random_replies(9, (0, 0, 1), 0.1)
    with pytest.raises(ValueError, match="one micro-batch"):
        p3o(new, old, reference, rewards, group, mask, kl=0.3, clip=0.2, weight_clip=3, normaliser=1)

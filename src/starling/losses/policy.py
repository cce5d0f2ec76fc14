"""Policy objectives, advantages and KL estimators: pure functions of tensors.

Sources: GAE, arXiv 1506.02438 eq. 16; PPO, arXiv 1707.06347 eq. 7; APA, arXiv 2306.02231 (squared distance to the
advantage-induced policy); KL estimators, J. Schulman's note "Approximating KL divergence" (2020).
Departures from the two published APA codes: masks select reply tokens exactly (one of them is off by one), whitening
sees reply tokens only, denominators are arguments so that micro-batches add up, and the policy loss is never switched off
inside the loss (the original gates on the value loss; here the trainer warms the critic up first).

Shape legend: B rollouts, T positions of the reply tokens' predictions. mask_BT True means: this position predicts a
token of the reply.
"""

from __future__ import annotations

import torch
from torch import Tensor

from starling.losses.masked import LossOutputs, masked_mean, masked_sum


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the masked positions of each row.

    Args:
        rewards_BT: reward received after the action of each position.
        values_BT: value of the state before that action.
        mask_BT: True at reply positions; they are contiguous in each row, the state after the last one is terminal.
        gamma: discount.
        lam: λ of GAE; 1 gives returns minus values, 0 gives one-step errors.

    Returns:
        (advantages_BT, returns_BT), zero outside the mask; returns = advantages + values.
    """
    advantages_BT = torch.zeros_like(values_BT)
    carry_B = torch.zeros_like(values_BT[:, 0])
    next_value_B = torch.zeros_like(values_BT[:, 0])
    for t in range(values_BT.shape[1] - 1, -1, -1):
        here_B = mask_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        carry_B = torch.where(here_B, delta_B + gamma * lam * carry_B, 0.0)
        next_value_B = torch.where(here_B, values_BT[:, t], 0.0)
        advantages_BT[:, t] = carry_B
    return advantages_BT, torch.where(mask_BT, advantages_BT + values_BT, 0.0)


def apa(
    logprobs_BT: Tensor, anchor_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, *, lam: float, normaliser: Tensor | float
) -> LossOutputs:
    """APA: mean over tokens of (log π − log π_anchor − A/λ)².

    Args:
        logprobs_BT: log-probability of each taken action under the policy being trained.
        anchor_BT: the same under the anchor: the policy that sampled (Starling) or the initial one (paper).
        advantages_BT: advantages, no gradient.
        lam: λ; the minimum of each term sits where the log-ratio equals A/λ.
        normaliser: number of reply tokens in the whole optimiser step.
    """
    log_ratio_BT = logprobs_BT - anchor_BT
    error_BT = (log_ratio_BT - advantages_BT / lam) ** 2
    loss = masked_sum(error_BT, mask_BT) / normaliser
    return LossOutputs(loss=loss, metrics={"log_ratio": masked_mean(log_ratio_BT.detach(), mask_BT)})


def ppo(
    logprobs_BT: Tensor, old_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, *, clip: float, normaliser: Tensor | float
) -> LossOutputs:
    """PPO: minus the mean over tokens of min(ρA, clip(ρ, 1−ε, 1+ε)A), ρ = π/π_old.

    Args:
        logprobs_BT, old_BT: log-probability of each action under the policy trained and under the one that sampled.
        advantages_BT: advantages, no gradient.
        clip: ε.
        normaliser: number of reply tokens in the whole optimiser step.
    """
    ratio_BT = (logprobs_BT - old_BT).exp()
    gain_BT = torch.minimum(ratio_BT * advantages_BT, ratio_BT.clamp(1 - clip, 1 + clip) * advantages_BT)
    loss = -masked_sum(gain_BT, mask_BT) / normaliser
    clipped_BT = ((ratio_BT - 1).abs() > clip).float()
    return LossOutputs(loss=loss, metrics={"clipped": masked_mean(clipped_BT.detach(), mask_BT)})


def clipped_value_loss(
    values_BT: Tensor, old_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, *, clip: float, normaliser: Tensor | float
) -> Tensor:
    """Half the mean over tokens of max((V−R)², (V_clipped−R)²), V_clipped within ±clip of the old value."""
    near_BT = old_BT + (values_BT - old_BT).clamp(-clip, clip)
    error_BT = torch.maximum((values_BT - returns_BT) ** 2, (near_BT - returns_BT) ** 2)
    return 0.5 * masked_sum(error_BT, mask_BT) / normaliser


def kl_k1(logprobs_BT: Tensor, reference_BT: Tensor) -> Tensor:
    """Per-token estimate log π − log π_ref: unbiased, can be negative."""
    return logprobs_BT - reference_BT


def kl_k3(logprobs_BT: Tensor, reference_BT: Tensor) -> Tensor:
    """Per-token estimate e^d − 1 − d with d = log π_ref − log π: unbiased and never negative."""
    difference_BT = reference_BT - logprobs_BT
    return difference_BT.exp() - 1 - difference_BT

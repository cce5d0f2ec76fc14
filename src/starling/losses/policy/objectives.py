"""Objectives over tokens (APA, PPO, the critic's) and over whole replies (RLOO); conventions in the package's docstring.

Sources: APA, arXiv 2306.02231; PPO, arXiv 1707.06347 eq. 7; clipped values, as in OpenAI's baselines (ppo2); RLOO,
arXiv 2402.14740, with the ratio of the whole reply as in TRL.
Departure: log-ratios stop at ±20 inside `exp` (as in verl), so a ratio never overflows into a NaN gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from starling.losses.masked import LossOutputs, masked_sum

LARGEST_LOG_RATIO = 20.0


def kept(mask: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors with 0 wherever the mask is False: NaN there would come back through the gradient of `exp` or a square."""
    return tuple(torch.where(mask, tensor, 0.0) for tensor in tensors)


def ratio_of(log_ratio: Tensor) -> Tensor:
    """π / π_old from its logarithm, between e^−20 and e^20."""
    return log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()


def apa(
    logprobs_BR: Tensor,
    anchor_BR: Tensor,
    advantages_BR: Tensor,
    mask_BR: Tensor,
    *,
    lam: float,
    normaliser: Tensor | float,
    weights: Tensor | None = None,
) -> LossOutputs:
    """APA: mean over tokens of (log π − log π_anchor − A/λ)².

    Args:
        logprobs_BR: log-probability of each token under the policy being trained.
        anchor_BR: the same under the anchor: the policy that sampled (Starling) or the initial one (paper).
        advantages_BR: A.
        mask_BR: True means a token of a reply.
        lam: λ > 0; the minimum of each term lies where the log-ratio equals A/λ.
        normaliser: reply tokens in the whole optimiser step.
        weights: [B, R]; multiply each token's term.

    Returns:
        loss, and the metrics, means over tokens: `log_ratio` to the anchor, `target` A/λ, `target_square` (A/λ)², `distance`
        (log-ratio − A/λ)², `approx_kl` ρ − 1 − log ρ with ρ = π/π_anchor.
    """
    logprobs_BR, anchor_BR, advantages_BR = kept(mask_BR, logprobs_BR, anchor_BR.detach(), advantages_BR.detach())
    log_ratio_BR = logprobs_BR - anchor_BR
    target_BR = advantages_BR / lam
    distance_BR = (log_ratio_BR - target_BR) ** 2
    loss = masked_sum(_weighted(distance_BR, weights, mask_BR), mask_BR) / normaliser
    movement = _movement(log_ratio_BR, mask_BR, normaliser)
    metrics = {
        "log_ratio": movement["log_ratio"],
        "approx_kl": movement["approx_kl"],
        "target": masked_sum(target_BR, mask_BR) / normaliser,
        "target_square": masked_sum(target_BR**2, mask_BR) / normaliser,
        "distance": masked_sum(distance_BR.detach(), mask_BR) / normaliser,
    }
    return LossOutputs(loss=loss, metrics=metrics)


def ppo(
    logprobs_BR: Tensor,
    old_BR: Tensor,
    advantages_BR: Tensor,
    mask_BR: Tensor,
    *,
    clip: float,
    normaliser: Tensor | float,
    weights: Tensor | None = None,
) -> LossOutputs:
    """PPO: minus the mean over tokens of min(ρA, clip(ρ, 1−ε, 1+ε)A), ρ = π/π_old.

    Args:
        logprobs_BR, old_BR: log-probability of each token under the policy being trained and under the one that sampled.
        advantages_BR: A.
        mask_BR: True means a token of a reply.
        clip: ε.
        normaliser: reply tokens in the whole optimiser step.
        weights: [B, R]; multiply each token's term.

    Returns:
        loss (without an entropy bonus), and the metrics, over tokens: `clipped`, the share that the clip keeps from moving on;
        means `ratio` ρ, `log_ratio`, `approx_kl` ρ − 1 − log ρ (an estimate of KL(π_old ‖ π)); `ratio_max`.
    """
    logprobs_BR, old_BR, advantages_BR = kept(mask_BR, logprobs_BR, old_BR.detach(), advantages_BR.detach())
    log_ratio_BR = logprobs_BR - old_BR
    gain_BR, clipped_BR = _clipped_gain(ratio_of(log_ratio_BR), advantages_BR, clip)
    loss = -masked_sum(_weighted(gain_BR, weights, mask_BR), mask_BR) / normaliser
    metrics = {
        "clipped": masked_sum(clipped_BR.to(gain_BR.dtype), mask_BR) / normaliser,
        **_movement(log_ratio_BR, mask_BR, normaliser),
    }
    return LossOutputs(loss=loss, metrics=metrics)


def rloo(
    logprobs_BR: Tensor,
    old_BR: Tensor,
    advantages_B: Tensor,
    mask_BR: Tensor,
    *,
    clip: float | None,
    normaliser: Tensor | float,
    weights: Tensor | None = None,
) -> LossOutputs:
    """Minus the mean over replies of min(ρA, clip(ρ, 1−ε, 1+ε)A), ρ = π/π_old of the whole reply; of A log π without a clip.

    Args:
        logprobs_BR, old_BR: log-probability of each token under the policy being trained and under the one that sampled.
        advantages_B: A of each reply, from `rloo_advantages`.
        mask_BR: True means a token of a reply; a reply without one costs nothing.
        clip: ε; None is plain REINFORCE, whose gradient is right for the first step after sampling only.
        normaliser: replies in the whole optimiser step.
        weights: [B, R]; multiply each token's share of the gradient; equal ones along a reply multiply its term.

    Returns:
        loss, and the metrics, over replies: those of `ppo` for ρ of the whole reply (`clipped` only with a clip).
    """
    logprobs_BR, old_BR = kept(mask_BR, logprobs_BR, old_BR.detach())
    there_B = mask_BR.any(1)
    (advantages_B,) = kept(there_B, advantages_B.detach())
    log_ratio_B = (logprobs_BR.detach() - old_BR).sum(1)
    metrics = _movement(log_ratio_B, there_B, normaliser)
    if clip is None:
        gain_B = advantages_B * _weighted(logprobs_BR, weights, mask_BR).sum(1)
        return LossOutputs(loss=-masked_sum(gain_B, there_B) / normaliser, metrics=metrics)
    scale_B = torch.ones_like(log_ratio_B)
    step_BR = logprobs_BR - logprobs_BR.detach()  # 0, with the gradient of log π
    if weights is not None:
        (weights_BR,) = kept(mask_BR, weights.detach())
        scale_B = weights_BR.sum(1) / mask_BR.sum(1).clamp(min=1)
        step_BR = step_BR * weights_BR / scale_B.clamp(min=1e-8)[:, None]
    gain_B, clipped_B = _clipped_gain(ratio_of(log_ratio_B + step_BR.sum(1)), advantages_B, clip)
    metrics["clipped"] = masked_sum(clipped_B.to(gain_B.dtype), there_B) / normaliser
    return LossOutputs(loss=-masked_sum(scale_B * gain_B, there_B) / normaliser, metrics=metrics)


def clipped_value_loss(
    values_BR: Tensor, old_BR: Tensor, returns_BR: Tensor, mask_BR: Tensor, *, clip: float, normaliser: Tensor | float
) -> LossOutputs:
    """Half the mean over tokens of max((V−R)², (V_clipped−R)²), V_clipped within ±clip of the value at sampling.

    Args:
        values_BR, old_BR: the critic's value of the state before each token, now and when the reply was sampled.
        returns_BR: R, from `gae`.
        mask_BR: True means a token of a reply.
        clip: largest change of a value, in units of reward; infinity for none.
        normaliser: reply tokens in the whole optimiser step.

    Returns:
        loss, and the metrics, over tokens: `value_error`, mean of (V−R)²; `value_clipped`, the share that the clip keeps from
        moving on.
    """
    values_BR, old_BR, returns_BR = kept(mask_BR, values_BR, old_BR.detach(), returns_BR.detach())
    near_BR = old_BR + (values_BR - old_BR).clamp(-clip, clip)
    plain_BR, clipped_BR = (values_BR - returns_BR) ** 2, (near_BR - returns_BR) ** 2
    stopped_BR = ((values_BR - old_BR).abs() > clip) & (clipped_BR > plain_BR)
    return LossOutputs(
        loss=0.5 * masked_sum(torch.maximum(plain_BR, clipped_BR), mask_BR) / normaliser,
        metrics={
            "value_error": masked_sum(plain_BR.detach(), mask_BR) / normaliser,
            "value_clipped": masked_sum(stopped_BR.to(plain_BR.dtype), mask_BR) / normaliser,
        },
    )


def _clipped_gain(ratio: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """min(ρA, clip(ρ)A), and where it has no gradient because ρ went far enough in the direction that A asks for."""
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return gain, (ratio.detach() - 1) * advantages.sign() > clip


def _movement(log_ratio: Tensor, mask: Tensor, normaliser: Tensor | float) -> dict[str, Tensor]:
    """How far the policy is from the one compared with, over tokens or replies."""
    log_ratio = log_ratio.detach()
    ratio = ratio_of(log_ratio)
    return {
        "ratio": masked_sum(ratio, mask) / normaliser,
        "ratio_max": torch.where(mask, ratio, 0.0).amax() if mask.numel() else ratio.new_zeros(()),
        "log_ratio": masked_sum(log_ratio, mask) / normaliser,
        "approx_kl": masked_sum(ratio - 1 - log_ratio, mask) / normaliser,
    }


def _weighted(terms_BR: Tensor, weights_BR: Tensor | None, mask_BR: Tensor) -> Tensor:
    return terms_BR if weights_BR is None else terms_BR * kept(mask_BR, weights_BR.detach())[0]

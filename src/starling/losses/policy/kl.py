"""Distances between policies from the log-probabilities of sampled tokens, and what is made of them.

Sources: J. Schulman, "Approximating KL divergence" (2020): k1, k2, k3; adaptive coefficient, arXiv 1909.08593 section 2.2, with
the steps counted in replies as in trlx; truncated importance weights, Ionides 2008, per token as usual for replies of another
engine.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from starling.losses.masked import masked_mean
from starling.losses.policy.objectives import ratio_of

KLEstimator = Literal["k1", "k2", "k3"]


def kl_k1(logprobs_BR: Tensor, reference_BR: Tensor) -> Tensor:
    """Per-token estimate log π − log π_ref of KL(π ‖ π_ref): unbiased, can be negative."""
    return logprobs_BR - reference_BR


def kl_k2(logprobs_BR: Tensor, reference_BR: Tensor) -> Tensor:
    """Per-token estimate (log π − log π_ref)² / 2: never negative, biased, but little while the policies are near."""
    return 0.5 * (logprobs_BR - reference_BR) ** 2


def kl_k3(logprobs_BR: Tensor, reference_BR: Tensor) -> Tensor:
    """Per-token estimate e^d − 1 − d with d = log π_ref − log π: unbiased and never negative."""
    difference_BR = reference_BR - logprobs_BR
    return difference_BR.expm1() - difference_BR


def kl_penalty(name: KLEstimator, logprobs_BR: Tensor, reference_BR: Tensor) -> Tensor:
    """The estimate of that name for each token, drawn from π; what a reward pays the coefficient times.

    Raises:
        ValueError: no estimator has that name.
    """
    if name == "k1":
        return kl_k1(logprobs_BR, reference_BR)
    if name == "k2":
        return kl_k2(logprobs_BR, reference_BR)
    if name == "k3":
        return kl_k3(logprobs_BR, reference_BR)
    raise ValueError(f"no KL estimator is called {name!r}; there are k1, k2 and k3")


def next_kl_coefficient(coefficient: float, measured_kl: float, replies: int, *, target: float, horizon: float) -> float:
    """The coefficient after an iteration: β (1 + e n/h), e = measured/target − 1 within ±0.2.

    Args:
        coefficient: β of this iteration.
        measured_kl: mean KL of a whole reply from the base in this iteration, in nats.
        replies: n, sampled in this iteration.
        target: KL of a whole reply that is wished for, in nats.
        horizon: h, replies in which an error of 20 % or more changes β by a factor of about e^±0.2.

    Raises:
        ValueError: the measured KL is not finite, or the iteration is so long (n ≥ 5h) that β could become 0 or negative.
    """
    if not math.isfinite(measured_kl):
        raise ValueError(f"a measured KL of {measured_kl} cannot steer the KL coefficient")
    if replies >= 5 * horizon:
        raise ValueError(f"{replies} replies at once are too many for a horizon of {horizon}: the KL coefficient could reach 0")
    error = min(max(measured_kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * replies / horizon)


def importance_weights(
    training_BR: Tensor, sampling_BR: Tensor, mask_BR: Tensor, *, cap: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weights min(π/μ, cap) per token, for objectives over tokens that another engine drew from its own μ ≈ π.

    Args:
        training_BR: log-probability of each token as the training passes compute it.
        sampling_BR: log-probability that the engine reports, of the same weights.
        mask_BR: True means a token of a reply.
        cap: largest weight, ≥ 1.

    Returns:
        weights_BR without gradient, 0 outside the mask; and over the tokens given: `weight`, the mean weight; `weight_max`, the
        largest π/μ, before the cap; `weight_capped`, the share above the cap; `mismatch`, mean |log π − log μ|; `mismatch_kl`,
        mean of π/μ − 1 − log π/μ, an estimate of KL(μ ‖ π).
    """
    log_ratio_BR = (training_BR - sampling_BR).detach()
    ratio_BR = ratio_of(log_ratio_BR)
    weights_BR = torch.where(mask_BR, ratio_BR.clamp_max(cap), 0.0)
    return weights_BR, {
        "weight": masked_mean(weights_BR, mask_BR),
        "weight_max": torch.where(mask_BR, ratio_BR, 0.0).amax() if mask_BR.numel() else ratio_BR.new_zeros(()),
        "weight_capped": masked_mean((ratio_BR > cap).to(ratio_BR.dtype), mask_BR),
        "mismatch": masked_mean(log_ratio_BR.abs(), mask_BR),
        "mismatch_kl": masked_mean(ratio_BR - 1 - log_ratio_BR, mask_BR),
    }

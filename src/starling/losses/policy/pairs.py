"""P3O: the policy gradient of pairs of replies to one prompt, without a critic; conventions in the package's docstring.

Source: arXiv 2310.00212 as in the code of Starling-LM-7B-alpha. With d = Σ_t log π/π_ref of a reply, and a pair of replies to
one prompt,

    q = r₁ − r₂ − β (d₁ − d₂)                                 no gradient
    w = clamp(π(y₁) π(y₂) / (π_old(y₁) π_old(y₂)), 1/c, c)    no gradient
    Δ = d₁ − d₂, Δ_clip = Δ within ±ε of its value at sampling
    L = ½ mean over pairs of max(−q w Δ, −q w Δ_clip)

Departures: all pairs of a group of two or more replies (the code has pairs only; equal to it for groups of two), so that at
ratio 1 the gradient is that of RLOO with rewards r − β d; the mean over pairs is by `normaliser`; no options of the code that are
off there (clipping and averaging by token, dividing q by its deviation).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from starling.losses.masked import LossOutputs
from starling.losses.policy.objectives import kept, ratio_of


def count_pairs(group_B: Tensor) -> int:
    """Pairs of replies to one prompt, Σ n(n−1)/2 over the groups: the `normaliser` of a step with these replies."""
    count_G = torch.unique(group_B, return_counts=True)[1]
    return int((count_G * (count_G - 1) // 2).sum())


def pairs_of(group_B: Tensor) -> tuple[Tensor, Tensor]:
    """(first_P, second_P): every pair of replies to one prompt once, as indices first < second.

    Raises:
        ValueError: a group of one reply: its group was cut, or nothing else was sampled for its prompt.
    """
    same_BB = group_B[:, None] == group_B[None, :]
    if bool((same_BB.sum(1) < 2).any()):
        raise ValueError("P3O wants two or more replies in each group, and all of a group in one micro-batch")
    first_P, second_P = torch.nonzero(same_BB.triu(1), as_tuple=True)
    return first_P, second_P


def p3o(
    logprobs_BR: Tensor,
    old_BR: Tensor,
    reference_BR: Tensor,
    rewards_B: Tensor,
    group_B: Tensor,
    mask_BR: Tensor,
    *,
    kl: float,
    clip: float,
    weight_clip: float,
    normaliser: Tensor | float,
) -> LossOutputs:
    """P3O over all pairs of replies to a prompt; formulas at the top of this file.

    Args:
        logprobs_BR, old_BR, reference_BR: log-probability of each token under the policy being trained, the one that sampled
            and the base.
        rewards_B: reward of each whole reply, without a KL penalty: the objective has it in q.
        group_B: int64, replies to one prompt share a number; a group is never cut by a micro-batch. Best kept on the CPU:
            pairs are listed there without waiting for a GPU.
        mask_BR: True means a token of a reply.
        kl: β.
        clip: ε, on a difference of log-ratios of whole replies.
        weight_clip: c.
        normaliser: pairs in the whole optimiser step, see `count_pairs`.

    Returns:
        loss, and the metrics, over pairs: `clipped`, the share that the clip keeps from moving on; `weight`, mean of w;
        `weight_max`; `weight_capped`, share of w at a bound; `advantage`, mean of |q|; `margin`, mean of Δ seen from the reply
        with the higher q; `log_ratio` and `approx_kl`, means over the pairs' replies of log ρ and ρ − 1 − log ρ, ρ = π/π_old of
        a whole reply (the latter an estimate of KL(π_old ‖ π)).

    Raises:
        ValueError: a group of one reply.
    """
    first_P, second_P = (index.to(logprobs_BR.device) for index in pairs_of(group_B))
    logprobs_BR, old_BR, reference_BR = kept(mask_BR, logprobs_BR, old_BR.detach(), reference_BR.detach())
    above_B, old_above_B = (logprobs_BR - reference_BR).sum(1), (old_BR - reference_BR).sum(1)
    moved_B = (above_B - old_above_B).detach()
    rewards_B = rewards_B.detach()
    delta_P = above_B[first_P] - above_B[second_P]
    old_delta_P = old_above_B[first_P] - old_above_B[second_P]
    q_P = rewards_B[first_P] - rewards_B[second_P] - kl * delta_P.detach()
    log_weight_P, bound = moved_B[first_P] + moved_B[second_P], math.log(weight_clip)
    weight_P = log_weight_P.clamp(-bound, bound).exp()
    near_P = old_delta_P + (delta_P - old_delta_P).clamp(-clip, clip)
    loss = -torch.minimum(q_P * weight_P * delta_P, q_P * weight_P * near_P).sum() / (2 * normaliser)
    with torch.no_grad():
        side_P = q_P.sign()
        kl_B = ratio_of(moved_B) - 1 - moved_B
        metrics = {
            "clipped": ((delta_P - old_delta_P) * side_P > clip).to(q_P.dtype).sum() / normaliser,
            "weight": weight_P.sum() / normaliser,
            "weight_max": weight_P.amax() if len(weight_P) else weight_P.new_zeros(()),
            "weight_capped": (log_weight_P.abs() > bound).to(q_P.dtype).sum() / normaliser,
            "advantage": q_P.abs().sum() / normaliser,
            "margin": (side_P * delta_P).sum() / normaliser,
            "log_ratio": log_weight_P.sum() / (2 * normaliser),
            "approx_kl": (kl_B[first_P] + kl_B[second_P]).sum() / (2 * normaliser),
        }
    return LossOutputs(loss=loss, metrics=metrics)

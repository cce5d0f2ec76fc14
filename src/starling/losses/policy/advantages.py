"""How much better an action was than expected: with a critic (GAE) or against the other replies to the prompt (RLOO).

Sources: GAE, arXiv 1506.02438 eq. 16; leave-one-out baseline, arXiv 2402.14740 section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(rewards_BR: Tensor, values_BR: Tensor, mask_BR: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation, A_t = Σ_l (γλ)^l δ_{t+l} with δ_t = r_t + γ V_{t+1} − V_t.

    Args:
        rewards_BR: reward received after each token.
        values_BR: value of the state before it.
        mask_BR: True at the reply's tokens; they are contiguous in each row, the state after the last one is terminal.
        gamma: discount γ.
        lam: λ; 1 gives returns minus values, 0 gives one-step errors.

    Returns:
        (advantages_BR, returns_BR), 0 outside the mask, without gradient; returns = advantages + values.
    """
    rewards_BR, values_BR = rewards_BR.detach(), values_BR.detach()
    advantages_BR = torch.zeros_like(values_BR)
    carry_B = torch.zeros_like(values_BR[:, 0])
    next_value_B = torch.zeros_like(values_BR[:, 0])
    for t in range(values_BR.shape[1] - 1, -1, -1):
        here_B = mask_BR[:, t]
        delta_B = rewards_BR[:, t] + gamma * next_value_B - values_BR[:, t]
        carry_B = torch.where(here_B, delta_B + gamma * lam * carry_B, 0.0)
        next_value_B = torch.where(here_B, values_BR[:, t], 0.0)
        advantages_BR[:, t] = carry_B
    return advantages_BR, torch.where(mask_BR, advantages_BR + values_BR, 0.0)


def rloo_advantages(rewards_B: Tensor, group_B: Tensor) -> Tensor:
    """Reward of each reply minus the mean reward of the other replies to its prompt: n/(n−1) (r − mean of the group).

    Args:
        rewards_B: reward of each whole reply, the KL penalty included.
        group_B: int64; replies to one prompt share a number. Every group is whole.

    Returns:
        advantages_B, without gradient; they sum to 0 over each group.

    Raises:
        ValueError: a group of one reply, which has no other to be compared with.
    """
    rewards_B = rewards_B.detach()
    _, at_B, count_G = torch.unique(group_B.to(rewards_B.device), return_inverse=True, return_counts=True)
    if len(count_G) and int(count_G.min()) < 2:
        raise ValueError("rloo_advantages wants two or more replies in each group: a single one has no baseline")
    count_B: Tensor = count_G[at_B].to(rewards_B.dtype)
    # the group's mean first: rewards far from 0 but close to each other lose no digits
    sum_G = torch.zeros(len(count_G), dtype=rewards_B.dtype, device=rewards_B.device).index_add(0, at_B, rewards_B)
    above_B = rewards_B - sum_G[at_B] / count_B
    return above_B * count_B / (count_B - 1)

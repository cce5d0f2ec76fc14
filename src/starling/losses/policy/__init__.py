"""Policy objectives, advantages and KL estimators: pure functions of tensors; docs/policy-algorithms.md has the formulas.

    advantages   gae (arXiv 1506.02438), rloo_advantages (arXiv 2402.14740)
    objectives   apa (arXiv 2306.02231), ppo and clipped_value_loss (arXiv 1707.06347), rloo (arXiv 2402.14740)
    pairs        p3o (arXiv 2310.00212) and the pairs of replies that it compares
    kl           estimators k1, k2, k3 (J. Schulman's note of 2020), the adaptive coefficient (arXiv 1909.08593), truncated
                 importance weights for replies that another engine sampled

APA was published twice in code. How we depart from the code of the paper (anchor at the initial policy, λ = 0.1):
- masks choose the reply's tokens exactly; there, the mask is one position off, and whitening sees padding too;
- the KL penalty is the caller's: there, it is computed and multiplied by 0; here, `policy.kl = 0` says so;
- the value loss may be clipped; there, it is not.
From the code of Starling-LM-7B-alpha (anchor at the policy that sampled, λ = 1, KL 0.01, no whitening):
- the loss never switches the policy's part off: there, it does while the value loss is above 1. Here the trainer decides
  (`policy.critic.pretrain`, `policy.critic.gate`);
- λ is a setting; there, it is fixed at 1;
- a PPO that is PPO: there, the scripts of both names run the squared loss.
From both: the anchor is an argument, and denominators are arguments.

Conventions. `normaliser` is the count in the whole optimiser step of what an objective averages over (tokens, replies or pairs):
loss and metrics are sums divided by it, so both add up over micro-batches and processes; metrics whose names end in `_max`
are maxima and combine by the larger. A mask is True where a reply has a token; what stands elsewhere, NaN included, reaches
neither value nor gradient. Gradients flow through `logprobs_BR` (`values_BR`) only. `weights` multiply each token's term.

Shapes: B replies, R tokens of the longest one, from the left; P pairs of replies.
"""

from starling.losses.policy.advantages import gae, rloo_advantages
from starling.losses.policy.kl import (
    KLEstimator,
    importance_weights,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_penalty,
    next_kl_coefficient,
)
from starling.losses.policy.objectives import apa, clipped_value_loss, ppo, rloo
from starling.losses.policy.pairs import count_pairs, p3o, pairs_of

__all__ = [
    "KLEstimator",
    "apa",
    "clipped_value_loss",
    "count_pairs",
    "gae",
    "importance_weights",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_penalty",
    "next_kl_coefficient",
    "p3o",
    "pairs_of",
    "ppo",
    "rloo",
    "rloo_advantages",
]

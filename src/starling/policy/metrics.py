"""Every number that the log of a policy's tuning holds, named once, with what it is.

A line of log.jsonl is an iteration. Numbers of the rollouts are those of the policy that sampled them, before the iteration's
updates; numbers of the update are means over its optimiser steps. Means over tokens are over tokens of replies. Log-probabilities
are at the temperature of `policy.sampling`. "The base" is the model before tuning. Evaluations have `eval/NAME` for sampled and
`eval/greedy/NAME` for greedy replies to one fixed set of validation prompts.
"""

from __future__ import annotations

from collections.abc import Mapping

ROLLOUT_METRICS: Mapping[str, str] = {
    "reward": "Mean over replies of the reward after shaping, without the KL penalty.",
    "reward_std": "Its standard deviation.",
    "score": "Mean raw score of the run's reward model.",
    "score_std": "Its standard deviation.",
    "kl": "Estimate k3 of the KL divergence from the base, mean over tokens, nats.",
    "kl_reply": "Mean over replies of Σ (log π − log π_base), nats: an unbiased estimate of the KL divergence of whole replies.",
    "kl_penalty": "Mean over replies of what the KL penalty took off the reward.",
    "kl_coefficient": "Coefficient of the KL penalty in this iteration.",
    "length": "Mean tokens of a reply, end token included.",
    "finished": "Share of replies with their end token.",
    "repetition": "Mean over replies of the share of 4-grams of tokens that came before in the reply.",
    "advantage": "Mean over tokens (RLOO: replies) of the advantage, before it is whitened; P3O: over pairs of |q|.",
    "advantage_std": "Its standard deviation.",
    "explained_variance": "1 − Var(returns − values) / Var(returns) over tokens, of the critic before the iteration's updates.",
    "return": "Mean over tokens of the returns.",
    "mismatch": "Mean over tokens of |log π in training − log π of the sampler|.",
    "mismatch_max": "The largest of these.",
    "mismatch_kl": "Mean over tokens of ρ − 1 − log ρ, ρ = π in training / π of the sampler: estimates KL(sampler ‖ training).",
    "weight": "Mean importance weight: of a token where servers sample, of a pair with P3O.",
    "weight_max": "The largest importance ratio of a token, before the cap; with P3O the largest weight of a pair.",
    "weight_capped": "Share of tokens whose importance ratio is above the cap; with P3O of pairs whose weight is at a bound.",
    "shaping/clipped": "Share of scores beyond policy.shaping.clip.",
    "shaping/capped": "Share of replies whose reward was lowered to policy.shaping.unfinished.",
    "shaping/length_penalty": "Mean over replies of the penalty for tokens.",
    "shaping/repetition_penalty": "Mean over replies of the penalty for repeated 4-grams.",
    "shaping/std": "Running deviation that scores are divided by; only with scale = running_std.",
    "shaping/disagreement": "Mean over replies of the reward models' standard deviation; only with several.",
}

UPDATE_METRICS: Mapping[str, str] = {
    "policy_loss": "The algorithm's objective, mean over the steps that trained the policy.",
    "value_loss": "Half the mean over tokens of the clipped squared error of the values.",
    "value_error": "Mean over tokens of the squared error of the values.",
    "value_clipped": "Share of tokens whose value the clip keeps from moving on.",
    "entropy": "Mean over tokens of the policy's entropy, nats; only with an entropy bonus.",
    "ratio": "Mean over tokens (RLOO: replies) of π / π_old; π_old is the anchor with APA.",
    "ratio_max": "The largest of these in the iteration.",
    "log_ratio": "Mean of log π / π_old; P3O: over the replies of pairs.",
    "approx_kl": "Mean of ρ − 1 − log ρ with ρ = π / π_old; P3O: minus log_ratio.",
    "target": "APA: mean over tokens of A/λ.",
    "target_square": "APA: mean over tokens of (A/λ)², the objective where nothing has moved.",
    "distance": "APA: mean over tokens of (log π/π_anchor − A/λ)².",
    "clipped": "Share of tokens (RLOO: replies, P3O: pairs) that the clip keeps from moving on.",
    "margin": "P3O: mean over pairs of the difference of log-ratios to the base, seen from the better reply.",
    "grad_norm": "Norm of the policy's gradient before clipping.",
    "critic_grad_norm": "Norm of the critic's gradient before clipping.",
    "learning_rate": "Of the policy, in the last step.",
    "critic_learning_rate": "Of the critic, in the last step.",
    "gated": "Share of the steps in which policy.critic.gate kept the policy as it was; only with a gate.",
    "micro_tokens": "Tokens of a micro-batch after the memory of a device ran out; absent before.",
}

EVALUATION_METRICS: Mapping[str, str] = {
    "score": "Mean raw score of the run's reward model, the proxy.",
    "score_se": "Its standard error over prompts.",
    "guard": "Mean raw score of the guard model, which the policy is not trained on.",
    "guard_se": "Its standard error over prompts.",
    "kl": "Mean over replies of Σ (log π − log π_base), nats.",
    "length": "Mean tokens of a reply, end token included.",
    "finished": "Share of replies with their end token.",
    "repetition": "Mean over replies of the share of 4-grams of tokens that came before in the reply.",
    "repetition_se": "Its standard error over prompts.",
    "refusals": "Share of replies that decline to answer, wholly or in part.",
    "refusals_se": "Its standard error over prompts.",
    "empty": "Share of replies without text.",
    "check": "Share of the user's checks (policy.selection.checks) that greedy replies pass.",
    "check_se": "Its standard error over checks.",
    "gold": "Mean true score; in the microworld only, never seen by the training.",
}

SPEED_METRICS: Mapping[str, str] = {
    "sampling_seconds": "Spent on drawing the replies; 0 where they came from the buffer of a killed run.",
    "scoring_seconds": "Spent on the reward models.",
    "experience_seconds": "Spent on log-probabilities and values before the update.",
    "update_seconds": "Spent on the optimiser steps.",
    "evaluation_seconds": "Spent on the evaluation.",
    "sampled_tokens_per_second": "Tokens of replies per second of sampling.",
    "tokens_per_second": "Tokens of prompts and replies per second of the update, every pass over them counted.",
    "memory_mib": "Most memory in use so far, of the first process or its device.",
}


def definition(name: str) -> str | None:
    """What a number of the log is; None for one that is not known.

    >>> definition("eval/greedy/length")
    'Mean tokens of a reply, end token included.'
    """
    if name.startswith("eval/"):
        return EVALUATION_METRICS.get(name.removeprefix("eval/").removeprefix("greedy/"))
    if name.startswith("score/"):
        return f"Mean raw score of the further reward model {name.removeprefix('score/')}."
    return ROLLOUT_METRICS.get(name) or UPDATE_METRICS.get(name) or SPEED_METRICS.get(name)

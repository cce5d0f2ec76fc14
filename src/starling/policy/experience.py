"""What an update needs to know of rollouts: log-probabilities, values, rewards per token, advantages.

Sources: Starling's settings (score on the last token, per-token KL penalty, γ 1, λ 0.95); estimators and advantages are those of
`losses.policy`. The old log-probabilities are computed by the training passes, never taken from the sampler: ratios of the first
step are 1 to the last bit. The sampler's are kept to measure how far the two are apart, and, where servers sample, to weight
tokens by it.

Shapes: B replies, R tokens of the longest one, from the left; mask_BR True means a token of a reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from starling.config import PolicySection, ServerEngine
from starling.losses.masked import center_and_scale, masked_mean, masked_variance
from starling.losses.policy import gae, importance_weights, kl_k1, kl_k3, kl_penalty, rloo_advantages
from starling.models.encode import Encoded
from starling.models.replies import Replies, ReplyLayout, cost, group_cost, lay_out
from starling.policy.rollout import Rollout
from starling.training.engine import Engine
from starling.training.plan import deal


@dataclass(frozen=True)
class Packing:
    """How replies go through a model: never changes a number but by rounding."""

    pad_id: int
    layout: ReplyLayout
    samples: int
    """Replies after each other that share a prompt and stay together."""

    def groups(self, count: int) -> list[range]:
        """Indices of replies, group by group."""
        return [range(i, i + self.samples) for i in range(0, count, self.samples)]

    def lay_out(self, encoded: Sequence[Encoded], device: torch.device) -> Replies:
        return lay_out(encoded, self.pad_id, self.layout).to(device)

    def costs(self, encoded: Sequence[Encoded]) -> list[int]:
        """Tokens that each group costs in a pass."""
        groups = [[encoded[i] for i in group] for group in self.groups(len(encoded))]
        if self.layout == "shared_prefix":
            return [group_cost(group, self.layout) for group in groups]
        return [cost(group, self.layout) for group in groups]

    def deal(self, groups: Sequence[int], costs: Sequence[int], budget: int, engine: Engine) -> list[list[int]]:
        """The micro-batches of this process, as replies; as many as on every other process."""
        dealt = deal(groups, costs, budget, engine.ranks, padded=self.layout == "sequences")[engine.rank]
        return [[i * self.samples + k for i in items for k in range(self.samples)] for items in dealt]


class ReferencePolicy(Protocol):
    """The policy as it was before tuning."""

    def logprobs(self, replies: Replies, temperature: float) -> Tensor:
        """logprobs_BR, without gradient."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the models say about replies, [B, R], 0 outside the mask; the same on all processes."""

    mask_BR: Tensor
    logprobs_BR: Tensor
    reference_BR: Tensor
    values_BR: Tensor


@dataclass(frozen=True, kw_only=True)
class Experience:
    """All that an update needs about one iteration's rollouts, without gradient.

    advantages_B, of RLOO, is one number per reply; advantages_BR and returns_BR are 0 where there is no critic.
    """

    encoded: tuple[Encoded, ...]
    group_B: Tensor
    mask_BR: Tensor
    logprobs_BR: Tensor
    reference_BR: Tensor
    values_BR: Tensor
    rewards_B: Tensor
    advantages_B: Tensor
    advantages_BR: Tensor
    returns_BR: Tensor
    weights_BR: Tensor | None = None

    def rows(self, index: Sequence[int]) -> Experience:
        """The experience of some replies, cut to the longest of them."""
        at_B = torch.tensor(index, device=self.mask_BR.device)
        width = int(self.mask_BR[at_B].sum(1).max())
        per_token = {name: getattr(self, name)[at_B, :width] for name in _PER_TOKEN}
        return Experience(
            encoded=tuple(self.encoded[i] for i in index),
            group_B=self.group_B[index],
            rewards_B=self.rewards_B[at_B],
            advantages_B=self.advantages_B[at_B],
            weights_BR=None if self.weights_BR is None else self.weights_BR[at_B, :width],
            **per_token,
        )


_PER_TOKEN = ("mask_BR", "logprobs_BR", "reference_BR", "values_BR", "advantages_BR", "returns_BR")


@torch.no_grad()
def measure(
    engine: Engine,
    reference: ReferencePolicy,
    encoded: Sequence[Encoded],
    packing: Packing,
    *,
    budget: int,
    temperature: float,
    values: bool,
) -> Measured:
    """Log-probabilities under policy and base, and values if wanted, each reply by one process."""
    engine.module.eval()
    lengths_B = torch.tensor([len(one.ids) - one.prompt_length for one in encoded], device=engine.device)
    mask_BR = torch.arange(int(lengths_B.max()), device=engine.device) < lengths_B[:, None]
    found = torch.zeros(3, *mask_BR.shape, device=engine.device)

    def one_pass(replies: Replies) -> Any:
        return engine.model(replies, temperature=temperature, values=values)

    costs = packing.costs(encoded)
    for index in packing.deal(range(len(costs)), costs, budget, engine):
        # a process that has less to do joins in, because passes of spread weights are collective
        replies = packing.lay_out([encoded[i] for i in index or range(packing.samples)], engine.device)
        outputs = one_pass(replies) if index or engine.spread else None
        if index and outputs is not None:
            at_B, width = torch.tensor(index, device=engine.device), replies.mask_BR.shape[1]
            found[0, at_B, :width] = outputs.logprobs_BR
            with engine.accelerator.autocast():
                found[1, at_B, :width] = reference.logprobs(replies, temperature)
            if values:
                found[2, at_B, :width] = outputs.values_BR
    found = engine.total(found)  # each reply was measured by one process, the others add 0
    return Measured(mask_BR=mask_BR, logprobs_BR=found[0], reference_BR=found[1], values_BR=found[2])


def make_experience(
    rollouts: Sequence[Rollout],
    rewards_B: Tensor,
    measured: Measured,
    packing: Packing,
    settings: PolicySection,
    kl_coefficient: float,
) -> tuple[Experience, dict[str, float]]:
    """Rewards per token and advantages; with the numbers of the iteration (`metrics.ROLLOUT_METRICS`).

    Args:
        rollouts: `packing.samples` after each other for each prompt.
        rewards_B: shaped rewards of whole replies, without the KL penalty.
        measured: of these rollouts.
        kl_coefficient: of this iteration.
    """
    m, mask_BR = measured, measured.mask_BR
    rewards_B = rewards_B.to(mask_BR.device, torch.float32)
    group_B = torch.arange(len(rollouts)) // packing.samples
    kl_BR = torch.where(mask_BR, kl_penalty(settings.kl_estimator, m.logprobs_BR, m.reference_BR), 0.0)
    advantages_B = torch.zeros_like(rewards_B)
    advantages_BR = torch.zeros_like(m.logprobs_BR)
    returns_BR = torch.zeros_like(m.logprobs_BR)
    metrics: dict[str, Tensor] = {}
    algorithm = settings.algorithm
    if algorithm.type in ("apa", "ppo"):
        rewards_BR = -kl_coefficient * kl_BR
        rewards_BR[torch.arange(len(rollouts), device=mask_BR.device), mask_BR.sum(1) - 1] += rewards_B
        advantages_BR, returns_BR = gae(rewards_BR, m.values_BR, mask_BR, gamma=settings.gamma, lam=settings.gae_lambda)
        metrics = _critic_metrics(advantages_BR, returns_BR, m.values_BR, mask_BR)
        if getattr(algorithm, "whiten", False):
            advantages_BR = center_and_scale(advantages_BR, mask_BR)
    elif algorithm.type == "rloo":
        advantages_B = rloo_advantages(rewards_B - kl_coefficient * kl_BR.sum(1), group_B.to(rewards_B.device))
        metrics = {"advantage": advantages_B.mean(), "advantage_std": advantages_B.std(correction=0)}
        if algorithm.whiten:
            advantages_B = center_and_scale(advantages_B, torch.ones_like(advantages_B, dtype=torch.bool))
    sampled_BR = _sampled(rollouts, mask_BR)
    weights_BR, apart = _mismatch(m.logprobs_BR, sampled_BR, mask_BR, settings)
    metrics |= apart | _kl_metrics(m, mask_BR)
    metrics["kl_penalty"] = kl_coefficient * kl_BR.sum(1).mean()
    experience = Experience(
        encoded=tuple(r.encoded for r in rollouts), group_B=group_B, mask_BR=mask_BR, logprobs_BR=m.logprobs_BR,
        reference_BR=m.reference_BR, values_BR=m.values_BR, rewards_B=rewards_B, advantages_B=advantages_B,
        advantages_BR=advantages_BR, returns_BR=returns_BR, weights_BR=weights_BR,
    )  # fmt: skip
    numbers = {name: float(value) for name, value in metrics.items()}
    return experience, numbers | {
        "kl_coefficient": kl_coefficient,
        "length": float(mask_BR.sum()) / len(rollouts),
        "finished": sum(r.finished for r in rollouts) / len(rollouts),
    }


def reply_kl(measured: Measured) -> Tensor:
    """kl_B: Σ (log π − log π_base) over each reply, an unbiased estimate of the KL divergence from the base."""
    kl_BR = kl_k1(measured.logprobs_BR, measured.reference_BR)
    return torch.where(measured.mask_BR, kl_BR, 0.0).sum(1)


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _sampled(rollouts: Sequence[Rollout], mask_BR: Tensor) -> Tensor:
    """The sampler's log-probabilities."""
    flat_N = torch.tensor([value for r in rollouts for value in r.logprobs], device=mask_BR.device, dtype=torch.float32)
    return torch.zeros(mask_BR.shape, device=mask_BR.device).masked_scatter(mask_BR, flat_N)


def _mismatch(
    training_BR: Tensor, sampled_BR: Tensor, mask_BR: Tensor, settings: PolicySection
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Importance weights, where the sampler is not ours and the objective takes them, and how far it is from the passes."""
    servers = settings.engine if isinstance(settings.engine, ServerEngine) and settings.algorithm.type != "p3o" else None
    weights_BR, found = importance_weights(training_BR, sampled_BR, mask_BR, cap=servers.ratio_cap if servers else 1e9)
    largest = torch.where(mask_BR, (training_BR - sampled_BR).abs(), 0.0).amax()
    metrics = {"mismatch": found["mismatch"], "mismatch_kl": found["mismatch_kl"], "mismatch_max": largest}
    if servers is None:
        return None, metrics
    return weights_BR, metrics | {name: found[name] for name in ("weight", "weight_max", "weight_capped")}


def _kl_metrics(measured: Measured, mask_BR: Tensor) -> dict[str, Tensor]:
    return {
        "kl": masked_mean(kl_k3(measured.logprobs_BR, measured.reference_BR), mask_BR),
        "kl_reply": reply_kl(measured).mean(),
    }


def _critic_metrics(advantages_BR: Tensor, returns_BR: Tensor, values_BR: Tensor, mask_BR: Tensor) -> dict[str, Tensor]:
    unexplained = masked_variance(returns_BR - values_BR, mask_BR) / (masked_variance(returns_BR, mask_BR) + 1e-8)
    return {
        "advantage": masked_mean(advantages_BR, mask_BR),
        "advantage_std": masked_variance(advantages_BR, mask_BR).sqrt(),
        "explained_variance": 1 - unexplained,
        "return": masked_mean(returns_BR, mask_BR),
    }

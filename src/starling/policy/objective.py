"""The loss of a micro-batch, from the settings of an algorithm; the formulas are those of `losses.policy`.

Losses are sums divided by a count of the whole optimiser step, so those of micro-batches and processes add up. With a critic the
loss is the objective plus `critic.coefficient` times the value loss.

Shapes: B replies, R tokens of the longest one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from starling.config import APA, PPO, RLOO, PolicySection
from starling.losses.masked import LossOutputs, masked_sum
from starling.losses.policy import apa, clipped_value_loss, count_pairs, p3o, ppo, rloo
from starling.models.actor import Outputs
from starling.policy.experience import Experience

_MOVEMENT = ("ratio", "ratio_max", "log_ratio", "approx_kl")
_METRICS = {
    "apa": ("log_ratio", "approx_kl", "target", "target_square", "distance"),
    "ppo": ("clipped", *_MOVEMENT),
    "rloo": _MOVEMENT,
    "p3o": ("clipped", "weight", "weight_max", "weight_capped", "advantage", "margin", "log_ratio", "approx_kl"),
}  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """Of a whole optimiser step."""

    tokens: int
    replies: int
    pairs: int

    @classmethod
    def of(cls, experience: Experience) -> Counts:
        """Of a step with this experience."""
        return cls(int(experience.mask_BR.sum()), len(experience.encoded), count_pairs(experience.group_B))


class Objective:
    """Glue between settings and losses.

    Args:
        settings: of the stage.
    """

    def __init__(self, settings: PolicySection) -> None:
        self.settings = settings
        self.algorithm = settings.algorithm
        self.has_critic = isinstance(self.algorithm, APA | PPO)
        self.wants_entropy = isinstance(self.algorithm, PPO) and self.algorithm.entropy > 0

    def metrics(self, policy: bool) -> tuple[str, ...]:
        """Names of what `loss` reports; those that end in _max are maxima, all others add up over micro-batches."""
        critic = ("value_loss", "value_error", "value_clipped") if self.has_critic else ()
        if not policy:
            return critic
        further = ("clipped",) if isinstance(self.algorithm, RLOO) and self.algorithm.clip is not None else ()
        entropy = ("entropy",) if self.wants_entropy else ()
        return ("policy_loss", *_METRICS[self.algorithm.type], *further, *entropy, *critic)

    def loss(self, outputs: Outputs, batch: Experience, counts: Counts, kl: float, *, policy: bool) -> LossOutputs:
        """Share of the step's loss.

        Args:
            outputs: of the actor as it is now.
            batch: experience of the same replies; whole groups.
            counts: of the whole step.
            kl: coefficient of the KL penalty, for P3O, which has it in its objective.
            policy: whether the policy learns, or the critic alone.
        """
        loss = torch.zeros((), device=batch.mask_BR.device)
        metrics: dict[str, torch.Tensor] = {}
        if policy:
            found = self._policy_loss(outputs, batch, counts, kl)
            loss = found.loss
            metrics |= {"policy_loss": found.loss.detach(), **found.metrics}
            if self.wants_entropy:
                assert isinstance(self.algorithm, PPO)
                assert outputs.entropy_BR is not None
                entropy = masked_sum(outputs.entropy_BR, batch.mask_BR) / counts.tokens
                loss = loss - self.algorithm.entropy * entropy
                metrics["entropy"] = entropy.detach()
        if self.has_critic:
            values = self.value_loss(outputs, batch, counts)
            loss = loss + self.settings.critic.coefficient * values.loss
            metrics |= {"value_loss": values.loss.detach(), **values.metrics}
        return LossOutputs(loss=loss, metrics=metrics)

    def value_loss(self, outputs: Outputs, batch: Experience, counts: Counts) -> LossOutputs:
        """The critic's share of the step's loss, not yet times its coefficient."""
        assert outputs.values_BR is not None
        return clipped_value_loss(
            outputs.values_BR,
            batch.values_BR,
            batch.returns_BR,
            batch.mask_BR,
            clip=self.settings.critic.value_clip,
            normaliser=counts.tokens,
        )

    def _policy_loss(self, outputs: Outputs, batch: Experience, counts: Counts, kl: float) -> LossOutputs:
        """The algorithm's objective, chosen by the type of its settings."""
        a, logprobs_BR, mask_BR = self.algorithm, outputs.logprobs_BR, batch.mask_BR
        assert logprobs_BR is not None
        if isinstance(a, APA):
            anchor_BR = batch.logprobs_BR if a.anchor == "rollout" else batch.reference_BR
            tokens = counts.tokens
            return apa(
                logprobs_BR, anchor_BR, batch.advantages_BR, mask_BR, lam=a.lam, normaliser=tokens, weights=batch.weights_BR
            )
        if isinstance(a, PPO):
            given = (logprobs_BR, batch.logprobs_BR, batch.advantages_BR, mask_BR)
            return ppo(*given, clip=a.clip, normaliser=counts.tokens, weights=batch.weights_BR)
        if isinstance(a, RLOO):
            given = (logprobs_BR, batch.logprobs_BR, batch.advantages_B, mask_BR)
            return rloo(*given, clip=a.clip, normaliser=counts.replies, weights=batch.weights_BR)
        return p3o(
            logprobs_BR,
            batch.logprobs_BR,
            batch.reference_BR,
            batch.rewards_B,
            batch.group_B,
            mask_BR,
            kl=kl,
            clip=a.clip,
            weight_clip=a.weight_clip,
            normaliser=counts.pairs,
        )

"""From prompts to experience: sample replies, score them, shape the reward, estimate advantages.

Sources: Starling's reinforcement-learning settings (reward on the last token, fixed per-token KL penalty, γ 1, λ 0.95).
Departures: the reward model is given the finished flag, so a reply that was cut never looks finished to it (the
original appended the end token always, which rewards running on); the score is standardised with the reward model's own
recorded statistics and shifted to a slightly positive mean, the length control that the authors name as essential.

Shape legend: B rollouts, T tokens of prompt and reply, padded on the right; the T−1 positions of `mask_BT` predict the
token after them, True where that token belongs to the reply.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from starling.config import PolicySection
from starling.losses.masked import masked_mean
from starling.losses.policy import gae, kl_k1, kl_k3
from starling.models.encode import Encoded, Encoder, Padded, pad_right
from starling.models.logprobs import token_logprobs
from starling.models.sample import Sampler, row_seed
from starling.models.scalar_head import ScalarHead
from starling.models.score import score_rows, similar_lengths
from starling.records import Prompt, Sampling


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One sampled reply, e.g. prompt "What is 3 + 4?", text "3 + 4 = 7.", finished True."""

    prompt: Prompt
    encoded: Encoded
    text: str
    finished: bool


@dataclass(frozen=True, kw_only=True)
class Experience:
    """All that an update needs about one batch of rollouts; every tensor is [B, T−1] and detached.

    mask_BT: True means the position predicts a token of the reply.
    """

    padded: Padded
    mask_BT: Tensor
    logprobs_BT: Tensor
    reference_BT: Tensor
    values_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor
    metrics: dict[str, float]

    def rows(self, index: Tensor) -> Experience:
        """The experience of some rollouts, cut to the longest of them."""
        padded = self.padded.rows(index)
        width = padded.ids_BT.shape[1]
        tensors = {name: getattr(self, name)[index, : width - 1] for name in _PER_TOKEN}
        return Experience(padded=padded, metrics={}, **tensors)

    def lengths(self, index: Tensor) -> list[int]:
        """Tokens of prompt and reply of some rollouts."""
        return [int(n) + 1 for n in self.padded.last_B[index]]


_PER_TOKEN = ("mask_BT", "logprobs_BT", "reference_BT", "values_BT", "advantages_BT", "returns_BT")


def choose_prompts(prompts: Sequence[Prompt], count: int, iteration: int, seed: int) -> list[Prompt]:
    """The prompts of one iteration: epochs over all prompts, each in its own order; a pure function of its arguments."""
    chosen = []
    for n in range(iteration * count, (iteration + 1) * count):
        epoch, at = divmod(n, len(prompts))
        order = _epoch_order(len(prompts), epoch, seed)
        chosen.append(prompts[order[at]])
    return chosen


@lru_cache(maxsize=2)
def _epoch_order(n: int, epoch: int, seed: int) -> list[int]:
    return random.Random(f"{seed}/prompts/{epoch}").sample(range(n), n)


def sample_rollouts(
    policy: Any, encoder: Encoder, prompts: Sequence[Prompt], sampling: Sampling, batch: int, *, stream: str, seed: int
) -> list[Rollout]:
    """One reply per prompt from the policy as it is now. `stream` names the draw, e.g. "iteration 3"."""
    ids = [encoder.prompt_ids(p.messages) for p in prompts]
    seeds = [row_seed(f"{stream}/{i}/{p.id}", seed) for i, p in enumerate(prompts)]
    drawn = Sampler(policy, encoder.end_ids, batch).generate(ids, sampling, seeds)
    return [
        Rollout(
            prompt=p,
            encoded=Encoded(ids=(*prompt, *one.ids), prompt_length=len(prompt)),
            text=encoder.decode_reply(one.ids),
            finished=one.finished,
        )
        for p, prompt, one in zip(prompts, ids, drawn, strict=True)
    ]


def shape_rewards(scores_B: Tensor, finished_B: Tensor, settings: PolicySection, mean: float, std: float) -> Tensor:
    """Standardise by the reward model's statistics, shift, clip; a cut reply gets at most `unfinished_reward`."""
    shaped_B = ((scores_B - mean) / std + settings.shaping.shift).clamp(-settings.shaping.clip, settings.shaping.clip)
    return torch.where(finished_B, shaped_B, shaped_B.clamp_max(settings.shaping.unfinished))


@torch.no_grad()
def score_rollouts(reward: ScalarHead, encoder: Encoder, rollouts: Sequence[Rollout]) -> Tensor:
    """Raw reward of each rollout, scores_B. Texts are encoded anew with the reward model's own template."""
    return score_rows(reward, encoder.conversations([(r.prompt.messages, r.text, r.finished) for r in rollouts]), encoder.pad_id)


@torch.no_grad()
def make_experience(
    rollouts: Sequence[Rollout],
    scores_B: Tensor,
    *,
    policy: Any,
    reference: Any,
    critic: ScalarHead,
    pad_id: int,
    settings: PolicySection,
    reward_mean: float,
    reward_std: float,
) -> Experience:
    """Log-probabilities, values, shaped rewards and advantages of one iteration's rollouts."""
    padded = pad_right([r.encoded for r in rollouts], pad_id).to(policy.device)
    mask_BT = padded.reply_mask_BT[:, 1:]
    logprobs_BT, reference_BT, values_BT = (torch.zeros(mask_BT.shape, device=policy.device) for _ in range(3))
    for batch in similar_lengths([len(r.encoded.ids) for r in rollouts]):
        rows = torch.tensor(batch, device=policy.device)
        part = padded.rows(rows)
        here_BT, width = part.reply_mask_BT[:, 1:], part.ids_BT.shape[1] - 1
        logprobs_BT[rows, :width] = token_logprobs(policy, part, here_BT)[0]
        reference_BT[rows, :width] = token_logprobs(reference, part, here_BT)[0]
        values_BT[rows, :width] = torch.where(here_BT, critic.values(part.ids_BT, part.mask_BT)[:, :-1], 0.0)
    finished_B = torch.tensor([r.finished for r in rollouts], device=scores_B.device)
    shaped_B = shape_rewards(scores_B, finished_B, settings, reward_mean, reward_std)
    rewards_BT = torch.where(mask_BT, -settings.kl.coefficient * kl_k1(logprobs_BT, reference_BT), 0.0)
    rewards_BT[torch.arange(len(rollouts)), padded.last_B - 1] += shaped_B
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=settings.gamma, lam=settings.gae_lambda)
    length_B = mask_BT.sum(1).float()
    residual_BT = returns_BT - values_BT
    return_mean = masked_mean(returns_BT, mask_BT)
    metrics = {
        "reward": float(shaped_B.mean()),
        "score": float(scores_B.mean()),
        "kl": float(masked_mean(kl_k3(logprobs_BT, reference_BT), mask_BT)),
        "kl_reply": float((kl_k1(logprobs_BT, reference_BT) * mask_BT).sum(1).mean()),
        "length": float(length_B.mean()),
        "finished": float(finished_B.float().mean()),
        "explained_variance": float(
            1 - masked_mean(residual_BT**2, mask_BT) / (masked_mean((returns_BT - return_mean) ** 2, mask_BT) + 1e-8)
        ),
    }
    return Experience(
        padded=padded, mask_BT=mask_BT, logprobs_BT=logprobs_BT, reference_BT=reference_BT, values_BT=values_BT,
        advantages_BT=advantages_BT, returns_BT=returns_BT, metrics=metrics,
    )  # fmt: skip

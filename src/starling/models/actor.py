"""Policy and critic as one module, so that one engine trains, spreads and saves both.

The language-model head runs on the states that predict a token of a reply only: the logits of prompts, half of a chat batch
and more, are never made.

Shapes: B replies, R tokens of the longest one, N reply tokens, M places in the rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from starling.models.encode import Padded
from starling.models.replies import Replies
from starling.models.scalar_head import ScalarHead


@dataclass(frozen=True)
class Outputs:
    """Per token of a reply, [B, R] in fp32, 0 where there is none; None where it was not asked for."""

    logprobs_BR: torch.Tensor | None = None
    entropy_BR: torch.Tensor | None = None
    values_BR: torch.Tensor | None = None


class Actor(nn.Module):
    """A policy with, for the algorithms that want one, a critic.

    Args:
        policy: a transformers causal language model.
        critic: a model of its own that gives a value per token; None without.
    """

    def __init__(self, policy: Any, critic: ScalarHead | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic

    def forward(
        self, replies: Replies, *, temperature: float = 1.0, logprobs: bool = True, entropy: bool = False, values: bool = False
    ) -> Outputs:
        """What is asked for, by one pass of each model that it takes; the way in for every pass, so that DDP and FSDP see it.

        Args:
            replies: of `lay_out`.
            temperature: logits are divided by it, as when the replies were sampled.
            logprobs: log-probability of every token of a reply given those before it.
            entropy: of the distribution it was drawn from.
            values: the critic's value of the state before each token is drawn.
        """
        logprobs_BR: torch.Tensor | None = None
        entropy_BR: torch.Tensor | None = None
        if logprobs or entropy:
            logprobs_BR, entropy_BR = reply_logprobs(self.policy, replies, temperature=temperature, entropy=entropy)
        values_BR = reply_values(self.critic, replies) if values and self.critic is not None else None
        return Outputs(logprobs_BR if logprobs else None, entropy_BR, values_BR)


def reply_logprobs(
    policy: Any, replies: Replies, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """logprobs_BR, and entropy_BR if asked for; gradients flow if they are on."""
    rows = replies.rows
    assert isinstance(rows, Padded)
    hidden_BTD = policy.get_decoder()(input_ids=rows.ids_BT, use_cache=False).last_hidden_state
    logits_NV = policy.get_output_embeddings()(hidden_BTD.flatten(0, 1)[replies.before_N]).float() / temperature
    logprobs_NV = torch.log_softmax(logits_NV, -1)
    logprobs_BR = replies.spread(logprobs_NV.gather(1, replies.taken_N[:, None])[:, 0])
    return logprobs_BR, replies.spread(-(logprobs_NV.exp() * logprobs_NV).sum(-1)) if entropy else None


def reply_values(critic: ScalarHead, replies: Replies) -> torch.Tensor:
    """values_BR of the states before each token of the replies."""
    rows = replies.rows
    assert isinstance(rows, Padded)
    return replies.spread(critic.values(rows.ids_BT, rows.mask_BT).flatten()[replies.before_N])

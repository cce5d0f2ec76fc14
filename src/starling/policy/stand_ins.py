"""REMOVE: first versions of what other branches bring, behind their names."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from starling.config import CriticSection
from starling.errors import InputError
from starling.models.actor import Actor, reply_logprobs
from starling.models.encode import Encoded
from starling.models.load import load_backbone_as_scalar, load_causal, load_scalar, load_tokenizer
from starling.models.replies import Replies, ReplyLayout


def group_cost(group: Sequence[Encoded], layout: ReplyLayout = "sequences") -> int:
    return sum(len(r.ids) - 1 for r in group)


def build_actor(
    policy: Any, critic: CriticSection | None, reward_folder: Path, base_folder: Path, seed: int, tokenizer: Any
) -> Actor:
    if critic is None:
        return Actor(policy)
    if critic.start == "policy":
        return Actor(policy, load_backbone_as_scalar(base_folder, seed)).eval()
    head = load_scalar(reward_folder)
    if not head.is_decoder:
        raise InputError(
            "The critic starts from the reward model, and this one is an encoder without values per token",
            where=str(reward_folder),
            cure='train the reward model on a decoder backbone, or set policy.critic.start to "policy"',
        )
    if not tokenizer.get_vocab().items() <= load_tokenizer(reward_folder).get_vocab().items():
        raise InputError(
            "The reward model and the policy have different tokenizers, and the critic starts from the reward model",
            where=f"{reward_folder} and {base_folder}",
            cure="train the reward model on a backbone with the policy's tokenizer",
        )
    return Actor(policy, head).eval()


def choose_reply_layout(actor: Any, replies: Sequence[Encoded], pad_id: int, wanted: str, half: bool = False) -> ReplyLayout:
    return "sequences"


class Reference:
    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def of(cls, actor: Actor, base: Path) -> Reference:
        return cls(load_causal(base).requires_grad_(False).to(next(actor.parameters()).device))

    @torch.no_grad()
    def logprobs(self, replies: Replies, temperature: float) -> torch.Tensor:
        with nullcontext():
            return reply_logprobs(self._model, replies, temperature=temperature)[0]

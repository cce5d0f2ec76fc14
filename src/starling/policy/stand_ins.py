"""REMOVE: a first version of the reference policy, behind its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from starling.models.actor import Actor, reply_logprobs
from starling.models.load import load_causal
from starling.models.replies import Replies


class Reference:
    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def of(cls, actor: Actor, base: Path) -> Reference:
        return cls(load_causal(base).requires_grad_(False).to(next(actor.parameters()).device))

    @torch.no_grad()
    def logprobs(self, replies: Replies, temperature: float) -> torch.Tensor:
        return reply_logprobs(self._model, replies, temperature=temperature)[0]

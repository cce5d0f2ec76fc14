"""The policy as it was before tuning, which the KL penalty is measured from, in as little memory as what is trained allows.

    lora          the policy itself with its adapters switched off                       no memory
    last_layers   a copy of what is trained; every other weight is the policy's own      that of what is trained
    full          a copy of everything                                                   that of the model

One rule does the last two: a copy shares each weight that is not trained, because it never changes. An embedding matrix that is
tied to a trained head is trained, so it is copied.

Where weights are spread over processes (FSDP2, ZeRO) the policy's layers cannot be borrowed outside its own passes: then the
copy is whole, made before they are spread.

Source: peft's disable_adapter, as TRL uses it; the frozen top layers of trlx (`num_layers_unfrozen`).

Shapes: B replies, R tokens of the longest one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from starling.models.actor import Actor, evaluating, reply_logprobs
from starling.models.replies import Replies


class Reference:
    """Log-probabilities under the policy before tuning; `of` makes one."""

    def __init__(self, model: Any, borrowed: bool) -> None:
        self._model = model
        self._borrowed = borrowed

    @classmethod
    def of(cls, actor: Actor, *, spread: bool = False, half: bool = False) -> Reference:
        """The reference of a policy that has not been trained yet; call it when what is trained has been chosen, and before
        an engine is built.

        Args:
            actor: its `requires_grad` and adapters say what is trained.
            spread: whether the weights will be spread over processes (FSDP2, ZeRO).
            half: hold copied matrices in bf16. In passes that compute in bf16 (autocast) the numbers are the same; nowhere else.
        """
        policy = actor.policy
        adapted = [part for part in policy.modules() if _is_adapter(part)]
        inside = {id(p) for part in adapted for p in part.parameters()}
        trained = [p for p in policy.parameters() if p.requires_grad]
        if adapted and not spread and all(id(p) in inside for p in trained):
            return cls(policy, borrowed=True)
        shared = [] if spread else [p for p in policy.parameters() if not p.requires_grad]
        model = copy.deepcopy(policy, {id(p): p for p in shared})
        model.eval()
        own = {id(p) for p in model.parameters()} - {id(p) for p in shared}
        for parameter in (p for p in model.parameters() if id(p) in own):
            parameter.requires_grad_(False)
            parameter.grad = None
        if half:
            in_bf16(model, own)
        return cls(model, borrowed=False)

    @torch.no_grad()
    def logprobs(self, replies: Replies, temperature: float = 1.0) -> torch.Tensor:
        """logprobs_BR, without gradients; call it under the autocast of the policy's passes, so that both round alike.

        Raises:
            InputError: rows with shared prefixes, and a model that cannot share them.
        """
        if not self._borrowed:  # an engine moved the policy, and with it what is shared, to its device
            self._model.to(replies.taken_N.device)
        with _without_adapters(self._model), evaluating(self._model) if self._borrowed else nullcontext():
            return reply_logprobs(self._model, replies, temperature=temperature)[0]


def _is_adapter(part: nn.Module) -> bool:
    return hasattr(part, "base_layer") and hasattr(part, "disable_adapters")  # peft's BaseTunerLayer, without importing peft


@contextmanager
def _without_adapters(model: nn.Module) -> Iterator[None]:
    """Adapters are passed by. peft's own switch also turns their requires_grad off and on, which an engine must not see."""
    adapted: list[Any] = [part for part in model.modules() if _is_adapter(part)]
    before = [part._disable_adapters for part in adapted]
    for part in adapted:
        part._disable_adapters = True
    try:
        yield
    finally:
        for part, switch in zip(adapted, before, strict=True):
            part._disable_adapters = switch


def in_bf16(model: nn.Module, own: set[int]) -> None:
    """What autocast would round in every pass anyway: matrices of linear layers that nothing else reads (no embedding)."""
    read_elsewhere = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for part in model.modules():
        if isinstance(part, nn.Linear):
            for parameter in part.parameters(recurse=False):
                if id(parameter) in own - read_elsewhere:
                    parameter.data = parameter.data.to(torch.bfloat16)

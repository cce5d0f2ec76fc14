"""Policy and critic as one module, so that one engine trains, spreads and saves both.

The language-model head runs on the states that predict a token of a reply only, tile by tile (`lm_head`): the logits of prompts,
half of a chat batch and more, are never made. Rows are padded or a `Forest`; the numbers are the same.

Two critics: a model of its own (`ScalarHead`; arXiv 2306.02231), or a small head on the policy's last states (`SharedCritic`;
Starling's code), whose gradient flows into the policy's trunk.

Shapes: B replies, R tokens of the longest one, N reply tokens, M places in the rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.utils import _pytree as pytree
from transformers import PreTrainedConfig

from starling.config import CriticSection
from starling.errors import InputError
from starling.models import tree_attention
from starling.models.encode import Encoded
from starling.models.lm_head import check_logits, token_logprobs
from starling.models.load import load_backbone_as_scalar, load_reward_tokenizer, load_scalar, without_dropout
from starling.models.replies import Replies, ReplyLayout, lay_out
from starling.models.scalar_head import ScalarHead
from starling.models.score import TOLERANCE, TOLERANCE_HALF
from starling.models.tree import Forest
from starling.records import content_hash

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outputs:
    """Per token of a reply, [B, R] in fp32, 0 where there is none; None where it was not asked for."""

    logprobs_BR: torch.Tensor | None = None
    entropy_BR: torch.Tensor | None = None
    values_BR: torch.Tensor | None = None


# FSDP2 hangs its backward hooks on the tensors that it finds in what a forward pass returns
pytree.register_dataclass(Outputs)


class SharedCritic(nn.Module):
    """Values from the policy's last states: Linear(D, 2D), ReLU, Linear(2D, 1), as in Starling's code.

    The last layer starts at 0, so that the first values are 0 whatever the states; the original drew it at random.
    """

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.widen, self.score = nn.Linear(size, 2 * size), nn.Linear(2 * size, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """values_N in fp32."""
        with torch.autocast(hidden_ND.device.type, enabled=False):
            return cast(torch.Tensor, self.score(torch.relu(self.widen(hidden_ND.float())))[..., 0])


class Actor(nn.Module):
    """A policy with, for the algorithms that want one, a critic.

    Args:
        policy: a transformers causal language model.
        critic: a model of its own that gives a value per token, or a head on the policy's last states; None without.
    """

    def __init__(self, policy: Any, critic: ScalarHead | SharedCritic | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.critic = critic
        # some classes warn about padding without a mask: rows are padded on the right and attention is causal, so none is needed
        policy.get_decoder().warn_if_padding_and_no_attention_mask = _no_warning

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

        Raises:
            InputError: rows with shared prefixes, and a model that cannot share them (`choose_reply_layout` finds out).
        """
        shared = self.critic if values and isinstance(self.critic, SharedCritic) else None
        logprobs_BR = entropy_BR = values_BR = None
        if logprobs or entropy or shared is not None:
            hidden_ND = _states_before(self.policy, replies)
            if logprobs or entropy:
                logprobs_BR, entropy_BR = _from_states(self.policy, hidden_ND, replies, temperature, entropy)
            if shared is not None:
                values_BR = replies.spread(shared(hidden_ND))
        if values and isinstance(self.critic, ScalarHead):
            values_BR = replies.spread(self.critic.values_at(replies.rows, replies.before_N))
        return Outputs(logprobs_BR if logprobs else None, entropy_BR, values_BR)


def reply_logprobs(
    policy: Any, replies: Replies, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """logprobs_BR, and entropy_BR if asked for, of a model that is no part of an actor; gradients flow if they are on."""
    return _from_states(policy, _states_before(policy, replies), replies, temperature, entropy)


def _states_before(policy: Any, replies: Replies) -> torch.Tensor:
    """hidden_ND: the last states that predict a token of a reply."""
    rows = replies.rows
    if isinstance(rows, Forest):
        tree_attention.enable(policy)
        hidden_MD = tree_attention.hidden_states(policy.get_decoder(), rows)
    else:
        hidden_MD = policy.get_decoder()(input_ids=rows.ids_BT, use_cache=False).last_hidden_state.flatten(0, 1)
    return hidden_MD.index_select(0, replies.before_N)


def _from_states(
    policy: Any, hidden_ND: torch.Tensor, replies: Replies, temperature: float, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    logprobs_N, entropy_N = token_logprobs(policy, hidden_ND, replies.taken_N, temperature=temperature, entropy=entropy)
    return replies.spread(logprobs_N), None if entropy_N is None else replies.spread(entropy_N)


def _no_warning(*_: Any) -> None:
    return None


# ── making one ───────────────────────────────────────────────────────────────────────────────────────────────────────


def build_actor(
    policy: Any, critic: CriticSection | None, reward_folder: Path, base_folder: Path, seed: int, tokenizer: Any
) -> Actor:
    """An actor with the critic that its settings ask for, dropout 0 everywhere, in evaluation mode.

    Args:
        policy: the causal language model that is tuned (`load_causal`).
        critic: settings; None for an algorithm without one.
        reward_folder: the reward model, which an own critic starts from unless it starts from the policy.
        base_folder: what the policy was loaded from.
        seed: of what is drawn.
        tokenizer: the policy's; it is left as it is.

    Raises:
        InputError: the critic cannot start from that reward model, or the policy's log-probabilities cannot be computed here.
    """
    check_logits(policy)
    drawn = int(content_hash(["critic", seed], 8), 16)
    head: ScalarHead | SharedCritic | None = None
    if critic is not None and critic.trunk == "shared":
        head = SharedCritic(policy.get_output_embeddings().weight.shape[1], drawn)
    elif critic is not None and critic.start == "policy":
        # a copy: a classifier wants a pad token of its own, and the policy's tokenizer is saved with the policy
        head = load_backbone_as_scalar(base_folder, drawn, copy.deepcopy(tokenizer))
        nn.init.zeros_(head.model.score.weight)
    elif critic is not None:
        head = _from_reward(reward_folder, base_folder, tokenizer)
    actor = Actor(policy, head)
    for part in actor.modules():
        if isinstance(getattr(part, "config", None), PreTrainedConfig):
            without_dropout(part.config)
        for name, value in vars(part).items():
            if isinstance(value, float) and ("drop" in name or isinstance(part, nn.Dropout)):
                setattr(part, name, 0.0)  # a ratio of two passes must be that of two policies
    return actor.eval()


def _from_reward(reward: Path, base: Path, tokenizer: Any) -> ScalarHead:
    critic = load_scalar(reward)
    if not critic.is_decoder:
        raise InputError(
            "The critic starts from the reward model, and this one is an encoder without values per token",
            where=str(reward),
            cure='train the reward model on a decoder backbone, or set policy.critic.start to "policy"',
        )
    # the reward model may know more tokens: it gets a pad token of its own
    if not tokenizer.get_vocab().items() <= load_reward_tokenizer(reward).get_vocab().items():
        raise InputError(
            "The reward model and the policy have different tokenizers, and the critic starts from the reward model",
            where=f"{reward} and {base}",
            cure='train the reward model on a backbone with the policy\'s tokenizer, or set policy.critic.start to "policy"',
        )
    return critic


# ── choosing a layout ────────────────────────────────────────────────────────────────────────────────────────────────


def choose_reply_layout(
    actor: Any,
    replies: Sequence[Encoded],
    pad_id: int,
    wanted: Literal["auto", "shared_prefix", "sequences"],
    half: bool = False,
) -> ReplyLayout:
    """The layout to use, after a trial of the shared prefix: all numbers and gradients must be those of `sequences`.

    "auto" is `shared_prefix` where the trial succeeds, else `sequences` with a warning. Call it with every process of a
    distributed run at once, before the first step: a wrapped actor takes part in it. Gradients are left as they were.

    Args:
        actor: an `Actor`, or what a wrapper (DDP, FSDP, the engine) made of it.
        replies: some replies; two to one prompt are tried, or one and a variant of it where no prompt has two.
        pad_id: any valid id.
        wanted: what was asked for.
        half: the forward pass computes in bf16 or fp16.

    Raises:
        InputError: `shared_prefix` was asked for and the models cannot do it, or give other numbers with it.
    """
    if wanted == "sequences":
        return "sequences"
    inner: Actor = getattr(actor, "module", actor)
    models = [inner.policy, *([inner.critic.model] if isinstance(inner.critic, ScalarHead) else [])]
    before = [model.config._attn_implementation for model in models]
    try:
        _verify(actor, _pair(replies), pad_id, TOLERANCE_HALF if half else TOLERANCE)
    except InputError as error:
        if wanted == "shared_prefix":
            raise
        log.warning("prompts are not shared; every reply is computed with a prompt of its own: %s", error.what)
        for model, attention in zip(models, before, strict=True):
            model.set_attn_implementation(attention)
        return "sequences"
    return "shared_prefix"


def _pair(replies: Sequence[Encoded]) -> list[Encoded]:
    """Two different replies to one prompt: always two, so that every process makes as many passes."""
    seen: dict[tuple[int, ...], Encoded] = {}
    for reply in replies:
        other = seen.setdefault(reply.ids[: reply.prompt_length], reply)
        if other.ids[:-1] != reply.ids[:-1]:
            return [other, reply]
    prompt, own = replies[0].ids[: replies[0].prompt_length], replies[0].ids[replies[0].prompt_length :]
    return [replies[0], Encoded(prompt + (own[::-1] + prompt)[: len(own)], len(prompt))]


def _verify(actor: Any, replies: Sequence[Encoded], pad_id: int, tolerance: float) -> None:
    inner: Actor = getattr(actor, "module", actor)
    with evaluating(inner):
        plain = _trial(actor, [lay_out([reply], pad_id) for reply in replies])
        shared = _trial(actor, [lay_out(replies, pad_id, "shared_prefix")])
    apart = {what: float((shared[what] - plain[what]).norm() / plain[what].norm().clamp(min=1e-12)) for what in plain}
    if not all(difference <= tolerance for difference in apart.values()):  # NaN fails too
        raise InputError(
            "Shared prompts change "
            + ", ".join(f"the {what} by {difference:.1e}" for what, difference in apart.items())
            + ", relatively",
            where=f"the trial of two replies, {tree_attention.describe(inner.policy)}",
            cure='set policy.layout to "sequences", and report the architecture',
        )


def _trial(actor: Any, batches: Sequence[Replies]) -> dict[str, torch.Tensor]:
    """Log-probabilities and values, and the gradients of a weighted sum of them at the embeddings, summed over tokens.

    The gradient of a shared token is the sum over its copies, and the embeddings need no gradient of their own for it.
    """
    inner: Actor = getattr(actor, "module", actor)
    tables = {"policy": inner.policy.get_input_embeddings()}
    if isinstance(inner.critic, ScalarHead):
        tables["critic"] = inner.critic.model.get_input_embeddings()
    caught: dict[str, list[torch.Tensor]] = {name: [] for name in tables}
    handles = [table.register_forward_hook(_catcher(caught[name])) for name, table in tables.items()]
    parameters = list(inner.parameters())
    kept = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None  # else the trial would add to it
    found: dict[str, list[torch.Tensor]] = {"log-probabilities": [], "values": []}
    done = 0
    try:
        for replies in (batch.to(next(inner.parameters()).device) for batch in batches):
            with torch.enable_grad():
                out = actor(replies, values=inner.critic is not None)
                given = [out.logprobs_BR[replies.mask_BR]]
                if out.values_BR is not None:
                    given.append(out.values_BR[replies.mask_BR])
                weights_N = torch.cos(torch.arange(done, done + replies.tokens, device=given[0].device))
                torch.autograd.backward(sum((x * weights_N).sum() for x in given))
            done += replies.tokens
            for name, x in zip(found, given, strict=False):
                found[name].append(x.detach())
    finally:
        for handle in handles:
            handle.remove()
        for parameter, grad in zip(parameters, kept, strict=True):
            parameter.grad = grad
    for name, states in caught.items():
        grads = [x.grad.float().sum((0, 1)) for x in states if x.grad is not None]
        found[f"gradient of the {name}"] = [torch.stack(grads).sum(0)]
    return {name: torch.cat(parts) for name, parts in found.items() if parts}


def _catcher(caught: list[torch.Tensor]) -> Any:
    """A hook that keeps a table's states and asks for their gradient."""

    def catch(_: Any, __: Any, states: torch.Tensor) -> None:
        (states if states.requires_grad else states.requires_grad_()).retain_grad()
        caught.append(states)

    return catch


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every part is in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode

"""Truncated importance weights between a server that samples and the model that learns: from its reply to the gradient."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from starling.config.policy import ServerEngine
from starling.losses import policy as losses
from starling.models.actor import reply_logprobs
from starling.models.encode import Encoded, Encoder
from starling.models.load import load_causal, load_tokenizer
from starling.models.replies import lay_out
from starling.policy.servers import ServerRollouts
from starling.records import Sampling
from tests.fakes.rollout_server import RolloutServer

pytestmark = pytest.mark.skipif(not hasattr(losses, "importance_weights"), reason="losses.policy has no importance weights yet")

CAP = 1.2
PROMPTS = [[1, 4, 70, 71, 72], [1, 4, 90], [1, 4, 100, 101, 102]]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_weights_of_a_server_in_bf16_are_the_truncated_ratios(engine: Any, backbone: Callable[..., Path], tmp_path: Path) -> None:
    base = backbone("llama")
    policy, encoder = load_causal(base), Encoder(load_tokenizer(base), max_length=128)
    with RolloutServer(base, engine) as server:
        rules = ServerEngine(type=engine, urls=(server.url,), weights=str(tmp_path), dtype="bf16", ratio_cap=CAP)
        servers = ServerRollouts(rules, encoder)
        servers.load(policy, 0)
        drawn = servers.generate(PROMPTS, Sampling(max_tokens=12), list(range(9)), 3)
    prompts = [p for p in PROMPTS for _ in range(3)]
    replies = lay_out([Encoded((*p, *d.ids), len(p)) for p, d in zip(prompts, drawn, strict=True)], encoder.pad_id)
    with torch.no_grad():
        training_BR, _ = reply_logprobs(policy, replies)
    sampling_BR = replies.spread(torch.tensor([value for d in drawn for value in d.logprobs]))
    weights_BR, metrics = losses.importance_weights(training_BR, sampling_BR, replies.mask_BR, cap=rules.ratio_cap)
    for row, one in enumerate(drawn):
        for t, value in enumerate(one.logprobs):
            ratio = float(torch.exp(training_BR[row, t] - value))
            assert float(weights_BR[row, t]) == pytest.approx(min(ratio, CAP), abs=1e-6)
    # rounding is seen, and is small: far inside the tolerance of the first check
    assert 1e-4 < float(metrics["mismatch"]) < 0.1
    assert float(weights_BR.max()) <= CAP


# ── a policy small enough to add up everything ───────────────────────────────────────────────────────────────────────

VOCAB, LENGTH = 6, 2
REPLIES = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))  # all 36
MASK_BR = torch.ones(len(REPLIES), LENGTH, dtype=torch.bool)
REWARDS_B = torch.sin(torch.arange(len(REPLIES)).double() * 1.7)


class Table(torch.nn.Module):
    """Logits of the first token, and of the second for each first one."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first_V = torch.nn.Parameter(torch.randn(VOCAB, generator=generator, dtype=torch.float64))
        self.second_VV = torch.nn.Parameter(torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64))

    def logprobs(self) -> Tensor:
        """[36, 2]: of both tokens of every reply."""
        first_B = self.first_V.log_softmax(-1)[REPLIES[:, 0]]
        second_B = self.second_VV.log_softmax(-1)[REPLIES[:, 0], REPLIES[:, 1]]
        return torch.stack([first_B, second_B], 1)

    def flat_gradient(self) -> Tensor:
        parts = [p.grad for p in self.parameters() if p.grad is not None]
        self.zero_grad()
        return torch.cat([part.flatten() for part in parts])


def expected_gradient(policy: Table, sampler: Table, cap: float | None) -> Tensor:
    """Of PPO's loss at ratio 1 over all replies, each with the probability that the sampler draws it; weighted up to `cap`."""
    logprobs_BR, sampling_BR = policy.logprobs(), sampler.logprobs().detach()
    drawn_B = sampling_BR.sum(1).exp()
    weights_BR = None
    if cap is not None:
        weights_BR, _ = losses.importance_weights(logprobs_BR, sampling_BR, MASK_BR, cap=cap)
    advantages_BR = (REWARDS_B * drawn_B)[:, None].expand(-1, LENGTH)
    loss = losses.ppo(
        logprobs_BR, logprobs_BR.detach(), advantages_BR, MASK_BR, clip=0.2, normaliser=1.0, weights=weights_BR
    ).loss  # fmt: skip
    torch.autograd.backward(loss)
    return policy.flat_gradient()


def noisy(policy: Table, scale: float, seed: int) -> Table:
    """The same policy as an engine with other rounding has it."""
    other = copy.deepcopy(policy)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return other


def exact_gradient(policy: Table) -> Tensor:
    """Minus the gradient of the expected reward, straight from its definition."""
    torch.autograd.backward(-(policy.logprobs().sum(1).exp() * REWARDS_B).sum())
    return policy.flat_gradient()


def test_without_a_difference_the_estimate_is_the_exact_gradient() -> None:
    policy = Table(0)
    exact = exact_gradient(policy)
    assert torch.allclose(expected_gradient(policy, policy, None), exact, atol=1e-12)
    assert torch.allclose(expected_gradient(policy, policy, 2.0), exact, atol=1e-12)


@pytest.mark.parametrize("scale", [0.02, 0.1, 0.3])
def test_weights_bring_the_gradient_closer_to_the_exact_one(scale: float) -> None:
    """In expectation over all replies, so that no luck is in it; averaged over ten pairs of policy and engine."""
    plain, weighted = 0.0, 0.0
    for seed in range(10):
        policy = Table(seed)
        sampler, exact = noisy(policy, scale, 100 + seed), exact_gradient(policy)
        without = float((expected_gradient(policy, sampler, None) - exact).norm())
        with_weights = float((expected_gradient(policy, sampler, 2.0) - exact).norm())
        plain, weighted = plain + without, weighted + with_weights
    assert weighted < 0.75 * plain


def test_one_token_that_the_engine_hardly_ever_draws_counts_as_much_as_the_cap() -> None:
    policy = Table(0)
    sampler = copy.deepcopy(policy)
    with torch.no_grad():
        sampler.first_V[0] -= 8.0
    logprobs_BR, sampling_BR = policy.logprobs().detach(), sampler.logprobs().detach()
    weights_BR, metrics = losses.importance_weights(logprobs_BR, sampling_BR, MASK_BR, cap=2.0)
    starts_so = REPLIES[:, 0] == 0
    assert float(metrics["weight_max"]) > 100
    assert torch.equal(weights_BR[starts_so], torch.tensor([2.0, 1.0], dtype=torch.float64).expand(6, 2))
    assert bool((weights_BR[~starts_so, 0] < 1).all())

"""What holds for every policy objective: micro-batches add up, padding reaches nothing, weights scale, no gradient elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from starling.losses.masked import LossOutputs
from starling.losses.policy import apa, clipped_value_loss, p3o, ppo, rloo


@dataclass(frozen=True)
class Batch:
    """Two tensors that gradients could flow through, what is compared with them, and the rest, for any objective."""

    new: Tensor
    old: Tensor
    reference: Tensor
    advantages: Tensor
    weights: Tensor
    rewards: Tensor
    group: Tensor
    mask: Tensor

    def rows(self, *index: int) -> Batch:
        return Batch(*(getattr(self, name)[list(index)] for name in self.__dataclass_fields__))

    def with_padding(self, value: float, *names: str) -> Batch:
        filled = {n: torch.where(self.mask, getattr(self, n), value) for n in names}
        return replace(self, **filled)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    old, reference, advantages, move = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64)
    return Batch(
        new=old + 0.2 * move,
        old=old,
        reference=reference,
        advantages=advantages,
        weights=torch.rand(6, 5, generator=generator, dtype=torch.float64) + 0.5,
        rewards=torch.randn(6, generator=generator, dtype=torch.float64),
        group=torch.tensor([0, 0, 1, 1, 1, 0]),
        mask=torch.arange(5) < torch.tensor([5, 2, 1, 4, 3, 5])[:, None],
    )


TOKENS, REPLIES, PAIRS = 20, 6, 6  # two groups of three
PER_TOKEN = ("new", "old", "reference", "advantages", "weights")

Objective = Callable[[Batch], LossOutputs]
OBJECTIVES: dict[str, Objective] = {
    "apa": lambda b: apa(b.new, b.old, b.advantages, b.mask, lam=0.5, normaliser=TOKENS, weights=b.weights),
    "ppo": lambda b: ppo(b.new, b.old, b.advantages, b.mask, clip=0.2, normaliser=TOKENS, weights=b.weights),
    "rloo": lambda b: rloo(b.new, b.old, b.rewards, b.mask, clip=0.2, normaliser=REPLIES, weights=b.weights),
    "reinforce": lambda b: rloo(b.new, b.old, b.rewards, b.mask, clip=None, normaliser=REPLIES, weights=b.weights),
    "p3o": lambda b: p3o(
        b.new, b.old, b.reference, b.rewards, b.group, b.mask, kl=0.1, clip=0.2, weight_clip=2, normaliser=PAIRS
    ),
    "value": lambda b: clipped_value_loss(b.new, b.old, b.advantages, b.mask, clip=0.2, normaliser=TOKENS),
}
EVERY = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


def gradient(objective: Objective, of: Batch) -> Tensor:
    new = of.new.clone().requires_grad_()
    loss = objective(replace(of, new=new)).loss
    return torch.autograd.grad(loss, new)[0]


@EVERY
def test_micro_batches_add_up_in_loss_gradient_and_metrics(objective: Objective) -> None:
    whole = objective(batch())
    first, second = (0, 1, 5), (2, 3, 4)  # the two prompts
    parts = [objective(batch().rows(*rows)) for rows in (first, second)]
    assert torch.allclose(whole.loss, parts[0].loss + parts[1].loss)
    assert whole.metrics
    for name, value in whole.metrics.items():
        assert not value.requires_grad
        both = torch.stack([part.metrics[name] for part in parts])
        assert torch.allclose(value, both.amax() if name.endswith("_max") else both.sum()), name
    together = torch.cat([gradient(objective, batch().rows(*rows)) for rows in (first, second)])
    assert torch.allclose(gradient(objective, batch())[list(first + second)], together)


@EVERY
@pytest.mark.parametrize("padding", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("names", [PER_TOKEN, *((name,) for name in PER_TOKEN)], ids="+".join)
def test_what_stands_in_padding_reaches_neither_value_nor_gradient(
    objective: Objective, padding: float, names: tuple[str, ...]
) -> None:
    plain, padded = batch(), batch().with_padding(padding, *names)
    assert torch.equal(objective(plain).loss, objective(padded).loss)
    assert gradient(objective, plain).abs().sum() > 0
    assert torch.equal(gradient(objective, plain), gradient(objective, padded))
    for name, value in objective(plain).metrics.items():
        assert torch.equal(value, objective(padded).metrics[name]), name


@EVERY
def test_more_padding_changes_nothing(objective: Objective) -> None:
    plain = batch()
    wider = {n: torch.nn.functional.pad(getattr(plain, n), (0, 3)) for n in PER_TOKEN}
    wide = replace(plain, **wider, mask=torch.nn.functional.pad(plain.mask, (0, 3)))
    assert torch.allclose(objective(plain).loss, objective(wide).loss)


@EVERY
def test_no_gradient_but_through_the_policy_or_the_critic(objective: Objective) -> None:
    names = (*PER_TOKEN, "rewards")
    live = replace(batch(), **{n: getattr(batch(), n).clone().requires_grad_() for n in names})
    found = torch.autograd.grad(objective(live).loss, [getattr(live, n) for n in names], allow_unused=True)
    assert [n for n, g in zip(names, found, strict=True) if g is not None] == ["new"]


@EVERY
def test_a_micro_batch_without_a_reply_token_costs_nothing(objective: Objective) -> None:
    empty = replace(batch(), mask=torch.zeros(6, 5, dtype=torch.bool))
    value = objective(empty)
    finite = [float(v) for v in value.metrics.values()]
    assert float(value.loss) == 0
    assert all(map(math.isfinite, finite))
    assert not gradient(objective, empty).any()


@pytest.mark.parametrize("name", ["apa", "ppo", "reinforce"])
def test_weights_multiply_each_tokens_term(name: str) -> None:
    plain = batch()
    one = replace(plain, weights=torch.ones_like(plain.weights))
    expected = gradient(OBJECTIVES[name], one) * plain.weights
    assert torch.allclose(gradient(OBJECTIVES[name], plain), expected)


@EVERY
def test_the_normaliser_may_be_a_tensor(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = objective(batch()).loss
    for count in ("TOKENS", "REPLIES", "PAIRS"):
        monkeypatch.setitem(globals(), count, torch.tensor(globals()[count]))
    assert torch.allclose(objective(batch()).loss, expected)

"""The reference stays what the policy was, and holds no more than it must."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers as tf

from starling.config import FullTraining, LastLayers, LoRA, Trained
from starling.models.actor import Actor, SharedCritic
from starling.models.encode import Encoded
from starling.models.reference import Reference
from starling.models.replies import ReplyLayout, lay_out
from starling.training.trained import TrainedPart

REPLIES = [Encoded((*range(3, 20), *range(40, 40 + n)), 17) for n in (9, 4)] + [Encoded((5, 6, 7, 8, 9), 2)]
FULL, LAST, LORA = FullTraining(type="full"), LastLayers(type="last_layers", layers=1), LoRA(type="lora", rank=4)
LAYOUTS: tuple[ReplyLayout, ...] = ("sequences", "shared_prefix")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(settings: Trained, tied: bool = False) -> Actor:
    config = tf.LlamaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, pad_token_id=0,
        max_position_embeddings=128, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        actor = Actor(tf.AutoModelForCausalLM.from_config(config), SharedCritic(32, 0)).eval()
    TrainedPart(actor, settings, seed=1)
    return actor


def tune(actor: Actor) -> None:
    """Some steps that move everything that is trained."""
    optimizer = torch.optim.SGD([p for p in actor.policy.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        actor(lay_out(REPLIES, 0)).logprobs_BR.sum().backward()
        torch.nn.utils.clip_grad_norm_(actor.policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def storages(model: Any) -> dict[str, int]:
    return {name: p.data_ptr() for name, p in model.named_parameters()}


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("settings", [FULL, LAST, LORA], ids=lambda s: s.type)
def test_tuning_the_policy_does_not_change_its_reference(settings: Trained, tied: bool, spread: bool) -> None:
    untouched = copy.deepcopy(make(FULL, tied))
    actor = make(settings, tied)
    reference = Reference.of(actor, spread=spread)
    expected = {layout: untouched(lay_out(REPLIES, 0, layout), temperature=0.7).logprobs_BR.detach() for layout in LAYOUTS}
    for _ in range(2):
        for layout in LAYOUTS:
            ours = reference.logprobs(lay_out(REPLIES, 0, layout), 0.7)
            assert not ours.requires_grad
            torch.testing.assert_close(ours, expected[layout], rtol=0, atol=0)
        tune(actor)
    moved = actor(lay_out(REPLIES, 0), temperature=0.7).logprobs_BR.detach()
    assert float((moved - expected["sequences"]).abs().max()) > 0.1


def test_last_layers_hold_a_copy_of_what_is_trained_alone() -> None:
    actor = make(LAST)
    reference = Reference.of(actor)
    own, policy = storages(reference._model), storages(actor.policy)
    assert own.keys() == policy.keys()
    copied = {name for name in own if own[name] != policy[name]}
    assert copied == {name for name, p in actor.policy.named_parameters() if p.requires_grad}
    assert copied == {name for name in own if name.startswith(("model.layers.2.", "model.norm.", "lm_head."))}
    assert all(not p.requires_grad for p in reference._model.parameters())
    assert any(p.requires_grad for p in actor.policy.parameters())


def test_a_tied_embedding_that_is_trained_is_copied_once() -> None:
    actor = make(LAST, tied=True)
    reference = Reference.of(actor)
    assert actor.policy.model.embed_tokens.weight.requires_grad
    assert reference._model.lm_head.weight is reference._model.model.embed_tokens.weight
    assert reference._model.lm_head.weight.data_ptr() != actor.policy.lm_head.weight.data_ptr()
    assert reference._model.model.layers[0].mlp.up_proj.weight is actor.policy.model.layers[0].mlp.up_proj.weight


def test_adapters_cost_nothing_and_stay_as_they_are() -> None:
    actor = make(LORA)
    reference = Reference.of(actor)
    assert reference._model is actor.policy
    tune(actor)
    actor.train()
    actor.policy.model.layers[1].eval()
    modes = [part.training for part in actor.modules()]
    trained = [p.requires_grad for p in actor.parameters()]
    before = actor(lay_out(REPLIES, 0)).logprobs_BR
    reference.logprobs(lay_out(REPLIES, 0))
    assert [part.training for part in actor.modules()] == modes
    assert [p.requires_grad for p in actor.parameters()] == trained
    torch.testing.assert_close(actor(lay_out(REPLIES, 0)).logprobs_BR, before, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [FULL, LAST, LORA], ids=lambda s: s.type)
def test_dropout_is_off_in_the_reference_whatever_the_policys_mode(settings: Trained) -> None:
    actor = make(settings)
    reference = Reference.of(actor)
    expected = reference.logprobs(lay_out(REPLIES, 0))
    for layer in actor.policy.model.layers:
        layer.self_attn.attention_dropout = 0.5
    actor.train()
    for again in (reference, Reference.of(actor)):
        torch.testing.assert_close(again.logprobs(lay_out(REPLIES, 0)), expected, rtol=0, atol=0)
    assert actor.policy.training


def test_spread_weights_share_nothing() -> None:
    for settings in (LAST, LORA):
        actor = make(settings)
        assert not set(storages(Reference.of(actor, spread=True)._model).values()) & set(storages(actor).values())


@pytest.mark.parametrize("tied", [False, True])
def test_half_the_memory_gives_the_same_numbers_under_autocast(tied: bool) -> None:
    actor = make(FULL, tied)
    whole, half = Reference.of(actor), Reference.of(actor, half=True)
    kinds = {name: p.dtype for name, p in half._model.named_parameters()}
    assert kinds["model.layers.0.mlp.up_proj.weight"] == torch.bfloat16
    assert kinds["model.norm.weight"] == kinds["model.embed_tokens.weight"] == torch.float32
    assert kinds.get("lm_head.weight", torch.float32) == (torch.float32 if tied else torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in actor.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        for layout in LAYOUTS:
            replies = lay_out(REPLIES, 0, layout)
            torch.testing.assert_close(half.logprobs(replies), whole.logprobs(replies), rtol=0, atol=0)


def test_half_leaves_shared_weights_alone() -> None:
    actor = make(LAST)
    Reference.of(actor, half=True)
    assert all(p.dtype == torch.float32 for p in actor.parameters())

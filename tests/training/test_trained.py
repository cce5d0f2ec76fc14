"""What is trained of a policy and its critic, what an adapter of one looks like to peft, and which layers an engine spreads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import PeftModel

from starling.config import FullTraining, LastLayers, LoRA
from starling.errors import ConfigError
from starling.models.actor import Actor, SharedCritic
from starling.models.encode import Encoded
from starling.models.replies import lay_out
from starling.models.scalar_head import ScalarHead
from starling.training.trained import TrainedPart, all_layers_of, layers_of, trained_parameters

WIDE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "pad_token_id": 0, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**WIDE),
    "llama, tied": lambda: tf.LlamaConfig(**WIDE, tie_word_embeddings=True),
    "gpt2": lambda: tf.GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=64, pad_token_id=0),
    "opt": lambda: tf.OPTConfig(**WIDE, ffn_dim=48, word_embed_proj_dim=32),
    "phi": lambda: tf.PhiConfig(**WIDE),
    "bloom": lambda: tf.BloomConfig(vocab_size=97, hidden_size=32, n_layer=3, n_head=4, pad_token_id=0),
}
BEHIND = {  # what follows the last layer; a tied head goes by the name of the embedding
    "llama": ("model.norm.", "lm_head."),
    "llama, tied": ("model.norm.", "model.embed_tokens."),
    "gpt2": ("transformer.ln_f.", "transformer.wte."),
    "opt": ("model.decoder.final_layer_norm.", "model.decoder.embed_tokens."),
    "phi": ("model.final_layernorm.", "lm_head."),
    "bloom": ("transformer.ln_f.", "transformer.word_embeddings.weight"),
}
LAST = {
    "llama": "model.layers.2.", "llama, tied": "model.layers.2.", "gpt2": "transformer.h.2.",
    "opt": "model.decoder.layers.2.", "phi": "model.layers.2.", "bloom": "transformer.h.2.",
}  # fmt: skip
REPLIES = [Encoded((3, 4, 5, 6, 7), 2), Encoded((3, 4, 8), 2)]
SEED = 11


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def causal(name: str = "llama") -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tf.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()


def own_critic(name: str = "llama") -> ScalarHead:
    config = CONFIGS[name]()
    config.num_labels = 1
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return ScalarHead(tf.AutoModelForSequenceClassification.from_config(config).eval())


def trained(module: Any) -> set[str]:
    return {name for name, _ in trained_parameters(module)}


def starting(model: Any, *begin: str) -> set[str]:
    found = {name for name, _ in model.named_parameters() if name.startswith(begin)}
    assert all(any(name.startswith(b) for name in found) for b in begin)
    return found


# ── last layers ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CONFIGS)
def test_last_layers_of_a_policy_are_trained_with_what_follows_them(name: str) -> None:
    model = causal(name)
    TrainedPart(model, LastLayers(type="last_layers", layers=1), SEED)
    assert trained(model) == starting(model, LAST[name], *BEHIND[name])
    model = causal(name)
    TrainedPart(model, LastLayers(type="last_layers", layers=0), SEED)
    assert trained(model) == starting(model, *BEHIND[name])
    model = causal(name)
    TrainedPart(model, FullTraining(type="full"), SEED)
    assert trained(model) == {name for name, _ in model.named_parameters()}


def test_finding_what_follows_leaves_no_trace() -> None:
    model = causal().train()
    state = torch.get_rng_state()
    TrainedPart(model, LastLayers(type="last_layers", layers=1), SEED)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_a_critic_is_trained_as_the_policy_with_its_head() -> None:
    actor = Actor(causal(), own_critic())
    TrainedPart(actor, LastLayers(type="last_layers", layers=1), SEED)
    policy = starting(actor, *(f"policy.{x}" for x in (LAST["llama"], *BEHIND["llama"])))
    assert trained(actor) == policy | starting(
        actor, "critic.model.model.layers.2.", "critic.model.model.norm.", "critic.model.score."
    )
    actor = Actor(causal(), SharedCritic(32, 0))
    TrainedPart(actor, LastLayers(type="last_layers", layers=1), SEED)
    assert trained(actor) == policy | starting(actor, "critic.")
    actor = Actor(causal())
    TrainedPart(actor, LastLayers(type="last_layers", layers=1), SEED)
    assert trained(actor) == policy


def test_a_reward_model_keeps_its_rule() -> None:
    critic = own_critic()
    TrainedPart(critic.model, LastLayers(type="last_layers", layers=1), SEED)
    assert trained(critic.model) == starting(critic.model, "model.layers.2.", "score.")


# ── adapters ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def moved(actor: Actor) -> None:
    """One big step of everything that is trained."""
    out = actor(lay_out(REPLIES, 0), values=actor.critic is not None)
    (out.logprobs_BR.sum() + (0 if out.values_BR is None else out.values_BR.sum())).backward()
    with torch.no_grad():
        for parameter in actor.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.sign(parameter.grad), alpha=0.05)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama", "llama, tied", "gpt2", "opt", "phi"])
def test_adapters_of_a_policy_leave_its_head_alone(name: str) -> None:
    actor = Actor(causal(name), own_critic(name))
    TrainedPart(actor, LoRA(type="lora", rank=2), SEED)
    assert trained(actor) == {n for n, _ in actor.named_parameters() if "lora_" in n} | starting(actor, "critic.model.score.")
    assert sum("lora_" in n and n.startswith("policy.") for n in trained(actor)) >= 3 * 4 * 2
    assert sum("lora_" in n and n.startswith("critic.") for n in trained(actor)) >= 3 * 4 * 2


def test_adapters_follow_from_the_seed_alone() -> None:
    def first(seed: int, noise: int) -> dict[str, torch.Tensor]:
        actor = Actor(causal(), own_critic())
        torch.manual_seed(noise)
        TrainedPart(actor, LoRA(type="lora", rank=2), seed)
        return {n: p.detach() for n, p in trained_parameters(actor)}

    one, again, other = first(1, 5), first(1, 6), first(2, 5)
    assert all(torch.equal(one[n], again[n]) for n in one)
    assert not torch.equal(one["policy.model.layers.0.mlp.up_proj.lora_A.default.weight"],
                           other["policy.model.layers.0.mlp.up_proj.lora_A.default.weight"])  # fmt: skip
    assert not torch.equal(one["policy.model.layers.0.mlp.up_proj.lora_A.default.weight"],
                           one["critic.model.model.layers.0.mlp.up_proj.lora_A.default.weight"])  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_peft_opens_the_adapter_of_a_policy_on_its_base(name: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    causal(name).save_pretrained(base)
    actor = Actor(causal(name), own_critic(name))
    part = TrainedPart(actor, LoRA(type="lora", rank=2, save="adapter"), SEED)
    assert part.saves_adapter
    moved(actor)
    tuned = actor(lay_out(REPLIES, 0)).logprobs_BR.detach()
    part.finish()
    part.save_adapter(tmp_path / "adapter", base)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
    assert config["modules_to_save"] is None
    opened = PeftModel.from_pretrained(tf.AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "adapter"))
    theirs = Actor(opened.base_model.model)(lay_out(REPLIES, 0)).logprobs_BR
    torch.testing.assert_close(theirs, tuned, rtol=1e-5, atol=1e-5)
    assert float((Actor(causal(name))(lay_out(REPLIES, 0)).logprobs_BR.detach() - tuned).abs().max()) > 1e-3


def test_merging_leaves_an_ordinary_model(tmp_path: Path) -> None:
    actor = Actor(causal(), own_critic())
    part = TrainedPart(actor, LoRA(type="lora", rank=2), SEED)
    assert not part.saves_adapter
    moved(actor)
    before = actor(lay_out(REPLIES, 0), values=True)
    part.finish()
    assert {n for n, _ in actor.named_parameters()} == {n for n, _ in Actor(causal(), own_critic()).named_parameters()}
    after = actor(lay_out(REPLIES, 0), values=True)
    torch.testing.assert_close(after.logprobs_BR, before.logprobs_BR, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after.values_BR, before.values_BR, rtol=1e-5, atol=1e-5)
    actor.policy.save_pretrained(tmp_path)
    read = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(Actor(read)(lay_out(REPLIES, 0)).logprobs_BR, after.logprobs_BR, rtol=0, atol=0)


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("settings", "key"), [
    (LastLayers(type="last_layers", layers=4), "trained.layers"),
    (LoRA(type="lora", target_modules=("w",)), "trained.target_modules"),
])  # fmt: skip
def test_errors_name_the_section_that_they_come_from(settings: Any, key: str) -> None:
    for model, section in ((causal(), "policy"), (Actor(causal(), own_critic()), "policy"), (own_critic().model, "reward")):
        with pytest.raises(ConfigError) as caught:
            TrainedPart(model, settings, SEED)
        assert f"{section}.{key}" in str(caught.value)


# ── layers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_layers_of_both_trunks_are_found() -> None:
    actor = Actor(causal(), own_critic("gpt2"))
    assert isinstance(actor.critic, ScalarHead)
    expected = [*actor.policy.model.layers, *actor.critic.model.transformer.h]
    assert [id(x) for x in all_layers_of(actor)] == [id(x) for x in expected]
    for module in (actor.policy, actor.policy.model, actor.critic, actor.critic.model, Actor(causal("opt"), SharedCritic(32, 0))):
        assert [id(x) for x in all_layers_of(module)] == [id(x) for x in layers_of(module)]
        assert len(all_layers_of(module)) == 3
    plain = torch.nn.Sequential(torch.nn.ModuleList([torch.nn.Linear(1, 1) for _ in range(2)]))
    assert len(all_layers_of(plain)) == 2
    assert all_layers_of(torch.nn.Linear(1, 1)) == []

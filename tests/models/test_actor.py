"""Every pass of policy tuning gives the numbers and gradients of the plain one: each reply alone, unpadded, through the model's
own forward pass, softmax over all its logits.

The models are tiny and random.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from starling.config import CriticSection, LoRA
from starling.errors import InputError
from starling.models import actor as actor_module
from starling.models import tree_attention
from starling.models.actor import Actor, Outputs, SharedCritic, build_actor, choose_reply_layout, evaluating, reply_logprobs
from starling.models.encode import Encoded
from starling.models.load import load_causal, load_reward_tokenizer, load_tokenizer, save_folder
from starling.models.replies import ReplyLayout, lay_out
from starling.models.scalar_head import ScalarHead
from starling.training.trained import TrainedPart, layers_of

WIDE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 128,
}  # fmt: skip
GROUPED = {**WIDE, "num_key_value_heads": 2}
GEMMA = {**WIDE, "num_key_value_heads": 1, "head_dim": 16}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**GROUPED),
    "llama, tied": lambda: tf.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "mistral, window 13": lambda: tf.MistralConfig(**GROUPED, sliding_window=13),
    "qwen2": lambda: tf.Qwen2Config(**GROUPED),
    "qwen3": lambda: tf.Qwen3Config(**GROUPED, head_dim=16),
    "gemma": lambda: tf.GemmaConfig(**GEMMA),
    "gemma2, soft-capped": lambda: tf.Gemma2Config(
        **GEMMA, sliding_window=11, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128, pad_token_id=0, bos_token_id=1, eos_token_id=2
    ),
    "opt": lambda: tf.OPTConfig(**WIDE, ffn_dim=48, word_embed_proj_dim=32),
    "phi": lambda: tf.PhiConfig(**WIDE),  # its head has a bias
    "phi3": lambda: tf.Phi3Config(**GROUPED),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**WIDE),
    "cohere": lambda: tf.CohereConfig(**GROUPED, logit_scale=0.25),
    "granite": lambda: tf.GraniteConfig(**GROUPED, logits_scaling=3.0),
}
TEMPERATURE = 0.7


def some_replies() -> list[Encoded]:
    """Prompt A with equal replies, one of one token, two that begin alike and one inside another, mixed with prompt B's."""
    draw = random.Random(0)

    def words(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 97) for _ in range(n))

    a, b, begun = words(24), words(9), words(10)
    twice = words(20)
    pairs = [
        (a, twice), (b, words(5)), (a, words(1)), (a, begun + words(9)), (b, words(1)), (a, begun + words(17)),
        (a, begun), (a, twice),
    ]  # fmt: skip
    return [Encoded(prompt + reply, len(prompt)) for prompt, reply in pairs]


REPLIES = some_replies()
LENGTHS = [len(r.ids) - r.prompt_length for r in REPLIES]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than they gain on models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn(config: Any, auto: Any, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for rate in [n for n, v in config.to_dict().items() if "drop" in n and isinstance(v, float)]:
            setattr(config, rate, 0.0)
        model = auto.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def make(name: str, critic: str = "own") -> Actor:
    config = CONFIGS[name]
    policy = drawn(config(), tf.AutoModelForCausalLM, 0)
    if critic == "none":
        return Actor(policy)
    if critic == "shared" or name in ("cohere", "granite"):  # no classifier in transformers
        head = SharedCritic(32, 0)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            torch.nn.init.normal_(head.score.weight)  # away from 0, so that its gradient reaches the trunk
        return Actor(policy, head)
    scalar = config()
    scalar.num_labels = 1
    return Actor(policy, ScalarHead(drawn(scalar, tf.AutoModelForSequenceClassification, 1)))


def padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def plain(actor: Actor, replies: Sequence[Encoded], temperature: float) -> Outputs:
    """What the fast passes are compared with: nothing of Starling but the critic's last layer."""
    logprobs, entropies, values = [], [], []
    for reply in replies:
        ids = torch.tensor([reply.ids])
        read = actor.policy(input_ids=ids, output_hidden_states=isinstance(actor.critic, SharedCritic))
        before = slice(reply.prompt_length - 1, len(reply.ids) - 1)
        all_TV = torch.log_softmax(read.logits[0, before] / temperature, -1)
        logprobs.append(all_TV[range(len(all_TV)), reply.ids[reply.prompt_length :]])
        entropies.append(torch.distributions.Categorical(logits=all_TV).entropy())
        if isinstance(actor.critic, SharedCritic):
            values.append(actor.critic(read.hidden_states[-1][0, before]))
        elif actor.critic is not None:
            model: Any = actor.critic.model
            values.append(model.score(getattr(model, model.base_model_prefix)(ids).last_hidden_state[0, before])[:, 0])
    return Outputs(padded(logprobs), padded(entropies), padded(values) if values else None)


def fast(actor: Actor, layout: ReplyLayout) -> Outputs:
    return actor(lay_out(REPLIES, 0, layout), temperature=TEMPERATURE, entropy=True, values=True)  # type: ignore[no-any-return]


def measured(actor: Actor, outputs: Outputs) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The outputs, and the gradient of all parameters by a sum in which every one of them counts differently."""
    actor.zero_grad()
    found = [x for x in (outputs.logprobs_BR, outputs.entropy_BR, outputs.values_BR) if x is not None]
    weights = torch.randn(len(found), *found[0].shape, generator=torch.Generator().manual_seed(0))
    torch.autograd.backward(sum((x * w).sum() for x, w in zip(found, weights, strict=True)))
    return [x.detach() for x in found], torch.cat([p.grad.flatten() for p in actor.parameters() if p.grad is not None])


def assert_same(
    ours: tuple[list[torch.Tensor], torch.Tensor], theirs: tuple[list[torch.Tensor], torch.Tensor], bound: float = 1e-5
) -> None:
    assert len(ours[0]) == len(theirs[0])
    for mine, other in zip(ours[0], theirs[0], strict=True):
        assert other.std() > 0.1, "numbers that hardly differ would agree whatever the attention"
        assert mine.dtype == torch.float32
        assert float((mine - other).abs().max()) < bound
    assert ours[1].shape == theirs[1].shape
    assert float((ours[1] - theirs[1]).norm() / theirs[1].norm()) < bound


# ── parity ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CONFIGS)
def test_numbers_and_gradients_are_those_of_the_plain_path(name: str) -> None:
    actor = make(name)
    expected = measured(actor, plain(actor, REPLIES, TEMPERATURE))
    for layout in ("sequences", "shared_prefix", "sequences"):  # and again, now that the attention is ours
        assert_same(measured(actor, fast(actor, layout)), expected)  # type: ignore[arg-type]
    assert actor.policy.config._attn_implementation == tree_attention.NAME


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    actor = make(name)
    expected = measured(actor, plain(actor, REPLIES, TEMPERATURE))
    models = [actor.policy, *([actor.critic.model] if isinstance(actor.critic, ScalarHead) else [])]
    runs: list[int] = []
    for model in models:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        norms = [part for part in layers_of(model)[0].modules() if "Norm" in type(part).__name__]
        norms[0].register_forward_hook(lambda *_: runs.append(1))
    actor.train()
    for layout in ("sequences", "shared_prefix"):
        runs.clear()
        assert_same(measured(actor, fast(actor, layout)), expected)  # type: ignore[arg-type]
        assert len(runs) == 2 * len(models)  # once forwards, once more backwards


@pytest.mark.parametrize("layout", ["sequences", "shared_prefix"])
def test_a_head_on_the_policys_trunk_takes_one_pass_and_moves_the_trunk(layout: ReplyLayout) -> None:
    actor = make("llama", "shared")
    expected = measured(actor, plain(actor, REPLIES, TEMPERATURE))
    passes: list[int] = []
    actor.policy.model.norm.register_forward_hook(lambda *_: passes.append(1))
    assert_same(measured(actor, fast(actor, layout)), expected)
    assert passes == [1]
    actor.zero_grad()
    values_BR = actor(lay_out(REPLIES, 0, layout), logprobs=False, values=True).values_BR
    values_BR.square().sum().backward()
    assert float(actor.policy.model.layers[0].mlp.up_proj.weight.grad.norm()) > 0.01


def test_a_fresh_head_on_the_trunk_says_0_and_learns() -> None:
    head = SharedCritic(32, 3)
    hidden_ND = torch.randn(5, 32, requires_grad=True)
    values_N = head(hidden_ND)
    assert values_N.tolist() == [0.0] * 5
    values_N.sum().backward()
    assert float(head.score.weight.grad.norm()) > 0
    assert [tuple(p.shape) for p in head.parameters()] == [(64, 32), (64,), (1, 64), (1,)]
    torch.testing.assert_close(SharedCritic(32, 3).widen.weight, head.widen.weight, rtol=0, atol=0)


def test_only_what_is_asked_for_is_computed() -> None:
    actor = make("llama")
    heads: list[str] = []
    actor.policy.lm_head.register_forward_hook(lambda *_: heads.append("lm"))
    assert isinstance(actor.critic, ScalarHead)
    actor.critic.model.model.register_forward_hook(lambda *_: heads.append("critic"))
    replies = lay_out(REPLIES, 0)
    values = actor(replies, logprobs=False, values=True)
    assert values.logprobs_BR is None
    assert values.entropy_BR is None
    assert heads == ["critic"]
    assert actor(replies).values_BR is None
    only = actor(replies, logprobs=False, entropy=True)
    assert only.logprobs_BR is None
    assert only.entropy_BR is not None
    assert heads == ["critic", "lm", "lm"]
    assert Actor(actor.policy)(replies, values=True).values_BR is None


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("layout", ["sequences", "shared_prefix"])
def test_nothing_depends_on_order_padding_or_the_split_into_batches(layout: ReplyLayout) -> None:
    actor = make("qwen2")
    whole = actor(lay_out(REPLIES, 0, layout), values=True)
    order = [5, 0, 7, 3, 1, 2, 6, 4]
    for pad_id, batches in ((0, [order]), (50, [order[:3], order[3:4], order[4:]])):
        for batch in batches:
            part = actor(lay_out([REPLIES[i] for i in batch], pad_id, layout), values=True)
            width = part.logprobs_BR.shape[1]
            for mine, all_BR in ((part.logprobs_BR, whole.logprobs_BR), (part.values_BR, whole.values_BR)):
                torch.testing.assert_close(mine, all_BR[batch, :width], rtol=0, atol=1e-5)


def test_places_without_a_token_are_0() -> None:
    actor = make("llama")
    out = actor(lay_out(REPLIES, 0), entropy=True, values=True)
    beyond_BR = torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None]
    for x in (out.logprobs_BR, out.entropy_BR, out.values_BR):
        assert x[beyond_BR].abs().max() == 0
        assert (x[~beyond_BR] != 0).all()


def test_half_precision_sums_in_fp32() -> None:
    actor = make("llama")
    with torch.no_grad():
        exact = fast(actor, "sequences").logprobs_BR
        for layout in ("sequences", "shared_prefix"):
            with torch.autocast("cpu", torch.bfloat16):
                half = fast(actor, layout).logprobs_BR  # type: ignore[arg-type]
            assert half is not None
            assert half.dtype == torch.float32
            assert 1e-4 < float((half - exact).abs().max()) < 0.2  # type: ignore[operator]


def test_a_model_that_is_no_part_of_an_actor() -> None:
    actor = make("llama")
    logprobs_BR, entropy_BR = reply_logprobs(actor.policy, lay_out(REPLIES, 0), temperature=TEMPERATURE, entropy=True)
    expected = plain(actor, REPLIES, TEMPERATURE)
    torch.testing.assert_close(logprobs_BR, expected.logprobs_BR, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy_BR, expected.entropy_BR, rtol=0, atol=1e-5)


# ── the trial ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["llama", "mistral, window 13", "gemma2, soft-capped", "gpt2"])
@pytest.mark.parametrize("critic", ["own", "shared", "none"])
def test_a_trial_chooses_the_shared_prompt_and_leaves_no_trace(name: str, critic: str) -> None:
    actor = make(name, critic).train()
    actor.policy.eval()
    for parameter in actor.parameters():
        parameter.grad = torch.ones_like(parameter)
    actor.policy.get_input_embeddings().weight.requires_grad_(False)
    assert choose_reply_layout(actor, REPLIES, 0, "auto") == "shared_prefix"
    assert all((p.grad == 1).all() for p in actor.parameters())
    assert actor.training
    assert not any(part.training for part in actor.policy.modules())
    assert choose_reply_layout(actor, REPLIES, 0, "sequences") == "sequences"


def test_a_critic_that_says_0_does_not_spoil_the_trial() -> None:
    actor = make("llama")
    assert isinstance(actor.critic, ScalarHead)
    torch.nn.init.zeros_(actor.critic.model.score.weight)
    assert choose_reply_layout(actor, REPLIES, 0, "shared_prefix") == "shared_prefix"


@pytest.mark.parametrize("part", ["policy", "critic"])
@pytest.mark.parametrize("samples", [1, 4])
def test_a_wrong_mask_is_found(
    part: str, samples: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    actor = make("llama")
    wrong = actor.policy.model if part == "policy" else actor.critic.model.model  # type: ignore[union-attr]
    original = tree_attention.hidden_states

    def blind(model: Any, forest: Any) -> torch.Tensor:
        if model is wrong:  # each reply is taken for a document of its own: what transformers would do
            segments = tuple(s._replace(end=s.stop) for s in forest.segments)
            forest = type(forest)(forest.ids_1T, forest.position_1T, forest.last_N, segments)
        return original(model, forest)

    monkeypatch.setattr(tree_attention, "hidden_states", blind)
    replies = [REPLIES[0], REPLIES[1]] if samples == 1 else REPLIES  # no prompt with two replies: one is made up
    with pytest.raises(InputError, match="Shared prompts change the log-probabilities by") as caught:
        choose_reply_layout(actor, replies, 0, "shared_prefix")
    assert "policy.layout" in str(caught.value)
    before = actor.policy.config._attn_implementation
    with caplog.at_level(logging.WARNING):
        assert choose_reply_layout(make("llama"), replies, 0, "auto") == "shared_prefix"
        assert not caplog.records
        assert choose_reply_layout(actor, replies, 0, "auto") == "sequences"
    assert "prompts are not shared" in caplog.text
    assert before == tree_attention.NAME


def test_an_architecture_that_cannot_share_is_left_as_it_was() -> None:
    config = tf.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0)
    actor = Actor(drawn(config, tf.AutoModelForCausalLM, 0))
    before = actor.policy.config._attn_implementation
    assert choose_reply_layout(actor, REPLIES, 0, "auto") == "sequences"
    assert actor.policy.config._attn_implementation == before
    with pytest.raises(InputError, match="cannot share prefixes"):
        choose_reply_layout(actor, REPLIES, 0, "shared_prefix")


def test_a_pair_for_the_trial_is_always_two_different_replies() -> None:
    same = Encoded((1, 2, 3, 4), 2)
    for replies in ([same], [same, same], [Encoded((1, 2), 1)], [Encoded((1, 2, 3), 2), Encoded((1, 4, 3), 2)]):
        pair = actor_module._pair(replies)
        assert len(pair) == 2
        assert pair[0].ids[: pair[0].prompt_length] == pair[1].ids[: pair[1].prompt_length]
        lay_out(pair, 0, "shared_prefix")
    assert actor_module._pair([same])[1] == Encoded((1, 2, 4, 3), 2)
    assert actor_module._pair([same, Encoded((1, 2, 3, 4), 2)])[1] == Encoded((1, 2, 4, 3), 2)  # equal, not the same object


def test_dropout_of_adapters_does_not_spoil_the_trial() -> None:
    actor = make("llama")
    TrainedPart(actor, LoRA(type="lora", rank=4, dropout=0.5), 1)
    for name, parameter in actor.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert choose_reply_layout(actor.train(), REPLIES, 0, "shared_prefix") == "shared_prefix"


# ── making one ───────────────────────────────────────────────────────────────────────────────────────────────────────


def build(base: Path, reward: Path, critic: CriticSection | None, tokenizer: Any = None) -> Actor:
    return build_actor(load_causal(base), critic, reward, base, 7, tokenizer or load_tokenizer(base))


class TestBuild:
    @pytest.fixture
    def reward(self, backbone: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
        def make(name: str) -> Path:
            config = tf.AutoConfig.from_pretrained(backbone(name), num_labels=1)
            folder = tmp_path / f"reward {name}"
            save_folder(
                folder, ScalarHead(drawn(config, tf.AutoModelForSequenceClassification, 2)), load_tokenizer(backbone(name))
            )
            return folder

        return make

    def test_an_own_critic_starts_from_the_reward_model(self, backbone: Callable[..., Path], reward: Callable[..., Path]) -> None:
        folder = reward("llama")
        actor = build(backbone("llama", dropout=0.1), folder, CriticSection())
        assert isinstance(actor.critic, ScalarHead)
        expected = tf.AutoModelForSequenceClassification.from_pretrained(folder)
        torch.testing.assert_close(actor.critic.model.score.weight, expected.score.weight, rtol=0, atol=0)
        actor.train()
        first, second = (actor(lay_out(REPLIES, 0), values=True) for _ in range(2))
        for x, y in ((first.logprobs_BR, second.logprobs_BR), (first.values_BR, second.values_BR)):
            torch.testing.assert_close(x, y, rtol=0, atol=0)  # no dropout, although the folder has one

    @pytest.mark.parametrize("name", ["gpt2", "opt"])
    def test_dropout_is_off_in_every_family(self, name: str, backbone: Callable[..., Path], reward: Callable[..., Path]) -> None:
        policy = drawn(tf.AutoConfig.from_pretrained(backbone(name)), tf.AutoModelForCausalLM, 0)
        for part in policy.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.3
            if isinstance(getattr(part, "dropout", None), float):
                part.dropout = 0.3
        actor = build_actor(policy, None, Path(), backbone(name), 0, None).train()
        first, second = (actor(lay_out(REPLIES, 0)).logprobs_BR for _ in range(2))
        torch.testing.assert_close(first, second, rtol=0, atol=0)

    def test_an_own_critic_starts_from_the_policy_with_values_of_0(self, backbone: Callable[..., Path]) -> None:
        tokenizer = load_tokenizer(backbone("llama"))
        tokenizer.pad_token = tokenizer.eos_token
        known = len(tokenizer)
        actor = build(backbone("llama"), Path("nowhere"), CriticSection(start="policy"), tokenizer)
        assert isinstance(actor.critic, ScalarHead)
        torch.testing.assert_close(
            actor.critic.model.model.layers[0].mlp.up_proj.weight, actor.policy.model.layers[0].mlp.up_proj.weight
        )
        assert actor(lay_out(REPLIES, 0), values=True).values_BR.abs().max() == 0
        assert len(tokenizer) == known

    def test_a_head_on_the_trunk_and_none(self, backbone: Callable[..., Path]) -> None:
        actor = build(backbone("gpt2"), Path("nowhere"), CriticSection(trunk="shared"))
        assert isinstance(actor.critic, SharedCritic)
        assert actor(lay_out(REPLIES, 0), values=True).values_BR.abs().max() == 0
        assert build(backbone("gpt2"), Path("nowhere"), None).critic is None

    def test_a_policy_whose_logits_are_not_understood_is_refused(self, backbone: Callable[..., Path]) -> None:
        policy = load_causal(backbone("llama"))
        policy.config.final_logit_softcapping = 0.5  # its class does not look at it
        with pytest.raises(InputError, match="does something to its logits"):
            build_actor(policy, None, Path(), backbone("llama"), 0, None)

    def test_an_encoder_starts_no_critic(self, backbone: Callable[..., Path], reward: Callable[..., Path]) -> None:
        with pytest.raises(InputError, match="this one is an encoder"):
            build(backbone("llama"), reward("bert"), CriticSection())

    def test_tokens_must_be_the_same_but_the_reward_model_may_know_more(
        self, backbone: Callable[..., Path], reward: Callable[..., Path]
    ) -> None:
        folder = reward("llama")
        more = load_reward_tokenizer(folder)
        more.add_special_tokens({"pad_token": "<|another pad|>"})
        more.save_pretrained(folder)
        build(backbone("llama"), folder, CriticSection())
        other = copy.deepcopy(load_tokenizer(backbone("llama")))
        other.add_tokens(["a token that the reward model has not"])
        with pytest.raises(InputError, match="different tokenizers"):
            build(backbone("llama"), folder, CriticSection(), other)


def test_evaluation_mode_is_left_part_by_part() -> None:
    actor = make("llama", "none")
    actor.train()
    actor.policy.model.layers[1].eval()
    before = [part.training for part in actor.modules()]
    inside: list[bool] = []

    def fails() -> None:
        with evaluating(actor):
            inside.extend(part.training for part in actor.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert inside
    assert not any(inside)
    assert [part.training for part in actor.modules()] == before

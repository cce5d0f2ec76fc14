"""Shared prefixes give the scores and gradients of one row per conversation, or are refused.

The models are tiny and random; their plain path runs before anything of ours is switched on, with transformers' own attention.
"""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import transformers as tf

from starling.errors import InputError
from starling.models import tree_attention
from starling.models.encode import Encoded, pad_right
from starling.models.scalar_head import ScalarHead
from starling.models.score import Layout, choose_layout, score_groups, verify
from starling.models.tree import Forest, pack

WIDE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 1, "max_position_embeddings": 128,
}  # fmt: skip
GROUPED = {**WIDE, "num_key_value_heads": 2}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**GROUPED),
    "mistral": lambda: tf.MistralConfig(**GROUPED, sliding_window=None),
    "mistral, window 13": lambda: tf.MistralConfig(**GROUPED, sliding_window=13),
    "qwen2": lambda: tf.Qwen2Config(**GROUPED),
    "qwen2, window 9 in one layer": lambda: tf.Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=9, max_window_layers=1
    ),
    "qwen3": lambda: tf.Qwen3Config(**GROUPED, head_dim=16),
    "gemma": lambda: tf.GemmaConfig(**WIDE, num_key_value_heads=1, head_dim=16),
    "gemma2, soft-capped": lambda: tf.Gemma2Config(
        **WIDE, num_key_value_heads=1, head_dim=16, sliding_window=11, attn_logit_softcapping=2.0
    ),
    "gemma3": lambda: tf.Gemma3TextConfig(
        **WIDE, num_key_value_heads=1, head_dim=16, sliding_window=11, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=97,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        num_labels=1,
    ),
    "opt": lambda: tf.OPTConfig(**WIDE, ffn_dim=48, word_embed_proj_dim=32),
    "phi3": lambda: tf.Phi3Config(**GROUPED),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**WIDE),
}


def conversations() -> list[list[Encoded]]:
    """Two rankings: equal answers, one of one token, two that begin alike, one inside another; and two with a cut prompt."""
    draw = random.Random(0)

    def words(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 97) for _ in range(n))

    prompt, begun = words(24), words(10)
    answers = [words(30), words(1), begun + words(9), begun + words(17), begun, words(7)]
    first = [Encoded(prompt + a, len(prompt)) for a in (*answers, answers[0])]
    return [first, [Encoded(prompt[9:] + words(5), 15), Encoded(prompt[9:] + words(8), 15), Encoded(words(12), 6)]]


GROUPS = conversations()
CLEAR = torch.randn(10, generator=torch.Generator().manual_seed(0))  # weights of the scores, so that each one's gradient counts


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than they gain on models of this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(name: str) -> ScalarHead:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CONFIGS[name]()
        for rate in [n for n, v in config.to_dict().items() if "drop" in n and isinstance(v, float)]:
            setattr(config, rate, 0.0)
        model = tf.AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.2)
    return ScalarHead(model.eval())


def measured(head: Any, layout: Layout, groups: Sequence[Sequence[Encoded]] = GROUPS) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores in the order given, and the gradient of all parameters as one vector."""
    head.zero_grad()
    scores_BK, present_BK = score_groups(head, groups, 0, layout)
    scores_N = scores_BK[present_BK]
    (scores_N * CLEAR[: len(scores_N)]).sum().backward()
    return scores_N.detach(), torch.cat([p.grad.flatten() for p in head.parameters() if p.grad is not None])


def assert_same(ours: tuple[torch.Tensor, torch.Tensor], plain: tuple[torch.Tensor, torch.Tensor], bound: float = 1e-5) -> None:
    assert plain[0].std() > 0.1, "scores that hardly differ would agree whatever the attention"
    assert float((ours[0] - plain[0]).abs().max()) < bound
    assert float((ours[1] - plain[1]).norm() / plain[1].norm()) < bound


# ── parity ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_and_gradients_are_those_of_the_plain_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head = make(name)
    plain = measured(head, "sequences")
    assert head.model.config._attn_implementation != tree_attention.NAME
    assert_same(measured(head, "shared_prefix"), plain)
    assert_same(measured(head, "sequences"), plain)  # rows without a forest go the old way, also under our name
    assert_same(measured(head, "all_pairs"), plain)
    original = tree_attention.hidden_states
    for kernel in ("segments", "dense"):
        monkeypatch.setattr(tree_attention, "hidden_states", lambda m, f, kernel=kernel: original(m, f, kernel))
        assert_same(measured(head, "shared_prefix"), plain)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_checkpointing_recomputes_the_same(name: str, reentrant: bool) -> None:
    head = make(name)
    plain = measured(head, "sequences")
    head.train().model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        head.model.enable_input_require_grads()
    runs: list[int] = []
    layers = next(m for m in head.model.modules() if isinstance(m, torch.nn.ModuleList))
    next(layers[0].children()).register_forward_pre_hook(lambda *_: runs.append(1))
    assert_same(measured(head, "shared_prefix"), plain)
    assert len(runs) == 2, "forward, and again in the backward pass"
    assert_same(measured(head, "sequences"), plain)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora(checkpointing: bool) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    head = make("llama")
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]), head.model)
    for name, parameter in head.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    plain = measured(head, "sequences")
    assert 0 < len(plain[1]) < sum(p.numel() for p in head.parameters()) / 2
    if checkpointing:
        head.train().model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same(measured(head, "shared_prefix"), plain)
    verify(head, GROUPS[0], 0)  # its trial needs gradients at frozen embeddings


def test_what_is_shared_is_computed_once() -> None:
    head = make("llama")
    seen: list[int] = []
    head.model.get_submodule("model.layers.0").register_forward_pre_hook(lambda _, args: seen.append(args[0][..., 0].numel()))
    score_groups(head, GROUPS[:1], 0, "shared_prefix")
    assert seen == [24 + 30 + 1 + 10 + 9 + 17 + 7]
    seen.clear()
    score_groups(head, GROUPS[:1], 0, "all_pairs")
    assert seen == [42 * 54]  # 21 pairs of rows, padded to the longest


def test_groups_of_different_sizes_keep_their_slots() -> None:
    head = make("llama")
    for layout in ("shared_prefix", "sequences", "all_pairs"):
        scores_BK, present_BK = score_groups(head, [GROUPS[1], GROUPS[0], GROUPS[1][:1]], 0, layout)
        assert present_BK.sum(1).tolist() == [3, 7, 1]
        assert torch.all(scores_BK[~present_BK] == 0)
        alone = head(pad_right([GROUPS[0][4]], 0))
        assert not alone._is_view(), "FSDP2 could lose its hook on a view"
        torch.testing.assert_close(scores_BK[1, 4:5], alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(scores_BK[0, 0], scores_BK[2, 0], atol=1e-5, rtol=0)
        torch.testing.assert_close(scores_BK[1, 0], scores_BK[1, 6], atol=1e-5, rtol=0)  # equal answers


def test_the_pad_id_may_stand_in_the_text() -> None:
    head = make("llama")
    group = [Encoded((5, 0, 7, *a), 3) for a in ((0,), (8, 0, 0), (9, 9))]
    assert_same(measured(head, "shared_prefix", [group]), measured(make("llama"), "sequences", [group]))


# ── kernels ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def qkv(forest: Forest, groups: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    drawn = [torch.randn(1, forest.tokens, h, 8, generator=generator, dtype=torch.float64) for h in (4, groups, groups)]
    return [t.to(dtype).transpose(1, 2).requires_grad_() for t in drawn]


class Layer:
    """What `attend` asks of an attention module."""

    is_causal = True
    config = None


def attended(
    forest: Forest, tensors: Sequence[torch.Tensor], kernel: tree_attention.Kernel, **options: Any
) -> list[torch.Tensor]:
    """Output and gradients of query, key and value."""
    out, _ = tree_attention.attend(Layer(), *tensors, None, starling_tree=tree_attention.Pass(forest, kernel), **options)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), tensors)]


def reference_varlen(  # the contract of torch.nn.attention.varlen.varlen_attn: causal aligned at the ends, window (left, 0)
    q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, most_q: int, most_k: int, *, scale: float, window_size: Any, enable_gqa: bool
) -> torch.Tensor:
    out = []
    for s in range(len(cu_q) - 1):
        qs, ks, vs = q[cu_q[s] : cu_q[s + 1]], k[cu_k[s] : cu_k[s + 1]], v[cu_k[s] : cu_k[s + 1]]
        assert len(qs) <= most_q
        assert len(ks) <= most_k
        assert enable_gqa == (q.shape[1] != k.shape[1])
        ks, vs = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (ks, vs))
        apart = torch.arange(len(qs))[:, None] + len(ks) - len(qs) - torch.arange(len(ks))
        hidden = (apart < 0) | ((apart > window_size[0]) if window_size[0] >= 0 else torch.zeros_like(apart, dtype=torch.bool))
        logits = torch.einsum("qhd,khd->hqk", qs, ks).mul(scale).masked_fill(hidden, -torch.inf)
        out.append(torch.einsum("hqk,khd->qhd", logits.softmax(-1), vs))
    return torch.cat(out)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 5])
def test_every_kernel_is_the_dense_one(groups: int, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_attention, "_varlen_kernel", lambda: reference_varlen)
    forest = pack([[row.ids for row in group] for group in GROUPS])
    tensors = qkv(forest, groups, torch.float64)
    dense = attended(forest, tensors, "dense", sliding_window=window, scaling=0.3)
    kernels: list[tree_attention.Kernel] = ["segments", "varlen", *(["merged"] if window is None else [])]  # type: ignore[list-item]
    for kernel in kernels:
        for ours, theirs in zip(attended(forest, tensors, kernel, sliding_window=window, scaling=0.3), dense, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_half_precision_joins_parts_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The joined output errs no more than the kernel itself does on whole rows."""
    forest = pack([[row.ids for row in group] for group in GROUPS])
    exact = attended(forest, qkv(forest, 2, torch.float64), "dense")
    half = [attended(forest, qkv(forest, 2, torch.bfloat16), kernel) for kernel in ("merged", "dense")]  # type: ignore[arg-type]
    for truth, merged, dense in zip(exact, *half, strict=True):
        errors = [float((t.double() - truth).norm() / truth.norm()) for t in (merged, dense)]
        assert errors[0] < 0.01
        assert errors[0] < 1.5 * errors[1]


def test_autocast_reaches_the_kernel() -> None:
    head = make("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = measured(head, "sequences")
        assert_same(measured(head, "shared_prefix"), plain, 0.05)


def test_the_kernel_follows_device_window_and_softcap() -> None:
    query = torch.zeros(1, 1, 3, 8)
    assert tree_attention.choose(query, query, None, None) == "merged"
    assert tree_attention.choose(query, query, 4, None) == "segments"
    assert tree_attention.choose(query, query, None, 30.0) == "segments"
    assert tree_attention.choose(query, query[..., :4], None, None) == "segments"
    assert tree_attention.choose(query.to("meta"), query, None, None) == "segments"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 5])
def test_the_varlen_kernel_of_cuda(window: int | None) -> None:
    forest = pack([[row.ids for row in group] for group in GROUPS]).to("cuda")
    tensors = [t.detach().cuda().requires_grad_() for t in qkv(forest, 2, torch.bfloat16)]
    dense = attended(forest, tensors, "dense", sliding_window=window)
    assert tree_attention.choose(tensors[0], tensors[2], window, None) == "varlen"
    for ours, theirs in zip(attended(forest, tensors, "varlen", sliding_window=window), dense, strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-2, rtol=3e-2)


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (tf.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1, state_size=4), "linear_attention"),
        (tf.RwkvConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1, context_length=8), "recurrent state"),
        (
            tf.Qwen3NextConfig(**{**GROUPED, "num_hidden_layers": 4}, num_experts=2, moe_intermediate_size=8, head_dim=8),
            "linear_attention",
        ),
        (tf.StableLmConfig(**WIDE), "does not pass keyword arguments"),
        (tf.BloomConfig(vocab_size=97, hidden_size=32, n_layer=1, n_head=4), "does not pass keyword arguments"),
        (tf.FalconConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, alibi=True), "ALiBi"),
    ],
    ids=["mamba", "rwkv", "qwen3_next", "stablelm", "bloom", "falcon"],
)
def test_architectures_that_would_be_wrong_are_refused(config: Any, reason: str) -> None:
    with torch.device("meta"):
        model = tf.AutoModel.from_config(config)
    with pytest.raises(InputError, match=f"cannot share prefixes.*{reason}"):
        tree_attention.enable(model)
    assert model.config._attn_implementation != tree_attention.NAME


def test_attention_sinks_are_refused() -> None:
    config = tf.GptOssConfig(**{**GROUPED, "head_dim": 8}, num_local_experts=2, num_experts_per_tok=1, sliding_window=64)
    head = ScalarHead(tf.AutoModelForSequenceClassification.from_config(config).eval())
    with pytest.raises(InputError, match="wants s_aux"):
        score_groups(head, GROUPS, 0, "shared_prefix")


def test_attention_dropout_is_refused() -> None:
    head = make("llama").train()
    for layer in head.model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(InputError, match="dropout"):
        score_groups(head, GROUPS, 0, "shared_prefix")


def test_layers_that_lose_the_forest_are_noticed() -> None:
    head = make("llama")

    def lose(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        kwargs.pop("starling_tree")
        return args, kwargs

    handle = head.model.model.layers[1].register_forward_pre_hook(lose, with_kwargs=True)
    with pytest.raises(InputError, match="drop the keyword arguments"):
        score_groups(head, GROUPS, 0, "shared_prefix")
    handle.remove()
    del head.model.model.layers[1]  # a layer that is none of ours: counted, not assumed
    with pytest.raises(InputError, match="reached 1 of 2 attention layers"):
        score_groups(head, GROUPS, 0, "shared_prefix")


def test_a_window_that_attention_is_not_told_of_is_noticed() -> None:
    head = make("llama")
    head.model.config.sliding_window = 16
    with pytest.raises(InputError, match="see 16 tokens only"):
        score_groups(head, GROUPS, 0, "shared_prefix")
    score_groups(head, [[Encoded(row.ids[-16:], 0) for row in GROUPS[0]]], 0, "shared_prefix")  # too short to matter


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_learned_positions_have_an_end(name: str) -> None:
    head = make(name)
    score_groups(head, [[Encoded(tuple([5] * 128), 0)]], 0, "shared_prefix")
    with pytest.raises(InputError, match="129 tokens, the model has 128 positions"):
        score_groups(head, [[Encoded(tuple([5] * 129), 0), GROUPS[0][0]]], 0, "shared_prefix")


# ── the trial ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as transformers would do it without a mask of ours: every branch sees all branches before it."""
    monkeypatch.setattr(tree_attention, "choose", lambda *_: "dense")
    monkeypatch.setattr(tree_attention, "dense_mask", lambda forest, _: torch.ones(forest.tokens, forest.tokens).bool().tril())


def test_the_trial_passes_and_leaves_gradients_alone() -> None:
    head = make("qwen3")
    measured(head, "sequences")
    before = [p.grad for p in head.parameters()]
    kept = [g.clone() for g in before if g is not None]
    with torch.no_grad():
        assert choose_layout(head, GROUPS[0], 0, "auto") == "shared_prefix"
    after = [p.grad for p in head.parameters()]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept, (g for g in after if g is not None), strict=True))
    assert choose_layout(head, GROUPS[0], 0, "sequences") == "sequences"
    assert choose_layout(head, GROUPS[0], 0, "all_pairs") == "all_pairs"


@pytest.mark.usefixtures("wrong")
def test_the_trial_catches_a_wrong_attention(caplog: pytest.LogCaptureFixture) -> None:
    head = make("llama")
    for half in (False, True):
        with pytest.raises(InputError, match="change the scores by"):
            choose_layout(head, GROUPS[0], 0, "shared_prefix", half)
    head = make("llama")
    with caplog.at_level(logging.WARNING):
        assert choose_layout(head, GROUPS[0], 0, "auto") == "sequences"
    assert "prefixes are not shared" in caplog.text
    assert head.model.config._attn_implementation == "sdpa"


def test_the_trial_catches_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right scores, but the keys of a shared prefix get no gradient from the answers."""
    real = tree_attention._flash_backward

    def partial(*args: Any, **options: Any) -> Any:
        to_q, to_k, to_v = real(*args, **options)
        return (to_q, to_k, to_v) if args[7] else (to_q, to_k * 0, to_v)

    monkeypatch.setattr(tree_attention, "_flash_backward", partial)
    with pytest.raises(InputError, match=r"change the scores by .*e-0[678] and the gradient by"):
        verify(make("llama"), GROUPS[0], 0)


def test_encoders_go_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    head = ScalarHead(tf.AutoModelForSequenceClassification.from_config(tf.BertConfig(**WIDE)).eval())
    with caplog.at_level(logging.WARNING):
        assert choose_layout(head, GROUPS[0], 0, "auto") == "sequences"
    assert not caplog.text
    with pytest.raises(InputError, match="encoder cannot share prefixes"):
        choose_layout(head, GROUPS[0], 0, "shared_prefix")

"""Sizes of a transformers model from its config.json alone: parameters, key-value cache, arithmetic. No weights, no torch.

The counts are those of transformers' own classes (`num_parameters`, compared in the tests for each kind below). A kind that is
not listed is refused rather than guessed.

A model that is not on this machine yet is known by the last two parts of its folder, which are then its name on the hub:
models/openchat/openchat_3.5 has the shape of openchat/openchat_3.5. KNOWN holds what their config.json say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling.errors import InputError


@dataclass(frozen=True)
class Linear:
    """A matrix in a layer, e.g. Linear("k_proj", 4096, 1024)."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs + self.bias * self.outputs


@dataclass(frozen=True)
class Shape:
    """A decoder: `layers` times the same linear layers, embeddings, a head that may be tied to them."""

    kind: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    """Width inside the feed-forward part."""
    vocab: int
    tied: bool
    """Whether the language-model head is the embedding matrix."""
    linears: tuple[Linear, ...]
    """Of one layer."""
    norms: int
    """Other parameters of one layer."""
    final_norm: int
    positions: int
    """Parameters of learned positions."""
    context: int | None
    """Most positions."""

    @property
    def embedding(self) -> int:
        return self.vocab * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return sum(linear.parameters for linear in self.linears) + self.norms

    @property
    def trunk(self) -> int:
        """Without any head."""
        return self.embedding + self.layers * self.layer + self.final_norm + self.positions

    @property
    def causal(self) -> int:
        """Of the language model; a tied head counts once."""
        return self.trunk + (0 if self.tied else self.embedding)

    @property
    def scalar(self) -> int:
        """Of the reward model: the trunk and one output without bias."""
        return self.trunk + self.hidden

    def lora(self, rank: int, targets: tuple[str, ...] = ()) -> int:
        """Of low-rank adapters in the layers' linear layers of these names; in all when none is named."""
        chosen = [linear for linear in self.linears if not targets or linear.name in targets]
        return self.layers * rank * sum(linear.inputs + linear.outputs for linear in chosen)

    def cache_bytes(self, bytes_per_number: int) -> int:
        """Of keys and values per token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_number

    def layer_flops(self, tokens: float, pairs: float) -> float:
        """A forward pass of one layer: two per weight and token, and attention over `pairs` of a token and one it sees."""
        weights = sum(linear.inputs * linear.outputs for linear in self.linears)
        return 2.0 * weights * tokens + 4.0 * self.heads * self.head_dim * pairs

    def head_flops(self, tokens: float) -> float:
        """A forward pass of the language-model head."""
        return 2.0 * self.embedding * tokens


# ── kinds ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Family:
    """How a kind departs from Llama; defaults are what transformers fills in where a config.json is silent."""

    tied: bool = False
    head_dim: int | None = None
    norms_per_layer: int = 2
    qkv_bias: bool = False
    head_norms: bool = False
    """Norms of one head's width on queries and keys."""
    wide_norms: bool = False
    """Norms of all heads' width on queries and keys."""
    fused: bool = False
    """One matrix for q, k, v and one for gate and up: adapters see them whole."""


_LLAMAS: Mapping[str, _Family] = {
    "llama": _Family(),
    "mistral": _Family(),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(head_dim=128, head_norms=True),
    "gemma": _Family(tied=True, head_dim=256),
    "gemma2": _Family(tied=True, head_dim=256, norms_per_layer=4),
    "gemma3_text": _Family(tied=True, head_dim=256, norms_per_layer=4, head_norms=True),
    "phi3": _Family(fused=True),
    "olmo2": _Family(wide_norms=True),
    "smollm3": _Family(tied=True),
}


def _llama(config: Mapping[str, Any]) -> Shape:
    family = _LLAMAS[config["model_type"]]
    hidden, heads, inner = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or family.head_dim or hidden // heads
    queries, keys = heads * head_dim, kv_heads * head_dim
    bias = bool(config.get("attention_bias", False))
    qkv_bias, mlp_bias = bias or family.qkv_bias, bool(config.get("mlp_bias", False))
    first: tuple[Linear, ...]
    if family.fused:
        first = (Linear("qkv_proj", hidden, queries + 2 * keys), Linear("gate_up_proj", hidden, 2 * inner))
    else:
        first = (
            Linear("q_proj", hidden, queries, qkv_bias), Linear("k_proj", hidden, keys, qkv_bias),
            Linear("v_proj", hidden, keys, qkv_bias), Linear("gate_proj", hidden, inner, mlp_bias),
            Linear("up_proj", hidden, inner, mlp_bias),
        )  # fmt: skip
    norms = family.norms_per_layer * hidden
    norms += 2 * head_dim if family.head_norms else queries + keys if family.wide_norms else 0
    return Shape(
        kind=config["model_type"], hidden=hidden, layers=config["num_hidden_layers"], heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, inner=inner, vocab=config["vocab_size"], tied=config.get("tie_word_embeddings", family.tied),
        linears=(*first, Linear("o_proj", queries, hidden, bias), Linear("down_proj", inner, hidden, mlp_bias)),
        norms=norms, final_norm=hidden, positions=0, context=config.get("max_position_embeddings"),
    )  # fmt: skip


def _gpt2(config: Mapping[str, Any]) -> Shape:
    hidden, positions = config["n_embd"], config["n_positions"]
    inner = config.get("n_inner") or 4 * hidden
    return Shape(
        kind="gpt2", hidden=hidden, layers=config["n_layer"], heads=config["n_head"], kv_heads=config["n_head"],
        head_dim=hidden // config["n_head"], inner=inner, vocab=config["vocab_size"],
        tied=config.get("tie_word_embeddings", True),
        linears=(
            Linear("c_attn", hidden, 3 * hidden, True), Linear("c_proj", hidden, hidden, True),
            Linear("c_fc", hidden, inner, True), Linear("c_proj", inner, hidden, True),
        ),
        norms=4 * hidden, final_norm=2 * hidden, positions=positions * hidden, context=positions,
    )  # fmt: skip


def _opt(config: Mapping[str, Any]) -> Shape:
    hidden, inner, positions = config["hidden_size"], config["ffn_dim"], config["max_position_embeddings"]
    if config.get("word_embed_proj_dim", hidden) != hidden or not config.get("do_layer_norm_before", True):
        raise KeyError("word_embed_proj_dim as wide as hidden_size, and do_layer_norm_before")
    bias = config.get("enable_bias", True)
    attention = [Linear(f"{name}_proj", hidden, hidden, bias) for name in ("q", "k", "v", "out")]
    return Shape(
        kind="opt", hidden=hidden, layers=config["num_hidden_layers"], heads=config["num_attention_heads"],
        kv_heads=config["num_attention_heads"], head_dim=hidden // config["num_attention_heads"], inner=inner,
        vocab=config["vocab_size"], tied=config.get("tie_word_embeddings", True),
        linears=(*attention, Linear("fc1", hidden, inner, bias), Linear("fc2", inner, hidden, bias)),
        norms=4 * hidden, final_norm=2 * hidden, positions=(positions + 2) * hidden, context=positions,
    )  # fmt: skip


_KINDS: Mapping[str, Callable[[Mapping[str, Any]], Shape]] = {**dict.fromkeys(_LLAMAS, _llama), "gpt2": _gpt2, "opt": _opt}


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_MISTRAL = {
    "model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 32000,
}  # fmt: skip
_OPENCHAT = {**_MISTRAL, "vocab_size": 32002, "max_position_embeddings": 8192}
_LLAMA2 = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008,
    "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip
_QWEN = {"model_type": "qwen2", "vocab_size": 151936, "max_position_embeddings": 32768, "tie_word_embeddings": True}
_QWEN_HALF = {
    **_QWEN, "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "intermediate_size": 4864,
}  # fmt: skip
_QWEN_ONE_AND_A_HALF = {
    **_QWEN, "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
    "intermediate_size": 8960,
}  # fmt: skip
_YI = {
    "model_type": "llama", "hidden_size": 7168, "num_hidden_layers": 60, "num_attention_heads": 56, "num_key_value_heads": 8,
    "intermediate_size": 20480, "vocab_size": 64000, "max_position_embeddings": 4096,
}  # fmt: skip

KNOWN: Mapping[str, Mapping[str, Any]] = {
    "openchat/openchat_3.5": _OPENCHAT,
    "openchat/openchat-3.5-0106": _OPENCHAT,
    "berkeley-nest/Starling-LM-7B-alpha": _OPENCHAT,
    "mistralai/Mistral-7B-v0.1": {**_MISTRAL, "max_position_embeddings": 32768},
    "meta-llama/Llama-2-7b-chat-hf": _LLAMA2,
    "01-ai/Yi-34B-Chat": _YI,
    "Qwen/Qwen2.5-0.5B-Instruct": _QWEN_HALF,
    "Qwen/Qwen2.5-1.5B-Instruct": _QWEN_ONE_AND_A_HALF,
}
"""Hub name → what matters of its config.json: the models of the shipped settings and those of the original."""


def shape_of(config: Mapping[str, Any], where: str) -> Shape:
    """The shape that a config.json describes.

    Raises:
        InputError: its kind is none of those known here, or a number is missing.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise InputError(
            f"The sizes of a model of the kind '{kind}' are not known to the plan",
            where=where,
            cure=f"the training may still work; planned are {', '.join(sorted(_KINDS))}",
        )
    try:
        return _KINDS[kind](config)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(
            f"The model's config lacks what its size follows from: {error}", where=where, cure="give the folder's own config.json"
        ) from None


def find_shape(folder: Path) -> Shape:
    """The shape of the model in a folder, or of the known one that the folder is named after, e.g. models/openchat/openchat_3.5.

    Raises:
        InputError: the folder has no readable config.json, or is not there and named after no known model.
    """
    file = folder / "config.json"
    if folder.is_dir():
        try:
            config = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"The model's config cannot be read: {error}", where=str(file), cure="check the folder") from None
        if not isinstance(config, dict):
            raise InputError("The model's config is no JSON object", where=str(file), cure="check the folder")
        return shape_of(config, str(file))
    name = hub_name(folder)
    if name not in KNOWN:
        raise InputError(
            "The model is not on this machine, and its folder is not named after one whose sizes are known",
            where=str(folder),
            cure=f"download it first; or, for a plan alone, name the folder like models/{next(iter(KNOWN))}",
        )
    return shape_of(KNOWN[name], name)


def hub_name(folder: Path) -> str:
    """What a folder that is not there yet would be called on the hub: its last two parts."""
    return "/".join(folder.parts[-2:])

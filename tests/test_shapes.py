"""Sizes from config.json: equal to transformers' own models of every kind, to the published sizes, and by hand for a tiny one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from starling import shapes
from starling.errors import InputError
from starling.shapes import KNOWN, find_shape, shape_of

TINY = {
    "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 16, "vocab_size": 10, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip


def test_a_tiny_llama_by_hand() -> None:
    shape = shape_of(TINY, "here")
    # q 8·8, k and v 8·4 each, o 8·8, three of 8·16, two norms of 8
    assert shape.layer == 64 + 32 + 32 + 64 + 3 * 128 + 16 == 592
    assert shape.trunk == 80 + 3 * 592 + 8
    assert shape.causal == 80 + 3 * 592 + 8 + 80
    assert shape.scalar == 80 + 3 * 592 + 8 + 8
    assert shape.cache_bytes(2) == 2 * 3 * 2 * 2 * 2  # keys and values · layers · heads · width of a head · bytes
    assert shape.lora(4, ("q_proj", "down_proj")) == 3 * 4 * ((8 + 8) + (16 + 8))
    assert shape.lora(1) == 3 * (16 + 12 + 12 + 16 + 24 + 24 + 24)
    assert shape.layer_flops(5, 7) == 2 * (592 - 16) * 5 + 4 * 8 * 7
    assert shape.head_flops(5) == 2 * 80 * 5


def test_published_sizes() -> None:
    counts = {name: shape_of(config, name).causal for name, config in KNOWN.items()}
    assert counts["mistralai/Mistral-7B-v0.1"] == 7_241_732_096
    assert counts["openchat/openchat_3.5"] == 7_241_748_480  # two tokens more
    assert counts["meta-llama/Llama-2-7b-chat-hf"] == 6_738_415_616
    assert counts["01-ai/Yi-34B-Chat"] == 34_388_917_248
    assert counts["Qwen/Qwen2.5-0.5B-Instruct"] == 494_032_768
    assert counts["Qwen/Qwen2.5-1.5B-Instruct"] == 1_543_714_304


SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
    "vocab_size": 100, "pad_token_id": 0,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "mistral": SMALL,
    "qwen2": SMALL,
    "qwen3": SMALL,
    "gemma": SMALL,
    "gemma2": SMALL,
    "gemma3_text": SMALL,
    "phi3": SMALL,
    "olmo2": SMALL,
    "smollm3": SMALL,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 100},
    "opt": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 48, "word_embed_proj_dim": 32,
        "max_position_embeddings": 64, "vocab_size": 100, "pad_token_id": 0,
    },
}  # fmt: skip


def test_every_kind_is_compared() -> None:
    assert set(OWN) == set(shapes._KINDS)


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("written", ["whole", "bare"])
def test_counts_are_those_of_transformers(kind: str, written: str) -> None:
    """Of the config.json that transformers writes, and of one that leaves the defaults to it."""
    import torch
    import transformers as tf
    from peft import LoraConfig, LoraModel

    config = tf.AutoConfig.for_model(kind, **OWN[kind])
    described = json.loads(config.to_json_string(use_diff=False)) if written == "whole" else {**OWN[kind], "model_type": kind}
    shape = shape_of(described, kind)
    with torch.device("meta"):
        causal = tf.AutoModelForCausalLM.from_config(config)
        config.num_labels = 1
        scalar = tf.AutoModelForSequenceClassification.from_config(config)
    assert shape.causal == causal.num_parameters()
    assert shape.scalar == scalar.num_parameters()
    assert shape.cache_bytes(1) == 2 * 2 * shape.kv_heads * shape.head_dim
    layers = max((m for m in causal.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
    assert shape.layer == sum(p.numel() for p in layers[0].parameters())
    names = {linear.name for linear in shape.linears}
    adapters = LoraConfig(r=4, target_modules=sorted(names), fan_in_fan_out=kind == "gpt2")
    with torch.device("meta"):
        tuned = LoraModel(causal, {"default": adapters}, "default")
    assert shape.lora(4) == sum(p.numel() for n, p in tuned.named_parameters() if "lora_" in n)


def test_a_folder_is_read_and_one_that_is_not_there_is_known_by_its_name(tmp_path: Path) -> None:
    assert find_shape(Path("models/openchat/openchat_3.5")).causal == 7_241_748_480
    folder = tmp_path / "openchat" / "openchat_3.5"  # what is there counts, not how it is called
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(TINY), "utf-8")
    assert find_shape(folder).hidden == 8


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"model_type": "mamba"}', "kind 'mamba'"),
        ('{"model_type": "llama", "hidden_size": 8}', "num_attention_heads"),
        ('{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 0, "intermediate_size": 4}', "lacks"),
        ('{"model_type": ["llama"]}', "kind"),
        ("{}", "kind 'None'"),
        ("[]", "no JSON object"),
        ("{", "cannot be read"),
    ],
)
def test_a_config_that_says_too_little_is_refused(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "config.json").write_text(text, "utf-8")
    with pytest.raises(InputError, match=what):
        find_shape(tmp_path)


def test_an_unknown_model_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not on this machine") as caught:
        find_shape(tmp_path / "me" / "mine")
    assert "openchat/openchat_3.5" in caught.value.cure

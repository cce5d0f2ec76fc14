"""Fixtures shared by the tests that need a model; torch and transformers are imported only when one is used.

Models here are tiny and random (hidden 32, two layers); the tokenizer is a byte-level BPE trained on a few sentences.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from starling.records import RankedPrompt

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SENTENCES = ["name three animals", "a cat, a dog and a cow", "what is the sum of two and three", "hello there, how are you?"]
DECODERS = ("llama", "gpt2", "qwen2", "opt")


def _tokenizer(kind: str) -> Any:
    """decoder: BOS added by the tokenizer and by the template, end token <|end|>. encoder: [CLS] … [SEP], no template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    encoder = kind == "encoder"
    special = ["[PAD]", "[CLS]", "[SEP]"] if encoder else ["<pad>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    first, last = (special[1], special[2]) if encoder else ("<s>", None)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A" + (f" {last}" if last else ""),
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in (first, last) if t],
    )
    if encoder:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="<|end|>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="session")
def decoder_tokenizer() -> Any:
    """A tokenizer with a chat template; use copy.deepcopy before changing it."""
    return _tokenizer("decoder")


@pytest.fixture(scope="session")
def encoder_tokenizer() -> Any:
    """A tokenizer with [CLS] and [SEP], without a chat template."""
    return _tokenizer("encoder")


def _config(name: str, vocab: int, dropout: float) -> Any:
    import transformers as tf

    wide = {"vocab_size": vocab, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0}
    wide["intermediate_size"] = 48
    match name:
        case "llama":
            return tf.LlamaConfig(**wide, max_position_embeddings=128, attention_dropout=dropout, tie_word_embeddings=True)
        case "qwen2":
            return tf.Qwen2Config(**wide, num_key_value_heads=1, max_position_embeddings=128)
        case "gpt2":
            return tf.GPT2Config(vocab_size=vocab, n_embd=32, n_layer=2, n_head=2, n_positions=128, pad_token_id=0)
        case "opt":
            return tf.OPTConfig(
                vocab_size=vocab, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=48, word_embed_proj_dim=32,
                max_position_embeddings=128, pad_token_id=0,
            )  # fmt: skip
        case "bert":
            return tf.BertConfig(**wide, max_position_embeddings=128)
        case "roberta":
            return tf.RobertaConfig(**wide, max_position_embeddings=130, type_vocab_size=1)
        case "distilbert":
            return tf.DistilBertConfig(
                vocab_size=vocab, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=128
            )
        case "modernbert":
            return tf.ModernBertConfig(
                **wide, max_position_embeddings=128, cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2
            )
    raise ValueError(name)


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory, decoder_tokenizer: Any, encoder_tokenizer: Any) -> Callable[..., Path]:
    """backbone("llama") → folder of a tiny random model with its tokenizer; dropout stays at the library's defaults."""
    made: dict[tuple[str, float], Path] = {}

    def make(name: str, dropout: float = 0.0) -> Path:
        import torch
        import transformers as tf

        from starling.models.load import save_folder

        if (name, dropout) not in made:
            folder = tmp_path_factory.mktemp(name)
            tokenizer = decoder_tokenizer if name in DECODERS else encoder_tokenizer
            config = _config(name, len(tokenizer), dropout)
            auto = tf.AutoModelForCausalLM if name in DECODERS else tf.AutoModelForMaskedLM
            with torch.random.fork_rng():
                torch.manual_seed(1)
                model = auto.from_config(config)
                for parameter in model.parameters():  # away from the small initial scale, so that outputs differ clearly
                    if parameter.ndim >= 2:
                        torch.nn.init.normal_(parameter, std=0.3)
            save_folder(folder, model, tokenizer)
            made[name, dropout] = folder
        return made[name, dropout]

    return make


@pytest.fixture(scope="session")
def make_rankings() -> Callable[..., list[RankedPrompt]]:
    """make_rankings(n, k=4, seed=0) → rankings whose better answers say "cat" more often: learnable by a tiny model."""

    def make(n: int, k: int = 4, seed: int = 0) -> list[RankedPrompt]:
        from starling.records import Message, Prompt, RankedAnswer, RankedPrompt

        rng = random.Random(seed)
        rows = []
        for i in range(n):
            prompt = Prompt.make((Message(role="user", content=f"name three animals, list {seed}-{i}"),), ("test",))
            answers = []
            for rank in range(k):
                words = ["cat"] * (k - rank) + ["dog"] * rng.randint(0, 3)
                rng.shuffle(words)
                answers.append(RankedAnswer(answer=" ".join(words), model=f"m{rank}", rank=float(rank + 1)))
            rows.append(RankedPrompt(prompt=prompt, answers=tuple(answers), good_natured=True))
        return rows

    return make

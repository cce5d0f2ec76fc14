"""Made rankings, their tokenizer and the untrained models: the same for both sides, down to the token ids.

Words are `w0`, `w1` … and one word is one token, so that a text has exactly the length it was drawn with. A conversation is

    <user> w… w… <assistant> w… w… <eos>        P tokens up to and with <assistant>, R tokens behind it

with P and R uniform within ±50 % of their means, R anew for every answer. `write` leaves a folder that holds all either side
reads: rankings as records (ours), the same rankings as token ids (theirs), the bare backbone (ours), and the backbone with
its reward head, as Starling makes it from the seed (theirs).

The planted rule (`Rule.topics`): every word is good or bad, a quarter of them depending on the topic that the prompt's first
word names; an answer has a quality, the chance with which each of its words is drawn from the good ones, and answers are
ranked by it. Without a rule, words are drawn alike and the order means nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from starling.records import Message, Prompt, RankedAnswer, RankedPrompt, content_hash

SPECIAL = ("<pad>", "<eos>", "<unk>", "<user>", "<assistant>")
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<user> {{ m['content'] }} {% else %}<assistant> {{ m['content'] }} <eos>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped decoder."""

    hidden: int
    layers: int
    heads: int
    inner: int
    vocab: int


SHAPES = {
    "1M": Shape(hidden=128, layers=2, heads=4, inner=384, vocab=1024),
    "5M": Shape(hidden=256, layers=4, heads=4, inner=1024, vocab=4096),
    "30M": Shape(hidden=512, layers=8, heads=8, inner=1536, vocab=4096),
}


class Rule(StrEnum):
    """What makes an answer better."""

    none = "none"
    topics = "topics"


@dataclass(frozen=True)
class Made:
    """What to draw: `rankings` prompts with `answers` answers each, mean lengths in tokens."""

    rankings: int
    answers: int
    prompt: int
    response: int
    vocab: int
    seed: int
    rule: Rule = Rule.none
    part: str = "train"


TOPICS = 4
OWN = 0.25
"""Share of the words whose worth depends on the topic."""
QUALITY = (0.3, 0.7)
"""Least and largest chance of a good word."""


def make_rankings(made: Made) -> list[RankedPrompt]:
    """Rankings that follow from `made` alone; the rule's worths follow from the seed, not from the part."""
    draw = _generator("rankings", made.seed, made.part, made.rankings, made.answers, made.prompt, made.response, made.vocab)
    words = made.vocab - len(SPECIAL)
    good_TW = _good(made.seed, words)
    rows = []
    for _ in range(made.rankings):
        topic = int(draw.integers(TOPICS))
        question_P = draw.integers(words, size=_length(draw, made.prompt) - 2)
        question_P[0] = topic
        quality_K = np.sort(draw.uniform(*QUALITY, size=made.answers))[::-1]
        lengths_K = [_length(draw, made.response) - 1 for _ in range(made.answers)]
        if made.rule is Rule.topics:
            answers = [_words(draw, good_TW[topic], q, n) for q, n in zip(quality_K, lengths_K, strict=True)]
        else:
            answers = [draw.integers(words, size=n) for n in lengths_K]
        rows.append(_row(question_P, answers))
    return rows


def _generator(*parts: Any) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(int(content_hash(list(map(str, parts)))[:16], 16)))


def _good(seed: int, words: int) -> np.ndarray:
    """True where a word is good under a topic; the same for every part of the data."""
    draw = _generator("good words", seed, words)
    shared_W, own_TW = draw.random(words) < 0.5, draw.random((TOPICS, words)) < 0.5
    return np.where(draw.random(words) < OWN, own_TW, shared_W)


def _words(draw: np.random.Generator, good_W: np.ndarray, quality: float, count: int) -> np.ndarray:
    """`count` words, each a good one with that chance."""
    good, bad = np.flatnonzero(good_W), np.flatnonzero(~good_W)
    return np.where(draw.random(count) < quality, draw.choice(good, count), draw.choice(bad, count))


def _length(draw: np.random.Generator, mean: int) -> int:
    """Uniform within ±50 % of the mean."""
    return int(draw.integers(mean - mean // 2, mean + mean // 2 + 1))


def _text(words: np.ndarray) -> str:
    return " ".join(f"w{word}" for word in words)


def _row(question: np.ndarray, answers: Sequence[np.ndarray]) -> RankedPrompt:
    prompt = Prompt.make((Message(role="user", content=_text(question)),), ("made",))
    ranked = tuple(RankedAnswer(answer=_text(a), model=f"m{i}", rank=float(i + 1)) for i, a in enumerate(answers))
    return RankedPrompt(prompt=prompt, answers=ranked, good_natured=None)


# ── tokenizer and models ─────────────────────────────────────────────────────────────────────────────────────────────


def make_tokenizer(vocab: int) -> Any:
    """One token per word; every model here has a pad token of its own, so padding is never mistaken for the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    entries = [*SPECIAL, *(f"w{i}" for i in range(vocab - len(SPECIAL)))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(entries)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_backbone(shape: Shape, tokenizer: Any, folder: Path, seed: int) -> Path:
    """An untrained Llama of that shape, as a folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from starling.models.load import save_folder

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads, intermediate_size=shape.inner, max_position_embeddings=8192,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    save_folder(folder, LlamaForCausalLM(config), tokenizer)
    return folder


# ── what both sides read ─────────────────────────────────────────────────────────────────────────────────────────────


def write(folder: Path, shape: Shape, rows: Sequence[RankedPrompt], seed: int, unseen: Sequence[RankedPrompt] = ()) -> Path:
    """The folder of a comparison; returns it."""
    from starling.models.load import load_backbone_as_scalar, save_folder

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(shape.vocab)
    make_backbone(shape, tokenizer, folder / "backbone", seed)
    save_folder(folder / "start", load_backbone_as_scalar(folder / "backbone", seed, tokenizer), tokenizer)
    write_rankings(folder, tokenizer, rows, unseen)
    return folder


def write_rankings(folder: Path, tokenizer: Any, rows: Sequence[RankedPrompt], unseen: Sequence[RankedPrompt]) -> None:
    """The rankings as records and as token ids; the longest conversation is nowhere cut."""
    for name, part in (("train", rows), ("unseen", unseen)):
        (folder / f"{name}.jsonl").write_text("".join(row.model_dump_json() + "\n" for row in part))
        ids = token_ids(tokenizer, part)
        (folder / f"{name}.ids.jsonl").write_text("".join(json.dumps(ranking) + "\n" for ranking in ids))


def token_ids(tokenizer: Any, rows: Sequence[RankedPrompt]) -> list[list[list[int]]]:
    """Every answer's whole conversation, as Starling's own encoder reads it, best answer first."""
    from starling.models.encode import Encoder

    encoder = Encoder(tokenizer, max_length=2**31)
    encoded = iter(encoder.conversations([(row.prompt.messages, a.answer, True) for row in rows for a in row.answers]))
    return [[list(next(encoded).ids) for _ in row.answers] for row in rows]


def read_records(path: Path) -> list[RankedPrompt]:
    return [RankedPrompt.model_validate_json(line) for line in path.read_text().splitlines()]


def digest(rankings: Sequence[Sequence[Sequence[int]]]) -> str:
    """Of all token ids with their boundaries: the same on both sides, or the comparison is refused."""
    return hashlib.sha256(json.dumps(rankings, separators=(",", ":")).encode()).hexdigest()[:16]

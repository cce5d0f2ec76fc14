"""Prompts, policy and reward model of the tuning comparison: the same folder for both sides, down to the token ids.

Policy and reward model are untrained and of the same shape (`data.SHAPES`); the reward model has the policy's trunk and a head
from the seed. Prompts are those of `data`: `<user> w… w… <assistant>`, lengths uniform between two bounds. An untrained model
would end a reply at any token, so the policy's weights are set to a chosen chance of that (`set_end`): nearly 0 gives replies of
exactly the longest length without any switch in either program, a larger one gives replies of geometric lengths.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.versus_trl.data import SPECIAL, Shape, make_backbone, make_tokenizer
from starling.records import Message, Prompt

NEVER = 1e-15
"""A chance of ending that a run never meets."""
CONSTANT = 0.5
"""What every token's embedding holds in its first place; the last state then holds it too, whatever was read."""
REPLY = "w1 w2 w3"
"""What both sides score before the first iteration, to see that they hold the same models."""


@dataclass(frozen=True)
class Made:
    """What to draw: `prompts` prompts of `least` to `most` tokens, template included."""

    prompts: int
    least: int
    most: int
    vocab: int
    seed: int


def make_prompts(made: Made) -> list[Prompt]:
    """Prompts that follow from `made` alone; no two are alike."""
    import random

    draw = random.Random(f"tuning/{made}")
    words = made.vocab - len(SPECIAL)
    rows = []
    for _ in range(made.prompts):
        length = draw.randint(made.least, made.most) - 2  # <user> and <assistant>
        text = " ".join(f"w{draw.randrange(words)}" for _ in range(length))
        rows.append(Prompt.make((Message(role="user", content=text),), ("made",)))
    return rows


def write(folder: Path, shape: Shape, prompts: Sequence[Prompt], *, ends: float, seed: int) -> Path:
    """`base`, `reward` and the prompts, as records (ours) and as messages (theirs).

    Args:
        ends: chance of the end token at every place of a reply.
    """
    from starling.models.load import load_backbone_as_scalar, load_causal, save_folder

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(shape.vocab)
    base = load_causal(make_backbone(shape, tokenizer, folder / "base", seed))
    set_end(base, ends, never=[tokenizer.pad_token_id, tokenizer.unk_token_id], seed=seed)
    save_folder(folder / "base", base, tokenizer)
    reward = load_backbone_as_scalar(folder / "base", seed, tokenizer)
    reward.set_statistics(0.0, 1.0)
    save_folder(folder / "reward", reward, tokenizer)
    (folder / "prompts.jsonl").write_text("".join(p.model_dump_json() + "\n" for p in prompts))
    messages = [{"prompt": [{"role": m.role, "content": m.content} for m in p.messages]} for p in prompts]
    (folder / "messages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in messages))
    return folder


def set_end(model: Any, chance: float, *, never: Sequence[int], seed: int) -> None:
    """Set the embeddings of a model with tied embeddings so that it ends a reply with that chance at any place.

    Every embedding gets the constant in its first place, so the last state's first place is nearly the same everywhere; the end
    token's own embedding is 0 but for its first place, which makes its logit. Tokens in `never` are treated likewise, with no
    chance at all; they must not occur in prompts.
    """
    import torch

    weight = model.get_input_embeddings().weight
    vocab, end = weight.shape[0], model.config.eos_token_id
    with torch.no_grad():
        weight[:, 0] = CONSTANT
        read = torch.randint(len(SPECIAL), vocab, (8, 64), generator=torch.Generator().manual_seed(seed))
        out = model(input_ids=read, output_hidden_states=True)
        first = float(out.hidden_states[-1][..., 0].mean())
        others = float(out.logits[..., len(SPECIAL) :].logsumexp(-1).mean())
        for token, probability in ((end, chance), *((token, NEVER) for token in never)):
            weight[token] = 0
            weight[token, 0] = (others + math.log(probability / (1 - probability))) / first


def read_prompts(folder: Path) -> list[Prompt]:
    return [Prompt.model_validate_json(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]

"""Decoding through `model.forward` and transformers' own cache: for architectures whose attention the slots cannot hold
(recurrent or chunked layers, attention sinks, biases of distances), and what the fast way is tested against.

Rows of one batch start and end together, prompts are padded on the left and a finished row leaves with others only.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from starling.models.drawing import Drawn

Draws = tuple[list[int], list[float], list[float]]
"""Tokens of a reply with their two log-probabilities."""


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    draw: Callable[[Tensor, list[int], int], Drawn],
    end_ids: Sequence[int],
    max_tokens: int,
) -> list[Draws]:
    """One reply per prompt, up to its end token or `max_tokens`.

    Args:
        draw: next tokens from logits_BV, the rows that they belong to, and the step.
    """
    device = model.device
    ids_BT, mask_BT = _pad_left(prompts, device)
    cache = DynamicCache(config=model.config)
    ends = set(end_ids)
    rows = list(range(len(prompts)))
    found: list[Draws] = [([], [], []) for _ in prompts]
    positions_BT = (mask_BT.cumsum(1) - 1).clamp_min(0)
    for step in range(max_tokens):
        logits_BV = model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        drawn = draw(logits_BV, rows, step)
        for row, *one in zip(rows, *(t.tolist() for t in drawn), strict=True):
            if not ends.intersection(found[row][0][-1:]):  # a finished row may wait here for others
                for column, value in zip(found[row], one, strict=True):
                    column.append(value)
        going = [i for i, row in enumerate(rows) if found[row][0][-1] not in ends]
        if not going:
            break
        tokens_B = drawn.tokens_B
        # Shrinking the cache copies it, so only when a quarter of the batch is done; the rule sees rows only.
        if len(going) <= 0.75 * len(rows):
            keep = torch.tensor(going, device=device)
            cache.batch_select_indices(keep)
            tokens_B, mask_BT, positions_BT = tokens_B[keep], mask_BT[keep], positions_BT[keep]
            rows = [rows[i] for i in going]
        ids_BT = tokens_B[:, None]
        positions_BT = positions_BT[:, -1:] + 1
        mask_BT = torch.cat([mask_BT, torch.ones_like(mask_BT[:, :1])], dim=1)
    return found


def _pad_left(prompts: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """ids_BT and mask_BT (1 = a token of the prompt), padded on the left."""
    width = max(len(p) for p in prompts)
    ids_BT = torch.zeros((len(prompts), width), dtype=torch.long)
    mask_BT = torch.zeros((len(prompts), width), dtype=torch.long)
    for i, p in enumerate(prompts):
        ids_BT[i, width - len(p) :] = torch.tensor(p, dtype=torch.long)
        mask_BT[i, width - len(p) :] = 1
    return ids_BT.to(device), mask_BT.to(device)

"""Scores of many conversations: rows of like length share a forward pass, so that little of it is padding.

The order in which conversations are given and the batches they fall into change a score by floating-point rounding only.
Shapes: N rows, B groups of up to K rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from starling.models.encode import Encoded, Encoder, pad_right
from starling.models.load import load_scalar, load_tokenizer, longest_input
from starling.models.scalar_head import ScalarHead
from starling.progress import SILENT, Progress
from starling.records import Messages

_FEWEST_TOKENS = 1024
"""A pass of fewer tokens is not worth ending to save padding: small passes leave the matrix kernels idle."""
_SHORTEST = 0.8
"""A row shorter than this share of the longest one of its pass starts a new pass."""


def similar_lengths(lengths: Sequence[int], batch_tokens: int | None = None) -> list[list[int]]:
    """Split rows into passes of like length, longest first, each of at most `batch_tokens` padded tokens (or one row)."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        batch = batches[-1] if batches else []
        width = lengths[batch[0]] if batch else 0
        full = batch_tokens is not None and (len(batch) + 1) * width > batch_tokens
        if not batch or full or (len(batch) * width >= _FEWEST_TOKENS and lengths[i] < _SHORTEST * width):
            batches.append([i])
        else:
            batch.append(i)
    return batches


def score_rows(head: ScalarHead, rows: Sequence[Encoded], pad_id: int, batch_tokens: int | None = None) -> torch.Tensor:
    """scores_N in fp32, in the order given; gradients flow if they are on.

    Rows with the same ids are computed once: models of one pool often give the same answer, and it has the same score.
    """
    device = next(head.parameters()).device
    place: dict[tuple[int, ...], int] = {}
    where_N = torch.tensor([place.setdefault(r.ids, len(place)) for r in rows], device=device)
    unique = [Encoded(ids, 0) for ids in place]
    passes = similar_lengths([len(r.ids) for r in unique], batch_tokens)
    parts = []
    for batch in passes:
        padded = pad_right([unique[i] for i in batch], pad_id).to(device)
        parts.append(head.rewards(padded.ids_BT, padded.mask_BT, padded.last_B))
    order_U = torch.tensor([i for batch in passes for i in batch], device=device)
    return torch.cat(parts)[order_U.argsort()][where_N]


def score_groups(head: ScalarHead, groups: Sequence[Sequence[Encoded]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of groups of conversations that share a prompt, e.g. rankings; gradients flow if they are on.

    Returns:
        scores_BK in fp32, 0 in absent slots, and present_BK, True where a group has a conversation; slots in the order given.
    """
    scores_N = score_rows(head, [row for group in groups for row in group], pad_id)
    sizes_B = torch.tensor([len(group) for group in groups], device=scores_N.device)
    present_BK = torch.arange(int(sizes_B.max()), device=scores_N.device) < sizes_B[:, None]
    return torch.zeros(present_BK.shape, device=scores_N.device).masked_scatter(present_BK, scores_N), present_BK


def score_conversations(
    folder: Path | str,
    conversations: Sequence[tuple[Messages, str, bool]],
    batch_tokens: int = 16_384,
    progress: Progress = SILENT,
) -> list[float]:
    """Rewards of (messages, reply, finished), in the order given; identical conversations are scored once.

    Conversations longer than the model's positions are cut on the left.

    Raises:
        InputError: the folder holds no reward model with a tokenizer.
    """
    head, tokenizer = load_scalar(folder), load_tokenizer(folder)
    head.to("cuda" if torch.cuda.is_available() else "cpu")
    encoder = Encoder(tokenizer, max_length=longest_input(head.model, tokenizer) or 2**31)
    unique = list(dict.fromkeys(conversations))
    rows = [row for row in (encoder.fit(r, "truncate_left")[0] for r in encoder.conversations(unique)) if row is not None]
    scores: dict[tuple[Messages, str, bool], float] = {}
    progress.start("scoring replies", len(unique))
    for batch in similar_lengths([len(r.ids) for r in rows], batch_tokens):
        with torch.inference_mode():
            scores_N = score_rows(head, [rows[i] for i in batch], encoder.pad_id)
        scores.update((unique[i], score) for i, score in zip(batch, scores_N.tolist(), strict=True))
        progress.advance(len(batch))
    progress.finish()
    return [scores[c] for c in conversations]

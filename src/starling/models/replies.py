"""Replies laid out for a forward pass, and where in it the state stands that predicts each of their tokens.

    sequences       rows padded on the right, prompt and reply
    shared_prefix   replies to one prompt in one row that holds the prompt once (`tree`)

Everything per token of a reply has the shape [B, R] afterwards, whatever the layout: reply tokens only, from the left.

Shapes: B replies, R tokens of the longest one, N reply tokens in all, T tokens of a row, M rows × T, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from starling.models.encode import Encoded, Padded, pad_right
from starling.models.tree import Forest

ReplyLayout = Literal["shared_prefix", "sequences"]


@dataclass(frozen=True)
class Replies:
    """A batch of replies; producer `lay_out`, consumer `Actor`.

    Example: prompt (1, 2) with the replies (5,) and (6, 7) in rows of 4 → before_N (1, 5, 6), taken_N (5, 6, 7),
    mask_BR [[True, False], [True, True]].
    """

    rows: Padded | Forest
    before_N: torch.Tensor  # int64; index in the flattened rows (M) of the state that predicts the token
    taken_N: torch.Tensor  # int64; the token
    mask_BR: torch.Tensor  # bool; True means a token of the reply; row by row its True places are the N

    @property
    def tokens(self) -> int:
        """Reply tokens, N."""
        return len(self.taken_N)

    def spread(self, values_N: torch.Tensor) -> torch.Tensor:
        """[B, R] of one value per reply token; 0 where there is none."""
        out_BR = torch.zeros(self.mask_BR.shape, dtype=values_N.dtype, device=values_N.device)
        return out_BR.masked_scatter(self.mask_BR, values_N)

    def to(self, device: torch.device | str) -> Replies:
        """The same on another device."""
        return Replies(self.rows.to(device), self.before_N.to(device), self.taken_N.to(device), self.mask_BR.to(device))


def lay_out(replies: Sequence[Encoded], pad_id: int, layout: ReplyLayout = "sequences") -> Replies:
    """A batch of replies, in the order given; each has at least one token of prompt and one of reply.

    Raises:
        ValueError: a reply without a token, or without a prompt.
    """
    if any(r.prompt_length < 1 or len(r.ids) <= r.prompt_length for r in replies):
        raise ValueError("lay_out wants replies with at least one token behind at least one token of prompt")
    if layout != "sequences":
        raise NotImplementedError(layout)
    padded = pad_right(replies, pad_id)
    width = padded.ids_BT.shape[1]
    lengths = [len(r.ids) - r.prompt_length for r in replies]
    before_N = torch.cat(
        [torch.arange(n) + i * width + r.prompt_length - 1 for i, (r, n) in enumerate(zip(replies, lengths, strict=True))]
    )
    taken_N = torch.tensor([token for r in replies for token in r.ids[r.prompt_length :]])
    mask_BR = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Replies(padded, before_N, taken_N, mask_BR)

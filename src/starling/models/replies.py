"""Replies laid out for a forward pass, and where in it the state stands that predicts each of their tokens.

    sequences       rows padded on the right, prompt and reply
    shared_prefix   replies to one prompt in one row that holds the prompt once (`tree`); no padding

Everything per token of a reply has the shape [B, R] afterwards, whatever the layout: reply tokens only, from the left.
The last token of a reply predicts nothing, so it is in no row.

Source: the packing of groups of samples in TRL's asynchronous GRPO. Departure: they merge by (token, next token), because they
read one logit per place; here a place is read once for every reply that goes through it, so equal beginnings of replies are
merged too and still predict different tokens.

Shapes: B replies, R tokens of the longest one, N reply tokens in all, T tokens of a row, M rows × T, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import torch

from starling.models.encode import Encoded, Padded, pad_right
from starling.models.tree import Forest, pack, places, tree_tokens

ReplyLayout = Literal["shared_prefix", "sequences"]


@dataclass(frozen=True)
class Replies:
    """A batch of replies; producer `lay_out`, consumer `Actor`.

    Example: prompt (1, 2) with the replies (5,) and (6, 7) as sequences is rows (1, 2, 0) and (1, 2, 6), before_N (1, 4, 5),
    taken_N (5, 6, 7), mask_BR [[True, False], [True, True]]; with a shared prefix it is one row (1, 2, 6), before_N (1, 1, 2).
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
        before_N, taken_N, mask_BR = (t.to(device, non_blocking=True) for t in (self.before_N, self.taken_N, self.mask_BR))
        return Replies(self.rows.to(device), before_N, taken_N, mask_BR)


def lay_out(replies: Sequence[Encoded], pad_id: int, layout: ReplyLayout = "sequences") -> Replies:
    """A batch of replies, in the order given; each has at least one token of prompt and one of reply.

    Raises:
        ValueError: no reply, or one without a token, or without a prompt.
    """
    if not replies or any(r.prompt_length < 1 or len(r.ids) <= r.prompt_length for r in replies):
        raise ValueError("lay_out wants replies with at least one token behind at least one token of prompt")
    starts_B = np.array([r.prompt_length for r in replies])
    lengths_B = np.array([len(r.ids) for r in replies]) - starts_B
    rows: Padded | Forest
    if layout == "shared_prefix":
        rows, before_N = _in_a_forest(replies)
    else:
        rows = pad_right([Encoded(r.ids[:-1], r.prompt_length) for r in replies], pad_id)
        first_B = np.arange(len(replies)) * rows.ids_BT.shape[1] + starts_B - 1
        before_N = np.repeat(first_B, lengths_B) + _counted(lengths_B)
    taken = chain.from_iterable(r.ids[r.prompt_length :] for r in replies)
    taken_N = np.fromiter(taken, dtype=np.int64, count=int(lengths_B.sum()))
    mask_BR = torch.arange(int(lengths_B.max())) < torch.from_numpy(lengths_B)[:, None]
    return Replies(rows, torch.from_numpy(before_N), torch.from_numpy(taken_N), mask_BR)


def group_cost(group: Sequence[Encoded], layout: ReplyLayout = "sequences") -> int:
    """Tokens that one group, e.g. the replies to one prompt, adds to a forward pass: its cost in a budget of tokens.

    Groups of different prompts add up exactly with `shared_prefix`, and but for padding with `sequences`.
    """
    if layout == "shared_prefix":
        return sum(tree_tokens([group[i].ids[:-1] for i in same]) for same in _by_prompt(group))
    return sum(len(r.ids) - 1 for r in group)


def cost(replies: Sequence[Encoded], layout: ReplyLayout = "sequences") -> int:
    """Tokens that a forward pass over these replies computes, padding included, without laying it out."""
    if layout == "shared_prefix":
        return group_cost(replies, layout)
    return len(replies) * max((len(r.ids) - 1 for r in replies), default=0)


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _by_prompt(replies: Sequence[Encoded]) -> list[list[int]]:
    """Indices of the replies, those to one prompt together; prompts in the order of their first reply."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, reply in enumerate(replies):
        groups.setdefault(reply.ids[: reply.prompt_length], []).append(i)
    return list(groups.values())


def _in_a_forest(replies: Sequence[Encoded]) -> tuple[Forest, np.ndarray]:
    """The row, and before_N in the order of the replies."""
    groups = _by_prompt(replies)
    forest = pack([[replies[i].ids[:-1] for i in group] for group in groups])
    before: list[np.ndarray] = [np.empty(0, np.int64)] * len(replies)
    for i, where in zip(chain.from_iterable(groups), places(forest), strict=True):
        before[i] = where[replies[i].prompt_length - 1 :]
    return forest, np.concatenate(before)


def _counted(lengths_B: np.ndarray) -> np.ndarray:
    """0 … n − 1 for every length n, one after the other."""
    ends_B = lengths_B.cumsum()
    counted: np.ndarray = np.arange(ends_B[-1]) - np.repeat(ends_B - lengths_B, lengths_B)
    return counted

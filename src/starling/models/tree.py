"""Conversations that begin alike → one row in which every shared beginning stands once.

    prompt + answer 1, …, prompt + answer K        K rows, the prompt computed K times
    [prompt][answer 1] … [answer K]                one row of a `Forest`: positions restart at every fork

A trie over the token ids of the conversations: it forks where they truly differ, so the same first words of two answers
are merged as well as the prompt, equal conversations are one, and conversations that share nothing (an answer whose prompt
was cut on the left) stand side by side. No padding anywhere: whatever is masked or looked up follows from lengths.

Source: the packing that reinforcement-learning trainers use for groups of samples (TRL's asynchronous GRPO, Unsloth,
flash-preference for pairs); nobody had it for rankings. Departure: their key for merging is (token, next token), because
they need the logits of the last shared token once per branch; a score is read at ends only, so ours is the token.

Segments of a row are in preorder: whatever descends from a segment follows it at once, up to its `end`. Attention needs no
more than that (`tree_attention`).

Log-probabilities of a reply's tokens are read inside it too, each at the state before the token: `places` says where every
token of a conversation lies, and what is taken there is the caller's own, so merging by token stays right.

Shapes: T tokens of the row, S segments, N conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

FORK_TOKENS = 8
"""A shared stretch is merged when that saves at least so many tokens: below, the calls for one more segment cost more."""

Ids = Sequence[int]


class Segment(NamedTuple):
    """A stretch of a row without a fork; its tokens see themselves causally and all tokens of the segments above it."""

    start: int  # of its tokens in the row
    stop: int  # one past its last token
    end: int  # one past the last token of everything that descends from it; = stop for a leaf
    parent: int  # the segment above it, −1 for a root
    position: int  # position of its first token in the conversation


@dataclass(frozen=True)
class Forest:
    """Trees side by side in one row; producer `pack`, consumer `ScalarHead`.

    Example: the conversations (1, 2, 3) and (1, 2, 4, 5) with their first two tokens merged are
    ids (1, 2, 3, 4, 5), positions (0, 1, 2, 2, 3), ends (2, 4).
    """

    ids_1T: torch.Tensor  # int64
    position_1T: torch.Tensor  # int64; place of the token in its conversation
    last_N: torch.Tensor  # int64; index of the last token of every conversation, in the order given
    segments: tuple[Segment, ...]  # in preorder
    cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """What attention derives from the segments (indices, masks): the same for every layer."""

    @property
    def tokens(self) -> int:
        """Tokens that are computed."""
        return int(self.ids_1T.shape[1])

    @property
    def longest(self) -> int:
        """Tokens of the longest conversation."""
        return max(s.position + s.stop - s.start for s in self.segments)

    def to(self, device: torch.device | str) -> Forest:
        """The same row on another device."""
        ids_1T, position_1T, last_N = (t.to(device, non_blocking=True) for t in (self.ids_1T, self.position_1T, self.last_N))
        return Forest(ids_1T, position_1T, last_N, self.segments)

    def path(self, segment: int) -> list[int]:
        """Segments from the root down to this one, itself included."""
        found = []
        while segment >= 0:
            found.append(segment)
            segment = self.segments[segment].parent
        return found[::-1]


def pack(groups: Sequence[Sequence[Ids]], fork_tokens: int = FORK_TOKENS) -> Forest:
    """One row for groups of conversations; beginnings are shared within a group, never between groups.

    Args:
        groups: token ids of conversations, none of them empty, e.g. one group per ranking.
        fork_tokens: fewest tokens that merging a shared stretch must save.

    Returns:
        a row whose `last_N` follows the order given, group after group.

    Raises:
        ValueError: no conversation, or an empty one.
    """
    if not any(len(group) for group in groups) or not all(len(ids) for group in groups for ids in group):
        raise ValueError("pack wants at least one conversation and none without tokens")
    pieces: list[np.ndarray] = []
    segments: list[Segment] = []
    last: list[int] = []
    offset = 0
    for group in groups:
        branches, ends = _trie(group, fork_tokens)
        first = len(segments)
        stop_of: dict[int, int] = {}  # conversation (place among the sorted ones) → one past its last token
        for ids, position, parent, ending in branches:
            pieces.append(ids)
            stop = offset + len(ids)
            segments.append(Segment(offset, stop, stop, parent + first if parent >= 0 else -1, position))
            if ending >= 0:
                stop_of[ending] = stop
            offset = stop
        last.extend(stop_of[place] - 1 for place in ends)
    ids_T = np.concatenate(pieces)
    position_T = np.arange(offset) + np.repeat([s.position - s.start for s in segments], [s.stop - s.start for s in segments])
    return Forest(torch.from_numpy(ids_T)[None], torch.from_numpy(position_T)[None], torch.tensor(last), _with_ends(segments))


def places(forest: Forest) -> list[np.ndarray]:
    """For every conversation, in the order given, where its tokens lie in the row, first to last.

    Example: conversations (1, 2, 3) and (1, 2, 4, 5) in the row (1, 2, 3, 4, 5) → (0, 1, 2) and (0, 1, 3, 4).
    """
    ending_at = {s.stop - 1: i for i, s in enumerate(forest.segments)}  # a conversation ends where its last segment does
    found = []
    for last in forest.last_N.tolist():
        path = (forest.segments[i] for i in forest.path(ending_at[last]))
        found.append(np.concatenate([np.arange(s.start, s.stop) for s in path]))
    return found


def tree_tokens(group: Sequence[Ids], fork_tokens: int = FORK_TOKENS) -> int:
    """Tokens that a group of conversations takes in a row: its cost in a budget of tokens, without building the row."""
    return sum(len(ids) for ids, *_ in _trie(group, fork_tokens)[0])


# ── the trie ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Node:
    row: int  # a conversation that runs through it
    start: int
    stop: int  # its tokens are row[start:stop]
    ending: int = -1  # the conversation that ends with it
    children: list[_Node] = field(default_factory=list)


_Branch = tuple[np.ndarray, int, int, int]  # ids, position, parent, conversation that ends here or −1


def _trie(group: Sequence[Ids], fork_tokens: int) -> tuple[list[_Branch], list[int]]:
    """Branches in preorder, and for every conversation its place among the distinct ones in sorted order.

    In sorted order the conversations of one branch stand together and the shared beginning of neighbours tells where they
    fork, so one pass with a stack of open nodes is enough; K conversations of n tokens cost K comparisons of arrays.
    """
    keys = [ids if isinstance(ids, tuple) else tuple(ids) for ids in group]
    ordered = sorted(set(keys))
    rows = [np.array(ids, dtype=np.int64) for ids in ordered]
    roots: list[_Node] = []
    path: list[_Node] = []  # open nodes, from a root to the conversation before
    for row, ids in enumerate(rows):
        _close(path, roots, _shared(rows[row - 1], ids) if row else 0, fork_tokens)
        path.append(_Node(row, 0, len(ids), ending=row))
    _close(path, roots, 0, fork_tokens)
    place = {ids: i for i, ids in enumerate(ordered)}
    return _preorder(roots, rows), [place[ids] for ids in keys]


def _shared(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common beginning."""
    size = min(len(a), len(b))
    differs = a[:size] != b[:size]
    first = int(differs.argmax()) if size else 0
    return first if size and differs[first] else size


def _close(path: list[_Node], roots: list[_Node], depth: int, fork_tokens: int) -> None:
    """Close the open nodes that reach deeper than `depth`, where the next conversation forks off."""
    while path and path[-1].stop > depth:
        node = path.pop()
        above = path[-1].stop if path else 0
        if above < depth:  # the fork lies inside this node: its upper part stays open
            path.append(_Node(node.row, 0, depth))
        node.start = max(above, depth)
        (path[-1].children if path else roots).extend(_settled(node, fork_tokens))


def _settled(node: _Node, fork_tokens: int) -> list[_Node]:
    """The node itself, or, where merging its stretch saves too little, the branches below it with the stretch in each."""
    branches = len(node.children) + (node.ending >= 0)
    if branches == 1 or (branches - 1) * (node.stop - node.start) >= fork_tokens:
        return [node]
    for child in node.children:
        child.start = node.start
    alone = [_Node(node.row, node.start, node.stop, node.ending)] if node.ending >= 0 else []
    return alone + node.children


def _preorder(roots: list[_Node], rows: list[np.ndarray]) -> list[_Branch]:
    branches: list[_Branch] = []
    waiting = [(node, -1) for node in reversed(roots)]
    while waiting:
        node, parent = waiting.pop()
        waiting += [(child, len(branches)) for child in reversed(node.children)]
        branches.append((rows[node.row][node.start : node.stop], node.start, parent, node.ending))
    return branches


def _with_ends(segments: list[Segment]) -> tuple[Segment, ...]:
    """The ends of the subtrees, from the leaves up."""
    ends = [s.stop for s in segments]
    for s in range(len(segments) - 1, -1, -1):
        parent = segments[s].parent
        if parent >= 0:
            ends[parent] = max(ends[parent], ends[s])
    return tuple(s._replace(end=end) for s, end in zip(segments, ends, strict=True))


# ── indices for kernels ──────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Gathered:
    """Keys and values for kernels of sequences of different lengths: every segment's queries beside its whole path.

    The mask is causal and aligned at the ends (the last query sees the last key), as flash-attention has it.
    """

    key_index: torch.Tensor  # int64; tokens of the row, path after path
    query_offsets: torch.Tensor  # int32, S + 1
    key_offsets: torch.Tensor  # int32, S + 1
    most_queries: int
    most_keys: int


def gathered(forest: Forest) -> Gathered:
    """Where the keys of every segment lie; on the forest's device."""
    index: list[np.ndarray] = []
    for s in range(len(forest.segments)):
        index += [np.arange(a.start, a.stop) for a in (forest.segments[p] for p in forest.path(s))]
    queries = np.array([s.stop - s.start for s in forest.segments])
    keys = np.array([s.position for s in forest.segments]) + queries
    device = forest.ids_1T.device
    offsets = [np.concatenate([[0], sizes.cumsum()]).astype(np.int32) for sizes in (queries, keys)]
    return Gathered(
        torch.from_numpy(np.concatenate(index)).to(device),
        torch.from_numpy(offsets[0]).to(device),
        torch.from_numpy(offsets[1]).to(device),
        int(queries.max()),
        int(keys.max()),
    )


def dense_mask(forest: Forest, window: int | None = None) -> torch.Tensor:
    """allowed_TT on the forest's device, True means the query (row) sees the key (column); the square of T: for tests.

    `window` tokens are visible, the query itself included; all if None.
    """
    allowed_TT = torch.zeros(forest.tokens, forest.tokens, dtype=torch.bool, device=forest.ids_1T.device)
    for s in forest.segments:
        allowed_TT[s.start : s.end, s.start : s.stop] = True
    allowed_TT = allowed_TT.tril()
    if window is not None:
        position_T = forest.position_1T[0]
        allowed_TT &= position_T[:, None] - position_T < window
    return allowed_TT

"""Which calls a mode makes about the K answers to one prompt: who is shown where, and which pairs are listed in which order.

Source: Nectar's judge and the ablations that its authors released. `internal_random` is the original (pairs in random order,
letters alphabetical inside them), `internal_fixed`, `internal_unlisted` and `rank_only` are three of the ablations, and
`pairwise`, `pairwise_both` and `pointwise` the other two ways of getting a ranking from a judge. Departure: `internal_flipped`,
the default, also draws which letter of a pair is written first.

One *order* of a prompt is one full judgment of its answers: K(K−1)/2 calls in the mode `pairwise`, K in `pointwise`. What is
drawn depends on (seed, prompt id, order, attempt) only. Every second order shows the answers of the one before from the last to
the first, so that each of two answers has stood above the other: a judge who goes by position alone contradicts itself and leaves
no trace in the merged ranking. (Drawn freely, two orders of two answers would be the same one half of the time.)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from starling.config import RankingMode
from starling.records import content_hash

_T = TypeVar("_T")

ATTEMPTS = 2
"""Most attempts at one call: `ranking.retries` is 0 or 1."""


@dataclass(frozen=True)
class Ask:
    """One call: answers in the order shown, and the pairs to list as positions shown, in the order asked.

    Example: Ask(shown=(2, 0, 1), pairs=((1, 0), (0, 2), (2, 1))) shows answer 2 as A and asks about ('B', 'A') first.
    """

    shown: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...] = ()


def calls_per_order(mode: RankingMode, k: int) -> int:
    """How many calls one judgment of k answers takes; for k = 7: 1, or 21, 42 and 7 in the modes that ask about parts."""
    pairs = k * (k - 1) // 2
    return {"pairwise": pairs, "pairwise_both": 2 * pairs, "pointwise": k}.get(mode, 1)


def asks(mode: RankingMode, k: int, seed: int, prompt_id: str, order: int, attempt: int) -> tuple[Ask, ...]:
    """The calls of one order, `calls_per_order` of them; a later attempt draws anew."""

    def drawn(order: int) -> Draw:
        return Draw(content_hash(["judge", seed, prompt_id, order * ATTEMPTS + attempt], 16))

    draw, turned = drawn(order), order % 2 == 1 and attempt == 0
    before = drawn(order - 1) if turned else draw
    if mode == "pointwise":
        return tuple(Ask((i,)) for i in range(k))
    if mode == "pairwise":
        return tuple(Ask((b, a) if before.coin() != turned else (a, b)) for a, b in combinations(range(k), 2))
    if mode == "pairwise_both":
        return tuple(Ask(pair) for a, b in combinations(range(k), 2) for pair in ((a, b), (b, a)))
    shown = before.shuffled(range(k))[:: -1 if turned else 1]
    pairs = tuple(combinations(range(k), 2))
    if mode in ("internal_unlisted", "rank_only"):
        return (Ask(shown),)
    if mode != "internal_fixed":
        pairs = draw.shuffled(pairs)
    if mode == "internal_flipped":
        pairs = tuple((b, a) if draw.coin() else (a, b) for a, b in pairs)
    return (Ask(shown, pairs),)


class Draw:
    """Random choices from a hash. Only `random()` is used: its stream for a given seed is fixed across Python versions."""

    def __init__(self, digest: str) -> None:
        self._random = random.Random(int(digest, 16)).random

    def shuffled(self, items: Sequence[_T]) -> tuple[_T, ...]:
        keyed = [(self._random(), index) for index in range(len(items))]
        return tuple(items[index] for _, index in sorted(keyed))

    def coin(self) -> bool:
        return self._random() < 0.5

"""How many prompts of each source stay, and which: by seed and content, so that the order of files decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from starling.records import content_hash


def quotas(sizes: Sequence[int], weights: Sequence[float], total: int) -> list[int]:
    """How many of `total` each source gives: in proportion to its weight, but never more than it has; what one lacks the others
    give, in proportion again. Halves are rounded by largest remainder, the earlier source first.

    Args:
        sizes: prompts of each source.
        weights: positive.
        total: prompts wanted; all are given when there are fewer.

    Example: sizes (10, 100, 100), weights (1, 1, 2), total 70 → (10, 20, 40).
    """
    given = [0] * len(sizes)
    while total > sum(given):
        open_ = [i for i in range(len(sizes)) if given[i] < sizes[i]]
        if not open_:
            break
        full = [i for i in range(len(sizes)) if i not in open_]
        rest, weight = total - sum(given[i] for i in full), sum(weights[i] for i in open_)
        shares = {i: rest * weights[i] / weight for i in open_}
        lacking = [i for i in open_ if shares[i] > sizes[i]]
        if lacking:  # those give all they have; the rest is shared out anew
            for i in lacking:
                given[i] = sizes[i]
            continue
        for i in open_:
            given[i] = int(shares[i])
        by_remainder = sorted(open_, key=lambda i: (int(shares[i]) - shares[i], i))
        for i in by_remainder[: total - sum(given)]:
            given[i] += 1
        break
    return given


def chosen(ids: Sequence[str], count: int, purpose: str, seed: int) -> set[str]:
    """The `count` ids that come first in an order which only purpose, seed and id decide; a larger count keeps them all."""
    return set(sorted(ids, key=lambda id_: content_hash([purpose, seed, id_]))[:count])

"""Which items are trained on in which step: a pure function of its arguments, so that resuming needs one integer.

    steps(n, per_step, epochs, seed)                 step → items
    micro_batches(indices, lengths, budget_tokens)   one step → forward passes under a token budget

Micro-batches never change the result of a step (losses are normalised over the step); they only bound memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def steps(n: int, per_step: int, epochs: int, seed: int) -> list[tuple[int, ...]]:
    """Items 0…n−1 of every optimiser step, each item once per epoch in an order drawn from (seed, epoch).

    An epoch has ceil(n / per_step) steps whose sizes differ by at most one: no item is left out, and no tiny last step
    gets a full-size update.
    """
    if n < 1 or per_step < 1 or epochs < 0:
        raise ValueError(f"steps wants n ≥ 1, per_step ≥ 1, epochs ≥ 0; given {n}, {per_step}, {epochs}")
    plan: list[tuple[int, ...]] = []
    for epoch in range(epochs):
        order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)
        plan.extend(tuple(int(i) for i in part) for part in np.array_split(order, -(-n // per_step)))
    return plan


def micro_batches(
    indices: Sequence[int], lengths: Sequence[int], budget_tokens: int, rows: Sequence[int] | None = None
) -> list[tuple[int, ...]]:
    """Split the items of one step so that each padded batch has at most `budget_tokens` positions.

    Args:
        indices: the items of the step.
        lengths: longest row of every item, looked up by item.
        budget_tokens: most rows × width of a batch; a single item above it still gets a batch of its own.
        rows: sequences per item, looked up by item (a ranking has K); 1 if None.

    Longest first, ties by item: neighbours are alike, so little is padding, and the largest batch comes first.
    """
    batches: list[tuple[int, ...]] = []
    batch: list[int] = []
    width = in_batch = 0
    for i in sorted(indices, key=lambda i: (-lengths[i], i)):
        count = rows[i] if rows is not None else 1
        if batch and (in_batch + count) * max(width, lengths[i]) > budget_tokens:
            batches.append(tuple(batch))
            batch, width, in_batch = [], 0, 0
        batch.append(i)
        width, in_batch = max(width, lengths[i]), in_batch + count
    if batch:
        batches.append(tuple(batch))
    return batches

"""Which items are trained on in which step: a pure function of its arguments, so that resuming needs one integer.

    Plan(costs, …)                                   step → ranks → micro-batches of whole items
    steps(n, per_step, epochs, seed)                 step → items
    deal(indices, costs, budget, ranks)              one step → ranks → micro-batches
    micro_batches(indices, lengths, budget_tokens)   one step of padded rows → forward passes, on one rank

Micro-batches and ranks never change the result of a step (losses are normalised over the step); they bound memory and share
the work. Source: longest-processing-time-first scheduling (Graham 1969); token-budget batches as in fairseq and verl.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


def count(n: int, per_step: int, epochs: int) -> int:
    """Steps of a whole training, without making them."""
    return epochs * -(-n // per_step)


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


@dataclass(frozen=True)
class Plan:
    """Step → ranks → micro-batches, e.g. Plan(costs=[7, 3, 5], per_step=2, epochs=1, seed=0, budget=8, ranks=2).

    A pure function of its arguments: resuming needs the number of steps done, and every rank computes the whole of it.

    Args:
        costs: what each item costs in a forward pass, in tokens.
        per_step: most items per step, over all ranks.
        epochs: passes over the items.
        seed: of their order; the order does not depend on costs, budget or ranks.
        budget: most tokens in a micro-batch; a dearer item gets one of its own.
        ranks: processes that share a step.
    """

    costs: npt.NDArray[np.int64]
    per_step: int
    epochs: int
    seed: int
    budget: int
    ranks: int = 1
    _steps: list[tuple[int, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_steps", steps(len(self.costs), self.per_step, self.epochs, self.seed))

    def __len__(self) -> int:
        """Steps of the whole training."""
        return len(self._steps)

    def items(self, step: int) -> tuple[int, ...]:
        """The items of step 1, 2, … in the order drawn."""
        return self._steps[step - 1]

    def batches(self, step: int) -> list[list[tuple[int, ...]]]:
        """Per rank, the micro-batches of step 1, 2, …: as many on every rank, empty ones at the end where there is less to do."""
        return deal(self.items(step), self.costs, self.budget, self.ranks)


def deal(
    indices: Sequence[int], costs: Sequence[int] | npt.NDArray[np.int64], budget: int, ranks: int, padded: bool = False
) -> list[list[tuple[int, ...]]]:
    """Share items out over ranks, and those of each rank over micro-batches of at most `budget` tokens.

    The dearest item goes to the rank that has least so far (longest processing time first: at most 4/3 of the best split).
    Within a rank the dearest come first, so that the k-th micro-batches of all ranks are alike and the largest comes first.
    Every rank gets the same number of micro-batches, because with sharded weights each of them is a collective operation.
    `padded`: the items of a micro-batch are padded to the dearest of them, so that each costs as much.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for i in sorted(indices, key=lambda i: (-int(costs[i]), i)):
        rank = min(range(ranks), key=lambda r: (load[r], r))
        shares[rank].append(i)
        load[rank] += int(costs[i])
    dealt = [_cut(share, costs, budget, padded) for share in shares]
    most = max(len(batches) for batches in dealt)
    return [batches + [()] * (most - len(batches)) for batches in dealt]


def _cut(share: Sequence[int], costs: Sequence[int] | npt.NDArray[np.int64], budget: int, padded: bool) -> list[tuple[int, ...]]:
    """Neighbours together as long as they fit."""
    batches: list[tuple[int, ...]] = []
    batch: list[int] = []
    used = 0
    for i in share:
        cost = int(costs[batch[0] if padded and batch else i])
        if batch and used + cost > budget:
            batches.append(tuple(batch))
            batch, used, cost = [], 0, int(costs[i])
        batch.append(i)
        used += cost
    return [*batches, tuple(batch)] if batch else batches

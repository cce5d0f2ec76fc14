"""What a reward benchmark is made of: items, scored items, and a benchmark as a reader and a measure.

    file ──read──▶ Item ──score (model or score file)──▶ Scored ──measure──▶ one plain dict

Every benchmark, whatever its file looks like, becomes items: a conversation, its answers, and how good each answer is known to
be. So one way of scoring, one score file and one set of measures serve them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from starling.records import Messages


@dataclass(frozen=True, kw_only=True)
class Item:
    """One conversation with the answers that are scored for it.

    Law: `truth` has one finite number per answer, `labels` one text per answer or none.
    """

    id: str
    """Unique within the benchmark's file."""
    cluster: str
    """What is independent of the rest and is resampled as one, e.g. the prompt's text; several items may share it."""
    subset: str
    """Part of the benchmark that it is reported under; empty where there is one part only."""
    messages: Messages
    """The conversation that is answered; ends with a user turn."""
    answers: tuple[str, ...]
    """The texts to score; one or more, in an order that the benchmark fixes."""
    truth: tuple[float, ...]
    """How good each answer is known to be, higher is better. Equal numbers: no order is known, the pair is not asked."""
    labels: tuple[str, ...] = ()
    """What the benchmark says of each answer, e.g. its model or "best"; empty, or one per answer."""

    def __post_init__(self) -> None:
        if len(self.labels) not in (0, len(self.answers)):
            raise ValueError(f"item {self.id}: {len(self.answers)} answers, labels {self.labels}")
        if not self.answers or len(self.truth) != len(self.answers) or not all(map(isfinite, self.truth)):
            raise ValueError(f"item {self.id}: {len(self.answers)} answers, truth {self.truth}")


@dataclass(frozen=True)
class Scored:
    """An item with the reward of each of its answers; finite, higher is better, on any scale."""

    item: Item
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.item.answers) or not all(map(isfinite, self.scores)):
            raise ValueError(f"item {self.item.id}: {len(self.item.answers)} answers, scores {self.scores}")


@dataclass
class Reading:
    """What came of reading a file besides its items; complete once the items are used up."""

    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that are no item, by reason, e.g. {"tie": 12}: they are reported, never silently missing."""


ReadItems = Callable[[Path, Reading], Iterator[tuple[Item, tuple[float, ...] | None]]]
"""Items of a file, each with its scores where the file has them (`score_a` … in the public shapes)."""

Measure = Callable[[Iterable[Scored], int, int], dict[str, Any]]
"""(scored items, resamples, seed) → {"accuracy", "ci", "n", "clusters", "parts", "baselines", …}, numbers and lists only.

`accuracy` is the benchmark's headline in [0, 1], `ci` its 95 % interval [low, high] over clusters; `parts` maps a name to
{"accuracy", "ci", "n"}; `baselines` maps the name of a trivial scorer to its accuracy on the same items."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark: what it asks, the file that it wants and where that comes from, how to read and to measure it."""

    name: str
    asks: str
    """What a good score means, one sentence."""
    file: str
    """The file's shape: kinds and fields."""
    source: str
    """Where the file comes from, with its licence."""
    read: ReadItems
    measure: Measure

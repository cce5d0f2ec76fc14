"""Rankings kept from the reward model, for a second one that guards the policy's tuning (`policy.guard`).

The second model is trained as the first, with another seed and on other conversations, so that it does not share its errors: what
only one of them likes is an error of one of them. It lies in the reward artifact's folder `lineage.GUARD_FOLDER`.

Which side a conversation is on follows from its first user turn alone, as its split does: all its turns and rankings are on one
side, whatever the seed, the order or the number of processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

from starling.chat import conversation_key
from starling.errors import InputError
from starling.records import Message, RankedPrompt, content_hash

Side = Literal["main", "guard"]


def side_of(messages: Sequence[Message], fraction: float) -> Side:
    """The side of a conversation, given the share of conversations that the guard gets."""
    uniform = int(content_hash(["guard", conversation_key(messages)], 13), 16) / 16**13
    return "guard" if uniform < fraction else "main"


def guard_seed(seed: int) -> int:
    """The second model's seed, from the run's."""
    return int(content_hash(["guard", seed], 8), 16)


class Kept(Collection[RankedPrompt]):
    """The rankings of one side; read row by row, any number of times, from rows of which the same is true."""

    def __init__(self, rows: Collection[RankedPrompt], side: Side, fraction: float, length: int) -> None:
        self._rows, self._side, self._fraction, self._length = rows, side, fraction, length

    def __len__(self) -> int:
        return self._length

    def __contains__(self, row: object) -> bool:
        return any(row == found for found in self)

    def __iter__(self) -> Iterator[RankedPrompt]:
        return (row for row in self._rows if side_of(row.prompt.messages, self._fraction) == self._side)


def split(rows: Collection[RankedPrompt], fraction: float) -> tuple[Kept, Kept]:
    """(the reward model's rankings, the guard's), disjoint and complete; the rows are read once here to count them.

    Raises:
        InputError: one side has none.
    """
    counts = Counter(side_of(row.prompt.messages, fraction) for row in rows)
    for count, whose in ((counts["main"], "the reward model"), (counts["guard"], "its guard")):
        if not count:
            raise InputError(
                f"No ranking is left for {whose}: of {len(rows)} the guard gets {counts['guard']}",
                where=f"reward.guard_fraction = {fraction:g}",
                cure="set it nearer to 0.5, give more rankings, or set it to 0 for no guard",
            )
    return Kept(rows, "main", fraction, counts["main"]), Kept(rows, "guard", fraction, counts["guard"])

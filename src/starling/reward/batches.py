"""Rankings as token ids: what goes through the reward model.

Source: Starling-RM trains on whole conversations, [prompt] [answer] [end of turn], left-truncated to 2,048 tokens.
Departure: what truncation did is counted, and a ranking keeps its ties, its weight and what is known of single pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from starling.config import RewardSection
from starling.models.encode import Encoded, Encoder
from starling.records import RankedPair, RankedPrompt


@dataclass(frozen=True)
class EncodedRanking:
    """The conversations of one ranked prompt, best answer first, cut to max_length; at least two.

    `ranks` are competition ranks (1, 2, 2, 4: equal ones are ties); `pairs` name answers by their places here.
    """

    prompt_id: str
    answers: tuple[Encoded, ...]
    ranks: tuple[int, ...]
    pairs: tuple[RankedPair, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of its longest conversation."""
        return max(len(a.ids) for a in self.answers)


def encode_rankings(
    rows: Sequence[RankedPrompt], encoder: Encoder, settings: RewardSection, counts: Counter[str]
) -> list[EncodedRanking]:
    """Rankings as token ids, every answer with its whole conversation.

    `counts` gains how many answers went in whole, prompt_cut, answer_cut or dropped. A ranking that loses an answer keeps
    the order of the others; one with fewer than two left is not returned.
    """
    encoded = iter(encoder.conversations([(row.prompt.messages, a.answer, True) for row in rows for a in row.answers]))
    rankings = []
    for row in rows:
        fitted = [encoder.fit(next(encoded), settings.over_long) for _ in row.answers]
        counts.update(how for _, how in fitted)
        kept = [place for place, (answer, _) in enumerate(fitted) if answer is not None]
        if len(kept) >= 2:
            rankings.append(_kept(row, [answer for answer, _ in fitted if answer is not None], kept))
    return rankings


def _kept(row: RankedPrompt, answers: Sequence[Encoded], kept: Sequence[int]) -> EncodedRanking:
    """The ranking of the places that are left, ranks and pairs renumbered."""
    old = [row.answers[place].rank for place in kept]
    ranks = tuple(1 + sum(other < rank for other in old) for rank in old)
    place_of = {place: i for i, place in enumerate(kept)}
    pairs = tuple(
        pair.model_copy(update={"better": place_of[pair.better], "worse": place_of[pair.worse]})
        for pair in row.pairs
        if pair.better in place_of and pair.worse in place_of
    )
    return EncodedRanking(row.prompt.id, tuple(answers), ranks, pairs)

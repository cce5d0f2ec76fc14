"""From rankings to the loss of the settings: which answers a step needs, what is known of their order, what it costs.

Everything drawn here (a random pair) follows from (seed, step, prompt), never from the place in a batch, so that a step does
not depend on how it is cut.

Source of the losses: losses/ranking.py. Confidence c is the share of the judge's verdicts on a pair that agree; a pair that
the judge was asked about in vain (c = ½) weighs 2c − 1 = 0, one on which all verdicts agree 1, one without verdicts 1, and so
does a tied one, whose verdicts balance because it is a tie. A ranking weighs as much as its pairs do on average.

Shapes: B rankings, K answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations

import torch

from starling.config import BradleyTerry, PlackettLuce, RewardSection
from starling.losses.masked import LossOutputs
from starling.losses.ranking import Targets, bradley_terry, plackett_luce
from starling.records import content_hash
from starling.reward.batches import EncodedRanking


class Objective:
    """The loss of the settings over rankings.

    Args:
        settings: which loss, how ties, weights and pairs enter it.
        seed: of whatever is drawn.
    """

    def __init__(self, settings: RewardSection, seed: int) -> None:
        self.settings = settings.loss
        self.seed = seed
        self._loss = _loss_of(settings.loss)

    def informative(self, ranking: EncodedRanking) -> bool:
        """Whether the loss can learn anything from a ranking: not when all its answers are tied, or all its pairs in doubt."""
        return self.weight(ranking) > 0

    def select(self, ranking: EncodedRanking, step: int) -> EncodedRanking:
        """The part of a ranking whose scores the loss of this step reads: all of it, or a pair of different rank."""
        if not self._reads_a_pair or not (pairs := self._pairs(ranking, step)):
            return ranking
        return _only(ranking, pairs[0])

    def targets(self, rankings: Sequence[EncodedRanking], step: int) -> Targets:
        """What is known of the order of rankings, padded to the largest K; on the CPU.

        Whole rankings and those selected for the same step give the same loss (but for zero_sum): a pair that is not read
        weighs nothing.
        """
        width = max(len(r.answers) for r in rankings)
        rank_BK = torch.tensor([[*r.ranks, *[0] * (width - len(r.ranks))] for r in rankings])
        targets = Targets(rank_BK=rank_BK, present_BK=rank_BK > 0)
        settings = self.settings
        if isinstance(settings, PlackettLuce):
            if settings.weights == "confidence":
                targets = replace(targets, weight_B=torch.tensor([self.weight(r) for r in rankings]))
            return targets
        if settings.weights == "confidence" or self._reads_a_pair:
            targets = replace(targets, pair_weight_BKK=self._pair_weights(rankings, step, width))
        if settings.soft_labels:
            targets = replace(targets, prefer_BKK=_soft_labels(rankings, rank_BK))
        return targets

    def weight(self, ranking: EncodedRanking) -> float:
        """How much a whole ranking counts in its step, 0 to 1; 0 if it states nothing that the loss could learn.

        Where one pair is drawn from several, it is what that comes to on average over the draws.
        """
        pairs = self._pairs(ranking, None)
        if not pairs or self.settings.weights == "none":
            return float(bool(pairs))
        certainty = _certainties(ranking)
        return sum(certainty.get(pair, 1.0) for pair in pairs) / len(pairs)

    def normaliser(self, rankings: Iterable[EncodedRanking]) -> float:
        """What the losses of one step's micro-batches are divided by: the weight of its rankings; 1 when none counts."""
        return sum(self.weight(ranking) for ranking in rankings) or 1.0

    def __call__(self, scores_BK: torch.Tensor, targets: Targets, normaliser: float) -> LossOutputs:
        """Loss and metrics of a micro-batch; its share of the step's loss."""
        return self._loss(scores_BK, targets, normaliser=normaliser)

    # ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _reads_a_pair(self) -> bool:
        return isinstance(self.settings, BradleyTerry) and self.settings.pairs in ("best_vs_worst", "random")

    def _pairs(self, ranking: EncodedRanking, step: int | None) -> list[tuple[int, int]]:
        """The places of the pairs that the loss reads; without a step, all that it might draw."""
        settings = self.settings
        if isinstance(settings, PlackettLuce):
            return _ordered(ranking.ranks)
        if settings.pairs == "adjacent":
            places = sorted(set(ranking.ranks))
            return [
                (i, j) for i, j in _ordered(ranking.ranks) if places.index(ranking.ranks[j]) == places.index(ranking.ranks[i]) + 1
            ]
        if settings.pairs == "best_vs_worst":
            return [pair for pair in _ordered(ranking.ranks) if pair == (0, len(ranking.ranks) - 1)]
        if settings.pairs == "all":
            return list(combinations(range(len(ranking.ranks)), 2)) if settings.tied_pairs else _ordered(ranking.ranks)
        pairs = _ordered(ranking.ranks)
        if step is None or not pairs:
            return pairs
        return [pairs[int(content_hash([self.seed, step, ranking.prompt_id], 16), 16) % len(pairs)]]

    def _pair_weights(self, rankings: Sequence[EncodedRanking], step: int, width: int) -> torch.Tensor:
        """What each pair counts for, symmetric: its certainty over the number of pairs read, 0 for those that are not."""
        weight_BKK = torch.zeros(len(rankings), width, width)
        for b, ranking in enumerate(rankings):
            pairs = self._pairs(ranking, step)
            certainty = _certainties(ranking) if self.settings.weights == "confidence" else {}
            for i, j in pairs:
                weight_BKK[b, i, j] = weight_BKK[b, j, i] = certainty.get((i, j), 1.0) / len(pairs)
        return weight_BKK


def _loss_of(settings: PlackettLuce | BradleyTerry) -> Callable[..., LossOutputs]:
    if isinstance(settings, PlackettLuce):
        return partial(plackett_luce, ties=settings.ties, top_k=settings.top_k, zero_sum=settings.zero_sum)
    return partial(
        bradley_terry,
        pairs="adjacent" if settings.pairs == "adjacent" else "all",  # of those, the weights leave the one that is read
        tied_pairs=settings.tied_pairs,
        margin=settings.margin,
        margin_per_rank=settings.margin_per_rank,
        zero_sum=settings.zero_sum,
    )


def _ordered(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """The places of the pairs of different rank, the better one first."""
    return [(i, j) for i, j in combinations(range(len(ranks)), 2) if ranks[i] != ranks[j]]


def _certainties(ranking: EncodedRanking) -> dict[tuple[int, int], float]:
    """2c − 1 of the pairs of different rank that are known, c being the share of verdicts for the one that ranks better; 0 where
    most are against it."""
    found = {}
    for pair in ranking.pairs:
        places = (pair.better, pair.worse) if pair.better < pair.worse else (pair.worse, pair.better)
        for_better = pair.confidence if places[0] == pair.better else 1 - pair.confidence
        if ranking.ranks[places[0]] != ranking.ranks[places[1]]:
            found[places] = max(0.0, 2 * for_better - 1)
    return found


def _soft_labels(rankings: Sequence[EncodedRanking], rank_BK: torch.Tensor) -> torch.Tensor:
    """Chance that the row's answer is the better one: the judge's share where it is known, else what the ranks say."""
    higher_BKK = (rank_BK[:, :, None] < rank_BK[:, None, :]).float()
    prefer_BKK = torch.where(rank_BK[:, :, None] == rank_BK[:, None, :], 0.5, higher_BKK)
    for b, ranking in enumerate(rankings):
        for pair in ranking.pairs:
            prefer_BKK[b, pair.better, pair.worse] = pair.confidence
            prefer_BKK[b, pair.worse, pair.better] = 1 - pair.confidence
    return prefer_BKK


def _only(ranking: EncodedRanking, places: tuple[int, int]) -> EncodedRanking:
    """The two answers at these places with the ranks they have in the whole, and what is known of that pair."""
    number = {place: i for i, place in enumerate(places)}
    pairs = tuple(
        pair.model_copy(update={"better": number[pair.better], "worse": number[pair.worse]})
        for pair in ranking.pairs
        if pair.better in number and pair.worse in number
    )
    answers = tuple(ranking.answers[place] for place in places)
    return EncodedRanking(ranking.prompt_id, answers, tuple(ranking.ranks[place] for place in places), pairs)

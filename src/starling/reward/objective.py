"""From rankings to the loss of the settings: which answers a step needs, what is known of their order, what it costs.

Everything drawn here (a random pair) follows from (seed, step, prompt), never from the place in a batch, so that a step does
not depend on how it is cut.

Source of the losses: losses/ranking.py. Confidence c is the share of the judge's verdicts on a pair that agree; a pair that
the judge was asked about in vain (c = ½) weighs 2c − 1 = 0, one on which all verdicts agree 1, one without verdicts 1.

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
from starling.records import RankedPair, content_hash
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
        if not isinstance(self.settings, BradleyTerry) or self.settings.pairs in ("all", "adjacent"):
            return ranking
        places = range(len(ranking.answers))
        if self.settings.pairs == "best_vs_worst":
            return _only(ranking, (0, places[-1]))
        pairs = [(i, j) for i, j in combinations(places, 2) if ranking.ranks[i] != ranking.ranks[j]]
        if not pairs:
            return ranking
        drawn = int(content_hash([self.seed, step, ranking.prompt_id], 16), 16)
        return _only(ranking, pairs[drawn % len(pairs)])

    def targets(self, rankings: Sequence[EncodedRanking], step: int) -> Targets:
        """What is known of the order of rankings (selected for this step, or whole), padded to the largest K; on the CPU."""
        width = max(len(r.answers) for r in rankings)
        rank_BK = torch.tensor([[*r.ranks, *[0] * (width - len(r.ranks))] for r in rankings])
        targets = Targets(rank_BK=rank_BK, present_BK=rank_BK > 0)
        settings = self.settings
        if isinstance(settings, PlackettLuce):
            if settings.weights == "confidence":
                targets = replace(targets, weight_B=torch.tensor([self.weight(r) for r in rankings]))
            return targets
        if settings.weights == "confidence":
            targets = replace(targets, pair_weight_BKK=_of_pairs(rankings, width, _certainty))
        if settings.soft_labels:
            targets = replace(targets, prefer_BKK=_soft_labels(rankings, rank_BK))
        return targets

    def weight(self, ranking: EncodedRanking) -> float:
        """How much a whole ranking counts in its step: 0 if it states no order the loss could learn."""
        settings = self.settings
        ordered = [(i, j) for i, j in combinations(range(len(ranking.ranks)), 2) if ranking.ranks[i] != ranking.ranks[j]]
        if not ordered:
            return float(isinstance(settings, BradleyTerry) and settings.tied_pairs and settings.pairs == "all")
        if settings.weights == "none":
            return 1.0
        known = {frozenset((p.better, p.worse)): _certainty(p) for p in ranking.pairs}
        weights = [known.get(frozenset(pair), 1.0) for pair in ordered]
        return sum(weights) / len(weights) if isinstance(settings, PlackettLuce) else float(any(weights))

    def normaliser(self, rankings: Iterable[EncodedRanking]) -> float:
        """What the losses of one step's micro-batches are divided by: the weight of its rankings; 1 when none counts."""
        return sum(self.weight(ranking) for ranking in rankings) or 1.0

    def __call__(self, scores_BK: torch.Tensor, targets: Targets, normaliser: float) -> LossOutputs:
        """Loss and metrics of a micro-batch; its share of the step's loss."""
        return self._loss(scores_BK, targets, normaliser=normaliser)


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _loss_of(settings: PlackettLuce | BradleyTerry) -> Callable[..., LossOutputs]:
    if isinstance(settings, PlackettLuce):
        return partial(plackett_luce, ties=settings.ties, top_k=settings.top_k, zero_sum=settings.zero_sum)
    return partial(
        bradley_terry,
        pairs="adjacent" if settings.pairs == "adjacent" else "all",  # of a selected pair, too, all pairs are that one
        tied_pairs=settings.tied_pairs and settings.pairs == "all",
        margin=settings.margin,
        margin_per_rank=settings.margin_per_rank,
        zero_sum=settings.zero_sum,
    )


def _certainty(pair: RankedPair) -> float:
    return max(0.0, 2 * pair.confidence - 1)


def _of_pairs(rankings: Sequence[EncodedRanking], width: int, value: Callable[[RankedPair], float]) -> torch.Tensor:
    """`value` of every pair that is known, 1 elsewhere; symmetric."""
    found_BKK = torch.ones(len(rankings), width, width)
    for b, ranking in enumerate(rankings):
        for pair in ranking.pairs:
            found_BKK[b, pair.better, pair.worse] = found_BKK[b, pair.worse, pair.better] = value(pair)
    return found_BKK


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
    """The two answers at these places, with what is known of that pair."""
    first, second = places
    ranks = (1, 1 if ranking.ranks[first] == ranking.ranks[second] else 2)
    number = {first: 0, second: 1}
    pairs = tuple(
        pair.model_copy(update={"better": number[pair.better], "worse": number[pair.worse]})
        for pair in ranking.pairs
        if pair.better in number and pair.worse in number
    )
    return EncodedRanking(ranking.prompt_id, (ranking.answers[first], ranking.answers[second]), ranks, pairs)

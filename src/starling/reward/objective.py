"""From rankings to the loss of the settings: which answers a step needs, what is known of their order, what it costs.

Everything drawn here (a random pair) follows from (seed, step, prompt), never from the place in a batch, so that a step does
not depend on how it is cut.

Shapes: B rankings, K answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from starling.config import RewardSection
from starling.losses.masked import LossOutputs
from starling.losses.ranking import LOSSES, Targets
from starling.reward.batches import EncodedRanking


class Objective:
    """The loss of the settings over rankings.

    Args:
        settings: which loss, how ties, weights and pairs enter it.
        seed: of whatever is drawn.
    """

    def __init__(self, settings: RewardSection, seed: int) -> None:
        self._loss = LOSSES[settings.loss]
        self.seed = seed

    def select(self, ranking: EncodedRanking, step: int) -> EncodedRanking:
        """The part of a ranking whose scores the loss of this step reads: all of it, or a pair."""
        return ranking

    def targets(self, rankings: Sequence[EncodedRanking], step: int) -> Targets:
        """What is known of the order of these (selected) rankings, padded to the largest K; on the CPU."""
        width = max(len(r.answers) for r in rankings)
        rank_BK = torch.tensor([[*r.ranks, *[0] * (width - len(r.ranks))] for r in rankings])
        return Targets(rank_BK=rank_BK, present_BK=rank_BK > 0)

    def normaliser(self, rankings: Sequence[EncodedRanking]) -> float:
        """What the losses of one step's micro-batches are divided by: the number of its rankings."""
        return float(len(rankings))

    def __call__(self, scores_BK: torch.Tensor, targets: Targets, normaliser: float) -> LossOutputs:
        """Loss and metrics of a micro-batch; its share of the step's loss."""
        return self._loss(scores_BK, targets.present_BK, normaliser=normaliser)

"""K-wise ranking losses over scores, best answer first.

    plackett_luce   L = −1/(K−1) Σ_{k<K−1} [ r_k − logsumexp_{j≥k} r_j ]      arXiv 2301.11270, eq. for L_K; the original
                    reward model divides by K−1 and averages over rankings (its code, verified)
    bradley_terry   L = −2/(K(K−1)) Σ_{j<k} log σ(r_j − r_k)                  all pairs of the ranking, InstructGPT

Both are means over rankings, invariant to adding a constant to all scores of a ranking, and equal for K = 2.

Ties (equal ranks). A Plackett–Luce choice is one answer against itself and everything not better. Where m tied answers
G, with nothing better left, stand before the strictly worse W, their m choices have the denominators

    efron     Σ_W e^r + (1 − l/m) Σ_G e^r, l = 0 … m−1     Efron 1977: the tied leave one by one, on average
    breslow   Σ_W e^r + Σ_G e^r                            Breslow 1974: none of the tied has left
    strict    Σ_W e^r + e^{r_i}                            ours: the tied say nothing about each other

The likelihoods are those of Cox regression, of which Plackett–Luce is the stratified case. An answer with nothing strictly
worse makes no choice. So a tied bottom adds nothing, which is exact: the order among the last is free. A partial ranking is
therefore one whose unranked answers share the last rank, and a ranking that is all one tie costs nothing.

Departures: rankings of different K share a batch, each divided by the number of choices (pairs) it really makes; the original
has no ties, weights, margins or soft labels. Its zero-sum penalty z (Σ r)² / (K−1), default 0, is here.

Shapes: B rankings, K answers (padded at the end); BKK: the row's answer against the column's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from starling.losses.masked import LossOutputs, masked_mean, masked_sum, masked_variance

Ties = Literal["efron", "breslow", "strict"]
Pairs = Literal["all", "adjacent"]


@dataclass(frozen=True)
class Targets:
    """What is known of the order of B rankings, e.g. Targets(rank_BK=[[1, 2, 2, 4]], present_BK=[[True] * 4]).

    Slots are in the order of the ranking, best first; absent slots come last.
    """

    rank_BK: Tensor  # int64 competition ranks, 1 = best, equal ones are ties; 0 in absent slots
    present_BK: Tensor  # bool; True means the slot holds an answer
    weight_B: Tensor | None = None  # float, ≥ 0: how much a ranking counts; 1 if None
    pair_weight_BKK: Tensor | None = None  # float, ≥ 0, symmetric: how much a pair counts; see `bradley_terry`
    prefer_BKK: Tensor | None = None  # float in [0, 1]: chance that the row's answer is the better; from the ranks if None

    def to(self, device: torch.device | str) -> Targets:
        """The same targets on another device."""
        parts = (self.rank_BK, self.present_BK, self.weight_B, self.pair_weight_BKK, self.prefer_BKK)
        return Targets(*(None if part is None else part.to(device, non_blocking=True) for part in parts))  # type: ignore[arg-type]


def strict_order(present_BK: Tensor) -> Targets:
    """Targets of rankings without ties, each as long as its present slots: ranks 1, 2, 3 …"""
    rank_BK = torch.arange(1, present_BK.shape[1] + 1, device=present_BK.device).expand(present_BK.shape)
    return Targets(rank_BK.masked_fill(~present_BK, 0), present_BK)


def plackett_luce(
    scores_BK: Tensor,
    targets: Targets | None = None,
    *,
    ties: Ties = "efron",
    top_k: int | None = None,
    zero_sum: float = 0.0,
    normaliser: float | Tensor | None = None,
) -> LossOutputs:
    """Negative log-likelihood of the rankings under Plackett–Luce, per choice made, mean over rankings.

    Args:
        scores_BK: scores, best answer in slot 0. Computed in fp32 (fp64 if given). Absent slots may hold anything.
        targets: the order; all slots present in a strict order if None. Weights of pairs and preferences are not read.
        ties: see the module; without ties the three are the same.
        top_k: only choices of answers with a rank up to this count (and divide); all if None.
        zero_sum: z of the penalty z (Σ r)² / (number of choices); above 0 the loss is no longer free in the scores' origin.
        normaliser: sum of the rankings' weights to divide by, instead of those in this batch: give the step's, and the losses
            of its micro-batches add up to the step's.

    Returns:
        loss, and metrics in [0, 1] `pair_accuracy`, `adjacent_accuracy` (both over answers that differ in rank), `top1` (share
        of the best-scored answers that are truly best), `margin` (mean score difference of pairs), `score_mean`, `score_std`;
        each a plain mean over this batch's rankings that order something, except the last two, which run over its answers.
    """
    scores_BK, targets = _prepared(scores_BK, targets)
    worse_BKK, tied_BKK = _worse(targets), _tied(targets)
    choice_BK = worse_BKK.any(2)  # True means the slot is chosen before at least one other
    if top_k is not None:
        choice_BK = choice_BK & (targets.rank_BK <= top_k)
    share_BKK = _share_of_tied(tied_BKK, ties, scores_BK.dtype).masked_fill(worse_BKK, 1.0)
    # rows that make no choice are never read; their own score alone keeps them finite, so that no NaN enters the gradient
    share_BKK = torch.where(choice_BK[:, :, None], share_BKK, _eye(scores_BK).to(scores_BK.dtype))
    shown_BKK = scores_BK[:, None, :] + share_BKK.log()  # log 0 = −inf takes an answer out
    nll_BK = torch.where(choice_BK, shown_BKK.logsumexp(2) - scores_BK, 0.0)
    loss_B = masked_mean(nll_BK, choice_BK, 1) + _off_zero(scores_BK, zero_sum) / choice_BK.sum(1).clamp(min=1)
    return _outputs(loss_B, choice_BK.any(1).to(scores_BK.dtype), scores_BK, targets, worse_BKK, normaliser)


def bradley_terry(
    scores_BK: Tensor,
    targets: Targets | None = None,
    *,
    pairs: Pairs = "all",
    tied_pairs: bool = False,
    margin: float = 0.0,
    margin_per_rank: float = 0.0,
    zero_sum: float = 0.0,
    normaliser: float | Tensor | None = None,
) -> LossOutputs:
    """Logistic loss over pairs of each ranking, mean over its pairs, mean over rankings; see `plackett_luce`.

    `targets.pair_weight_BKK` says otherwise: then the mean is over all pairs of the batch by their weights, and a ranking
    counts as much as the weights of its pairs make together. Without it each of the n pairs of a ranking weighs 1/n.

    With p the chance that the better-ranked answer is the better one (1 unless `targets.prefer_BKK` says otherwise) and d the
    score difference less the margin, a pair costs −p log σ(d) − (1 − p) log σ(−d).

    Args:
        pairs: "all" of the answers that differ in rank, or "adjacent": those with no answer's rank between theirs.
        tied_pairs: whether tied answers are pairs too, with p = ½ and no margin (only with "all").
        margin, margin_per_rank: d is the score difference − margin − margin_per_rank × (difference in rank).
    """
    scores_BK, targets = _prepared(scores_BK, targets)
    worse_BKK = _worse(targets)
    used_BKK = worse_BKK if pairs == "all" else _adjacent(worse_BKK)
    chance_BKK = torch.ones_like(worse_BKK, dtype=scores_BK.dtype)
    gap_BKK = (targets.rank_BK[:, None, :] - targets.rank_BK[:, :, None]).to(scores_BK.dtype)
    wanted_BKK = torch.where(worse_BKK, margin + margin_per_rank * gap_BKK, 0.0)
    if tied_pairs:
        tied_BKK = _tied(targets) & torch.ones_like(worse_BKK).triu(1)  # each pair once
        used_BKK, chance_BKK = used_BKK | tied_BKK, chance_BKK.masked_fill(tied_BKK, 0.5)
    if targets.prefer_BKK is not None:
        chance_BKK = targets.prefer_BKK.to(scores_BK.dtype)
    weight_BKK = used_BKK.to(scores_BK.dtype)
    if targets.pair_weight_BKK is None:
        weight_BKK = weight_BKK / weight_BKK.sum((1, 2), keepdim=True).clamp(min=1)
    else:
        weight_BKK = weight_BKK * targets.pair_weight_BKK.to(scores_BK.dtype)
    d_BKK = _difference(scores_BK) - wanted_BKK
    cost_BKK = chance_BKK * F.softplus(-d_BKK) + (1 - chance_BKK) * F.softplus(d_BKK)
    total_B = weight_BKK.sum((1, 2))
    tiny = torch.finfo(scores_BK.dtype).tiny
    loss_B = torch.where(weight_BKK > 0, weight_BKK * cost_BKK, 0.0).sum((1, 2)) / total_B.clamp(min=tiny)
    loss_B = loss_B + _off_zero(scores_BK, zero_sum) / (targets.present_BK.sum(1) - 1).clamp(min=1)
    return _outputs(loss_B, total_B, scores_BK, targets, worse_BKK, normaliser)


LOSSES = {"plackett_luce": plackett_luce, "bradley_terry": bradley_terry}
"""By their names in the settings."""


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _prepared(scores_BK: Tensor, targets: Targets | None) -> tuple[Tensor, Targets]:
    scores_BK = scores_BK if scores_BK.dtype is torch.float64 else scores_BK.float()
    if targets is None:
        targets = strict_order(torch.ones_like(scores_BK, dtype=torch.bool))
    # absent scores may be anything, NaN too: they must not reach the loss or its gradient
    return torch.where(targets.present_BK, scores_BK, torch.zeros_like(scores_BK)), targets


def _eye(scores_BK: Tensor) -> Tensor:
    return torch.eye(scores_BK.shape[1], dtype=torch.bool, device=scores_BK.device)


def _both(targets: Targets) -> Tensor:
    return targets.present_BK[:, :, None] & targets.present_BK[:, None, :]


def _worse(targets: Targets) -> Tensor:
    """True means the column's answer is ranked strictly below the row's."""
    return (targets.rank_BK[:, :, None] < targets.rank_BK[:, None, :]) & _both(targets)


def _tied(targets: Targets) -> Tensor:
    """True means the two have the same rank; every present answer with itself."""
    return (targets.rank_BK[:, :, None] == targets.rank_BK[:, None, :]) & _both(targets)


def _adjacent(worse_BKK: Tensor) -> Tensor:
    """True means strictly worse, with no third answer strictly between the two."""
    between = worse_BKK.to(torch.float32) @ worse_BKK.to(torch.float32)
    return worse_BKK & (between == 0)


def _share_of_tied(tied_BKK: Tensor, ties: Ties, dtype: torch.dtype) -> Tensor:
    """How much of each tied answer (the row's own included) stands in the denominator of the row's choice."""
    tied = tied_BKK.to(dtype)
    if ties == "breslow":
        return tied
    if ties == "strict":
        return tied * _eye(tied_BKK[:, 0])
    gone_BK = (tied * torch.ones_like(tied).tril(-1)).sum(2)  # l: the tied ones in earlier slots
    return tied * (1 - gone_BK / tied.sum(2).clamp(min=1))[:, :, None]


def _difference(scores_BK: Tensor) -> Tensor:
    """The row's score minus the column's."""
    return scores_BK[:, :, None] - scores_BK[:, None, :]


def _off_zero(scores_BK: Tensor, zero_sum: float) -> Tensor | float:
    """z (Σ r)² of each ranking; absent slots are 0 by now."""
    return zero_sum * scores_BK.sum(1) ** 2 if zero_sum else 0.0


def _outputs(
    loss_B: Tensor, share_B: Tensor, scores_BK: Tensor, targets: Targets, worse_BKK: Tensor, normaliser: float | Tensor | None
) -> LossOutputs:
    """Weighted mean over rankings; the weight is `share_B`, 0 for one that states nothing, times the ranking's own."""
    weight_B = share_B if targets.weight_B is None else share_B * targets.weight_B.to(loss_B.dtype)
    if normaliser is None:
        normaliser = weight_B.sum().clamp(min=torch.finfo(loss_B.dtype).tiny)
    loss = masked_sum(weight_B * loss_B, weight_B > 0) / normaliser
    return LossOutputs(loss, _metrics(scores_BK.detach(), targets, worse_BKK))


def _metrics(scores_BK: Tensor, targets: Targets, worse_BKK: Tensor) -> dict[str, Tensor]:
    present_BK, ordered_B = targets.present_BK, worse_BKK.any(2).any(1)
    d_BKK, next_BKK = _difference(scores_BK), _adjacent(worse_BKK)
    top_BK = present_BK & (scores_BK >= scores_BK.masked_fill(~present_BK, -math.inf).amax(1, keepdim=True))
    best_BK = top_BK & ~worse_BKK.any(1)

    def over(values_BKK: Tensor, pairs_BKK: Tensor) -> Tensor:
        return masked_mean(masked_mean(values_BKK.flatten(1), pairs_BKK.flatten(1), 1), ordered_B)

    return {
        "pair_accuracy": over(_wins(d_BKK), worse_BKK),
        "adjacent_accuracy": over(_wins(d_BKK), next_BKK),
        "top1": masked_mean(best_BK.sum(1).to(scores_BK.dtype) / top_BK.sum(1).clamp(min=1), ordered_B),
        "margin": over(d_BKK, worse_BKK),
        "score_mean": masked_sum(scores_BK, present_BK) / present_BK.sum().clamp(min=1),
        "score_std": masked_variance(scores_BK, present_BK).sqrt(),
    }


def _wins(margin: Tensor) -> Tensor:
    """1 for a right order, ½ for a tie, 0 for a wrong one."""
    return (margin > 0).to(margin.dtype) + 0.5 * (margin == 0).to(margin.dtype)

"""K-wise ranking losses over scores, best answer first.

    plackett_luce   L = −1/(K−1) Σ_{k<K−1} [ r_k − logsumexp_{j≥k} r_j ]      arXiv 2301.11270, eq. for L_K; the original
                    reward model divides by K−1 and averages over rankings (its code, verified)
    bradley_terry   L = −2/(K(K−1)) Σ_{j<k} log σ(r_j − r_k)                  all pairs of the ranking, InstructGPT

Both are means over rankings, invariant to adding a constant to all scores of a ranking, and equal for K = 2. Departure:
rankings of different K share a batch (`present_BK`), each with its own divisor; the original's zero-sum penalty (default
0 there) is left out.

Shapes: B rankings, K answers (padded at the end), P pairs of slots j < k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from starling.losses.masked import LossOutputs, masked_mean, masked_sum, masked_variance


@dataclass(frozen=True)
class Targets:
    """What is known of the order of B rankings, e.g. Targets(rank_BK=[[1, 2, 2, 4]], present_BK=[[True] * 4]).

    Slots are in the order of the ranking, best first; absent slots come last.
    """

    rank_BK: torch.Tensor  # int64 competition ranks, 1 = best, equal ones are ties; 0 in absent slots
    present_BK: torch.Tensor  # bool; True means the slot holds an answer

    def to(self, device: torch.device | str) -> Targets:
        """The same targets on another device."""
        return Targets(self.rank_BK.to(device), self.present_BK.to(device))


def plackett_luce(
    scores_BK: torch.Tensor, present_BK: torch.Tensor | None = None, *, normaliser: float | torch.Tensor | None = None
) -> LossOutputs:
    """Negative log-likelihood of the rankings under Plackett–Luce, per choice made, mean over rankings.

    Args:
        scores_BK: scores, best answer in slot 0. Computed in fp32 (fp64 if given).
        present_BK: True means the slot holds an answer; absent slots come last. All present if None. A ranking with fewer
            than two answers contributes nothing.
        normaliser: number of rankings to divide by, instead of those in this batch: give the step's, and the losses of
            its micro-batches add up to the step's.

    Returns:
        loss, and metrics in [0, 1] `pair_accuracy`, `adjacent_accuracy`, `top1` (ties count half, or 1/m at the top),
        `margin` (mean score difference of pairs), `score_mean`, `score_std`; each a mean over this batch's rankings,
        except the last two, which run over its answers.
    """
    scores_BK, present_BK = _prepared(scores_BK, present_BK)
    hidden_BK = scores_BK.masked_fill(~present_BK, -torch.inf)
    # logsumexp over the slots k … K−1, from the right; an absent tail stays −inf and is masked below
    rest_BK = hidden_BK.flip(1).logcumsumexp(1).flip(1)
    choice_BK = present_BK & _shifted(present_BK)  # True means the slot is chosen before at least one other
    nll_BK = torch.where(choice_BK, rest_BK, 0.0) - torch.where(choice_BK, scores_BK, 0.0)
    return _outputs(masked_mean(nll_BK, choice_BK, 1), scores_BK, present_BK, normaliser)


def bradley_terry(
    scores_BK: torch.Tensor, present_BK: torch.Tensor | None = None, *, normaliser: float | torch.Tensor | None = None
) -> LossOutputs:
    """Logistic loss over all pairs of each ranking, mean over its pairs, mean over rankings; see `plackett_luce`."""
    scores_BK, present_BK = _prepared(scores_BK, present_BK)
    margin_BP, pair_BP = _pairs(scores_BK, present_BK)
    return _outputs(masked_mean(F.softplus(-margin_BP), pair_BP, 1), scores_BK, present_BK, normaliser)


LOSSES = {"plackett_luce": plackett_luce, "bradley_terry": bradley_terry}
"""By their names in the settings."""


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _prepared(scores_BK: torch.Tensor, present_BK: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    scores_BK = scores_BK if scores_BK.dtype is torch.float64 else scores_BK.float()
    if present_BK is None:
        return scores_BK, torch.ones_like(scores_BK, dtype=torch.bool)
    # absent scores may be anything, NaN too: they must not reach the loss or its gradient
    return torch.where(present_BK, scores_BK, torch.zeros_like(scores_BK)), present_BK


def _shifted(present_BK: torch.Tensor) -> torch.Tensor:
    """True means the next slot holds an answer."""
    return F.pad(present_BK[:, 1:], (0, 1), value=False)


def _pairs(scores_BK: torch.Tensor, present_BK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Better minus worse for every pair of slots, and whether both hold an answer."""
    better_P, worse_P = torch.triu_indices(scores_BK.shape[1], scores_BK.shape[1], 1, device=scores_BK.device)
    return scores_BK[:, better_P] - scores_BK[:, worse_P], present_BK[:, better_P] & present_BK[:, worse_P]


def _outputs(
    loss_B: torch.Tensor, scores_BK: torch.Tensor, present_BK: torch.Tensor, normaliser: float | torch.Tensor | None
) -> LossOutputs:
    ranked_B = present_BK.sum(1) >= 2
    return LossOutputs(masked_mean(loss_B, ranked_B, normaliser=normaliser), _metrics(scores_BK.detach(), present_BK, ranked_B))


def _metrics(scores_BK: torch.Tensor, present_BK: torch.Tensor, ranked_B: torch.Tensor) -> dict[str, torch.Tensor]:
    margin_BP, pair_BP = _pairs(scores_BK, present_BK)
    next_BK, choice_BK = scores_BK - torch.roll(scores_BK, -1, 1), present_BK & _shifted(present_BK)
    top_BK = present_BK & (scores_BK >= scores_BK.masked_fill(~present_BK, -torch.inf).amax(1, keepdim=True))
    return {
        "pair_accuracy": masked_mean(masked_mean(_wins(margin_BP), pair_BP, 1), ranked_B),
        "adjacent_accuracy": masked_mean(masked_mean(_wins(next_BK), choice_BK, 1), ranked_B),
        "top1": masked_mean(top_BK[:, 0].to(scores_BK.dtype) / top_BK.sum(1).clamp(min=1), ranked_B),
        "margin": masked_mean(masked_mean(margin_BP, pair_BP, 1), ranked_B),
        "score_mean": masked_sum(scores_BK, present_BK) / present_BK.sum().clamp(min=1),
        "score_std": masked_variance(scores_BK, present_BK).sqrt(),
    }


def _wins(margin: torch.Tensor) -> torch.Tensor:
    """1 for a right order, ½ for a tie, 0 for a wrong one."""
    return (margin > 0).to(margin.dtype) + 0.5 * (margin == 0).to(margin.dtype)

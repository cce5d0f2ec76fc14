"""Sums, means and standardising over the positions that count.

Every mask: True means the position counts. Positions that do not count may hold anything, NaN included; they reach neither
the value nor the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class LossOutputs:
    """What every loss returns, e.g. LossOutputs(loss=tensor(0.41), metrics={"pair_accuracy": tensor(0.86)}).

    `loss` is a scalar with a gradient; `metrics` are detached scalars.
    """

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)


def masked_sum(values: torch.Tensor, mask: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Sum of `values` where `mask` is True, over `dim` or over everything."""
    kept = torch.where(mask, values, torch.zeros_like(values))
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(
    values: torch.Tensor, mask: torch.Tensor, dim: int | None = None, *, normaliser: float | torch.Tensor | None = None
) -> torch.Tensor:
    """Mean of `values` where `mask` is True; 0 where nothing counts.

    `normaliser` replaces the count: give the count of the whole step, and the results of its micro-batches add up.
    """
    total = masked_sum(values, mask, dim)
    if normaliser is not None:
        return total / normaliser
    count = mask.sum() if dim is None else mask.sum(dim)
    return total / count.clamp(min=1)


def masked_variance(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Population variance (divided by the count) of the values that count."""
    return masked_mean((values - masked_mean(values, mask)) ** 2, mask)


def center_and_scale(values: torch.Tensor, mask: torch.Tensor, epsilon: float = 1e-8) -> torch.Tensor:
    """Values that count brought to mean 0 and standard deviation 1; 0 elsewhere."""
    centred = values - masked_mean(values, mask)
    scaled = centred / (masked_variance(values, mask) + epsilon).sqrt()
    return torch.where(mask, scaled, torch.zeros_like(scaled))

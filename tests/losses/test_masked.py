"""Masked sums and means by hand; what does not count never matters."""

import pytest
import torch

from starling.losses.masked import center_and_scale, masked_mean, masked_sum, masked_variance

VALUES = torch.tensor([[1.0, 2.0, float("nan")], [6.0, float("inf"), 3.0]])
MASK = torch.tensor([[True, True, False], [True, False, True]])


def test_by_hand() -> None:
    assert masked_sum(VALUES, MASK).item() == 12
    assert masked_sum(VALUES, MASK, 1).tolist() == [3, 9]
    assert masked_mean(VALUES, MASK).item() == 3
    assert masked_mean(VALUES, MASK, 1).tolist() == [1.5, 4.5]
    assert masked_mean(VALUES, MASK, normaliser=24).item() == 0.5
    assert masked_variance(VALUES, MASK).item() == pytest.approx((4 + 1 + 9 + 0) / 4)


def test_nothing_counts_is_zero() -> None:
    assert masked_mean(VALUES, torch.zeros_like(MASK)).item() == 0
    assert masked_mean(VALUES, torch.zeros_like(MASK), 0).tolist() == [0, 0, 0]


def test_center_and_scale() -> None:
    scaled = center_and_scale(VALUES, MASK)
    assert masked_mean(scaled, MASK).item() == pytest.approx(0, abs=1e-6)
    assert masked_variance(scaled, MASK).item() == pytest.approx(1, abs=1e-6)
    assert scaled[~MASK].tolist() == [0, 0]
    assert scaled[0, 0].item() == pytest.approx(-2 / 3.5**0.5, abs=1e-6)


def test_gradient_is_zero_where_nothing_counts() -> None:
    values = VALUES.clone().requires_grad_()
    masked_mean(values, MASK).backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0.25, 0.25, 0], [0.25, 0, 0.25]]

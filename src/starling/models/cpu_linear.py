"""Linear layers on CPU through oneDNN instead of the BLAS that torch was built with, for passes without gradients.

torch sends fp32 `linear` to MKL, which on processors that are not Intel's leaves AVX-512 unused: 106 against 240 GFLOP/s on one
core of an AMD EPYC, 128 × 256 by 256 × 1024 (fp32 on both sides, sums in another order). The operator is the one that
torch's own compiler puts into frozen graphs. Half precision goes to oneDNN in torch itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FEWEST_ROWS = 8
"""Below, the operator's own overhead (10 µs) costs more than it saves."""

_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


@contextmanager
def faster_linears(model: nn.Module) -> Iterator[None]:
    """Meanwhile the model's fp32 linear layers compute through oneDNN, where there is one; nothing is copied."""
    changed: list[nn.Module] = []
    if _linear is not None and not torch.is_autocast_enabled("cpu"):
        for module in model.modules():
            plain = type(module) is nn.Linear and "forward" not in vars(module)  # not one that someone else has wrapped
            if plain and module.weight.dtype is torch.float32 and module.weight.device.type == "cpu":
                vars(module)["forward"] = _forward(module)
                changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del vars(module)["forward"]


def _forward(module: Any) -> Callable[[Tensor], Tensor]:
    def forward(input: Tensor) -> Tensor:
        if input.numel() < _FEWEST_ROWS * input.shape[-1] or input.dtype is not torch.float32:
            return F.linear(input, module.weight, module.bias)
        assert _linear is not None
        return _linear(input, module.weight, module.bias, "none", [], "")  # type: ignore[no-any-return]

    return forward

"""Linear layers in fp32 on a CPU through oneDNN instead of the BLAS that torch was built with; forward and backward.

torch sends fp32 products to MKL, which on processors that are not Intel's leaves AVX-512 unused. GFLOP/s on one core of an AMD
EPYC, oneDNN against MKL, 256 → 1,024 features and 2,048 rows: 252 against 100 forward, 243 by the input, 185 by the weight
against 100; sums come in another order. The operator is the one that torch's own compiler puts into frozen graphs. Half precision
goes to oneDNN in torch itself.

`use_onednn` is called once where a model is loaded. What is computed how follows from the machine and the shapes alone, never
from a timing: a run that goes on after a stop rounds as before. A module keeps its class, its parameters and their names; what
is not plain fp32 on a CPU in that moment (autocast, weights spread over processes, GPUs) goes to torch as ever. Nothing is kept
for the backward pass but what `F.linear` keeps.

`packed` keeps a second copy of the weights, in the order in which oneDNN's kernels read them, while a model is sampled from: the
operator makes it at every call otherwise. The same bits come out; a product of 8, 32 or 128 rows takes .6, .8 or .95 of the time.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

_LEAST_WORK = 1 << 21
"""Multiplications below which the operator's own overhead (10 µs) costs more than it saves."""
_ROWS = (512, 64, 8)
"""A product is cut into pieces of 512 rows, then one of so many times 64, then one of so many times 8; fewer than 8 rows are
torch's. So there are 15 numbers of rows. oneDNN compiles a kernel for each number of rows and keeps it: 400 different
numbers at 256 → 1,024 took 230 MiB, and up to 2.2 GiB with the holes that they left in the heap between the results."""

_MOST_PACKED = 1 << 30
"""Bytes of weights up to which a packed copy is worth its memory. Larger models are bound by reading their weights anyway."""

_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_PLAIN = (Tensor, nn.Parameter)  # no DTensor and no other subclass


def use_onednn(model: nn.Module) -> None:
    """Let the linear layers of a model, and gpt2's, compute through oneDNN wherever that is possible; once is enough.

    A layer whose class or `forward` is somebody's own is left alone.
    """
    if _linear is not None:
        for module in model.modules():
            if type(module) in (nn.Linear, Conv1D) and "forward" not in vars(module):
                vars(module)["forward"] = _Forward(module)


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Meanwhile the layers that `use_onednn` has prepared use packed weights where no gradients are wanted. The weights must not
    change."""
    layers = [f for m in model.modules() if isinstance(f := vars(m).get("forward"), _Forward) and f.can_be_packed()]
    if sum(f.layer.weight.nbytes for f in layers) > _MOST_PACKED or torch.is_autocast_enabled("cpu"):
        layers = []
    try:
        for forward in layers:
            forward.pack()
        yield
    finally:
        for forward in layers:
            forward.packed = None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, through oneDNN where that is possible; gradients flow, once."""
    if x.shape[-1:] != weight.shape[1:] or not _possible(x, weight, bias):  # a wrong shape is torch's to complain about
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)):
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
    return _product(x, weight, bias)


def product(x_NI: Tensor, weight_OI: Tensor) -> Tensor:
    """x Wᵀ without gradients, of matrices, through oneDNN where that is possible."""
    return _product(x_NI, weight_OI) if _possible(x_NI, weight_OI) else x_NI @ weight_OI.T


def add_products(sum_OI: Tensor, y_NO: Tensor, x_NI: Tensor) -> None:
    """Add yᵀ x to a sum in fp32, without gradients, through oneDNN where that is possible."""
    if _possible(y_NO, x_NI.T):
        _sum_of_products(y_NO, x_NI, sum_OI)
    elif y_NO.dtype is sum_OI.dtype:
        sum_OI.addmm_(y_NO.T, x_NI)
    else:
        sum_OI.add_(y_NO.T @ x_NI)


# ── inside ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Forward:
    """In a layer's own dictionary, as its `forward`. It refers to the layer weakly: a cycle would keep weights alive until the
    next collection. A copy of the layer, or one that was pickled, has one of its own."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = weakref.ref(layer)
        self.packed: Tensor | None = None

    @property
    def layer(self) -> Any:
        return self._layer()

    def can_be_packed(self) -> bool:
        layer = self.layer
        return _is_plain(layer.weight) and (layer.bias is None or _is_plain(layer.bias))

    def pack(self) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(_weight_OI(self.layer).detach().contiguous(), _ROWS[0])

    def __call__(self, input: Tensor) -> Tensor:
        layer, packed_OI = self.layer, self.packed
        weight_OI = _weight_OI(layer)
        # Few rows leave no time for more questions: a decode step of a small model makes thirty such calls in 6 ms.
        if (
            packed_OI is not None
            and type(input) is Tensor
            and input.dtype is torch.float32
            and input.shape[-1] == weight_OI.shape[1]
            and input.numel() * weight_OI.shape[0] >= _LEAST_WORK
            and not torch.is_grad_enabled()
        ):
            return _product(input, weight_OI, layer.bias, packed_OI)
        return linear(input, weight_OI, layer.bias)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Forward, (self.layer,)


def _weight_OI(layer: Any) -> Tensor:
    """gpt2's layers hold theirs the other way round."""
    return layer.weight if isinstance(layer, nn.Linear) else layer.weight.T  # type: ignore[no-any-return]


def _possible(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        _linear is not None
        and _is_plain(x)
        and _is_plain(weight)
        and (bias is None or _is_plain(bias))
        and x.numel() * weight.shape[0] >= _LEAST_WORK
        and (weight.is_contiguous() or weight.T.is_contiguous())
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _is_plain(x: Tensor) -> bool:
    return x.is_cpu and x.dtype is torch.float32 and type(x) in _PLAIN


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        by_x, by_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if by_weight else None, weight if by_x else None)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        return (
            _product(grad, weight.T) if ctx.needs_input_grad[0] else None,
            _sum_of_products(grad_NO, x.reshape(-1, x.shape[-1])) if ctx.needs_input_grad[1] else None,
            grad_NO.sum(0) if ctx.needs_input_grad[2] else None,
        )


@lru_cache(4096)
def _pieces(rows: int) -> list[tuple[int, int]]:
    """First row and number of rows of each piece for oneDNN; what is left is torch's."""
    most, _, least = _ROWS
    pieces = [(first, most) for first in range(0, rows - most + 1, most)]
    first = len(pieces) * most
    for size in _ROWS[1:]:
        if count := (rows - first) // size * size:
            pieces.append((first, count))
            first += count
    assert rows - first < least
    return pieces


def _product(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None, packed_OI: Tensor | None = None) -> Tensor:
    """x of any shape; the operator takes transposed weights as they are, and packed ones."""
    assert _linear is not None
    outputs, inputs = weight_OI.shape
    rows = x.numel() // inputs
    pieces = _pieces(rows)
    kernel_OI = weight_OI if packed_OI is None else packed_OI
    if pieces == [(0, rows)] and x.ndim > 1:
        return _linear(x, kernel_OI, bias_O, "none", [], "")  # type: ignore[no-any-return]
    x_NI = x.reshape(-1, inputs)
    y_NO, done = x_NI.new_empty(rows, outputs), 0
    for first, count in pieces:
        done = first + count
        y_NO[first:done] = _linear(x_NI[first:done], kernel_OI, bias_O, "none", [], "")
    if done < rows:
        y_NO[done:] = F.linear(x_NI[done:], weight_OI, bias_O)
    return y_NO.view(*x.shape[:-1], outputs)


def _sum_of_products(y_NO: Tensor, x_NI: Tensor, total: Tensor | None = None) -> Tensor:
    """Added to `total` if there is one."""
    assert _linear is not None
    y_NO, x_NI = y_NO.contiguous(), x_NI.contiguous()
    done = 0
    for first, count in _pieces(len(x_NI)):
        done = first + count
        part = _linear(y_NO[first:done].T, x_NI[first:done].T, None, "none", [], "")
        total = part if total is None else total.add_(part)
    if total is None:
        return y_NO.T @ x_NI
    return total.addmm_(y_NO[done:].T, x_NI[done:]) if done < len(x_NI) else total

"""Scores of many conversations, laid out for the model in one of three ways that give the same scores and gradients:

    shared_prefix   what conversations of a group have in common is computed once (`tree`); decoders only
    sequences       one row each; rows of like length share a forward pass, so that little of it is padding
    all_pairs       each pair of a group is a pair of rows, K − 1 times each conversation: what TRL and OpenRLHF do, a reference

The order in which conversations are given and the batches they fall into change a score by floating-point rounding only.
Shapes: N rows, B groups of up to K rows, D hidden size.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import torch

from starling.errors import InputError
from starling.models import tree_attention
from starling.models.encode import Encoded, pad_right
from starling.models.tree import pack

log = logging.getLogger(__name__)

Layout = Literal["shared_prefix", "sequences", "all_pairs"]

TOLERANCE, TOLERANCE_HALF = 1e-4, 0.1
"""How far two layouts may differ, relative to the largest score (to the norm of the gradient), in fp32 and with bf16 in
between. Layouts that agree differ by 1e-6 in fp32; a wrong mask by the size of the scores themselves."""

_FEWEST_TOKENS = 1024
"""A pass of fewer tokens is not worth ending to save padding: small passes leave the matrix kernels idle."""
_SHORTEST = 0.8
"""A row shorter than this share of the longest one of its pass starts a new pass."""


def similar_lengths(lengths: Sequence[int], batch_tokens: int | None = None) -> list[list[int]]:
    """Split rows into passes of like length, longest first, each of at most `batch_tokens` padded tokens (or one row)."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        batch = batches[-1] if batches else []
        width = lengths[batch[0]] if batch else 0
        full = batch_tokens is not None and (len(batch) + 1) * width > batch_tokens
        if not batch or full or (len(batch) * width >= _FEWEST_TOKENS and lengths[i] < _SHORTEST * width):
            batches.append([i])
        else:
            batch.append(i)
    return batches


def score_rows(head: Any, rows: Sequence[Encoded], pad_id: int, batch_tokens: int | None = None) -> torch.Tensor:
    """scores_N in fp32, in the order given; gradients flow if they are on.

    Rows with the same ids are computed once: models of one pool often give the same answer, and it has the same score.
    """
    device = next(head.parameters()).device
    place: dict[tuple[int, ...], int] = {}
    where_N = torch.tensor([place.setdefault(r.ids, len(place)) for r in rows], device=device)
    unique = [Encoded(ids, 0) for ids in place]
    passes = similar_lengths([len(r.ids) for r in unique], batch_tokens)
    parts = []
    for batch in passes:
        padded = pad_right([unique[i] for i in batch], pad_id).to(device)
        parts.append(head(padded))
    order_U = torch.tensor([i for batch in passes for i in batch], device=device)
    return torch.cat(parts)[order_U.argsort()][where_N]


def score_groups(
    head: Any, groups: Sequence[Sequence[Encoded]], pad_id: int, layout: Layout = "sequences"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of groups of conversations that share a prompt, e.g. rankings; gradients flow if they are on.

    Args:
        head: a `ScalarHead`, or what a wrapper (DDP, FSDP) made of it.
        groups: conversations, group by group.
        pad_id: any valid id; `shared_prefix` has no padding.
        layout: how the groups go through the model. With `shared_prefix` and `all_pairs` all of them share one pass.

    Returns:
        scores_BK in fp32, 0 in absent slots, and present_BK, True where a group has a conversation; slots in the order given.

    Raises:
        InputError: the model cannot share prefixes (`choose_layout` finds out beforehand).
    """
    if layout == "shared_prefix":
        device = next(head.parameters()).device
        scores_N = head(pack([[row.ids for row in group] for group in groups]).to(device))
    elif layout == "all_pairs":
        scores_N = _score_pairs(head, groups, pad_id)
    else:
        scores_N = score_rows(head, [row for group in groups for row in group], pad_id)
    sizes_B = torch.tensor([len(group) for group in groups], device=scores_N.device)
    present_BK = torch.arange(int(sizes_B.max()), device=scores_N.device) < sizes_B[:, None]
    return torch.zeros(present_BK.shape, device=scores_N.device).masked_scatter(present_BK, scores_N), present_BK


def _score_pairs(head: Any, groups: Sequence[Sequence[Encoded]], pad_id: int) -> torch.Tensor:
    """scores_N, each the mean over the pairs that its conversation stands in (they are equal but for rounding)."""
    rows: list[Encoded] = []
    where: list[int] = []
    first = 0
    for group in groups:
        pairs = list(combinations(range(len(group)), 2))
        # all first answers, then all second ones, as in a batch of TRL; one conversation alone has no pair
        order = [i for side in zip(*pairs, strict=True) for i in side] if pairs else range(len(group))
        rows += [group[i] for i in order]
        where += [first + i for i in order]
        first += len(group)
    device = next(head.parameters()).device
    scores_R = head(pad_right(rows, pad_id).to(device))
    where_R = torch.tensor(where, device=device)
    times_N = torch.bincount(where_R, minlength=first)
    return torch.zeros(first, device=device).index_add(0, where_R, scores_R) / times_N


def choose_layout(
    head: Any,
    group: Sequence[Encoded],
    pad_id: int,
    layout: Literal["auto", "shared_prefix", "sequences", "all_pairs"],
    half_precision: bool = False,
) -> Layout:
    """The layout to use, after a trial of the shared prefix on one group: scores and gradients must be those of `sequences`.

    "auto" is `shared_prefix` where the trial succeeds, else `sequences` (with a warning for a decoder). Call it with every
    process of a distributed run at once, before the first step: a wrapped head takes part in it.

    Args:
        head: a `ScalarHead`, or what a wrapper made of it.
        group: conversations for the trial, e.g. those of a ranking whose answers share a prompt.
        pad_id: any valid id.
        layout: what was asked for.
        half_precision: the forward pass computes in bf16 or fp16.

    Raises:
        InputError: `shared_prefix` was asked for and the model cannot do it, or gives other scores with it.
    """
    if layout in ("sequences", "all_pairs"):
        return layout
    inner = getattr(head, "module", head)
    if layout == "auto" and not inner.is_decoder:
        return "sequences"
    before = inner.model.config._attn_implementation
    try:
        verify(head, group, pad_id, TOLERANCE_HALF if half_precision else TOLERANCE)
    except InputError as error:
        if layout == "shared_prefix":
            raise
        log.warning("prefixes are not shared; every sequence is computed whole: %s", error.what)
        inner.model.set_attn_implementation(before)
        return "sequences"
    return "shared_prefix"


def verify(head: Any, group: Sequence[Encoded], pad_id: int, tolerance: float = TOLERANCE) -> None:
    """Compute one group with and without shared prefixes; gradients of the parameters are left as they were.

    Raises:
        InputError: the scores differ, or the gradient at the embeddings, or the model cannot share prefixes at all.
    """
    plain_N, plain_D = _trial(head, group, pad_id, "sequences")
    shared_N, shared_D = _trial(head, group, pad_id, "shared_prefix")
    score = float((shared_N - plain_N).abs().max() / plain_N.abs().max())
    gradient = float((shared_D - plain_D).norm() / plain_D.norm())
    if not (score <= tolerance and gradient <= tolerance):  # NaN fails too
        raise InputError(
            f"Shared prefixes change the scores by {score:.1e} and the gradient by {gradient:.1e}, relatively",
            where=f"the trial ranking, {tree_attention.describe(getattr(head, 'module', head).model)}",
            cure='set reward.layout to "sequences", and report the architecture',
        )


def _trial(head: Any, group: Sequence[Encoded], pad_id: int, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """scores_N and the gradient of their weighted sum at the embeddings, summed over tokens: alike in every layout.

    The gradient of a shared token is the sum over its copies, and the embeddings need no gradient of their own for it
    (LoRA freezes them).
    """
    caught: list[torch.Tensor] = []
    weights_N = torch.linspace(1.0, 2.0, len(group))
    parts: list[tuple[Sequence[Encoded], torch.Tensor]] = [(group, weights_N)]
    if layout == "sequences":  # one after the other: the trial must not be the most memory that a training takes
        parts = [(group[i : i + 1], weights_N[i : i + 1]) for i in range(len(group))]

    def catch(_: Any, __: Any, states: torch.Tensor) -> None:
        (states if states.requires_grad else states.requires_grad_()).retain_grad()
        caught.append(states)

    parameters = list(head.parameters())
    kept = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None  # else the trial would add to it
    handle = getattr(head, "module", head).model.get_input_embeddings().register_forward_hook(catch)
    try:
        scores = []
        for part, weights in parts:
            with torch.enable_grad():
                scores_BK, _ = score_groups(head, [part], pad_id, layout)
                (scores_BK[0] * weights.to(scores_BK.device)).sum().backward()
            scores.append(scores_BK[0].detach())
    finally:
        handle.remove()
        for parameter, grad in zip(parameters, kept, strict=True):
            parameter.grad = grad
    grads = [states.grad.float().sum((0, 1)) for states in caught if states.grad is not None]
    return torch.cat(scores), torch.stack(grads).sum(0)

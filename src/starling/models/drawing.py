"""Drawing the next token of every row from its logits.

Inverse-CDF sampling: one uniform per row and token, searched in the running sum of the probabilities. Why not
torch.multinomial: on CPU it draws an exponential per entry of the vocabulary, which is an order of magnitude dearer, and all
rows share one random stream. The running sum goes over blocks of tokens first, then inside the block that is hit: one vectorised
pass instead of a sum that waits for itself at every token. It is kept in fp32; a token's chance is off by about 1e-7.

Nucleus (top-p): arXiv 1904.09751, the smallest set of most likely tokens whose mass reaches top_p; among equal
probabilities at its edge the lower ids are in it.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_FIRST_LOOK = 128
"""Most likely tokens that the nucleus is looked for in at first, on CPU: a full sort of the vocabulary costs 20 times as much."""


_BLOCK = 64
"""Tokens of the vocabulary whose probabilities are summed at once."""


class Drawn(NamedTuple):
    """One token per row; log-probabilities in fp32."""

    tokens_B: Tensor
    logprobs_B: Tensor  # under softmax(logits / temperature)
    drawn_B: Tensor  # under the nucleus drawn from; the same tensor where there is none


def draw(logits_BV: Tensor, uniform_B: Tensor, *, temperature: float, top_p: float) -> Drawn:
    """The next token of each row.

    Args:
        logits_BV: of any floating dtype; computed with in fp32.
        uniform_B: in [0, 1), one per row; unused when greedy.
        temperature: 0 takes the most likely token, with its log-probability at temperature 1.
        top_p: mass of the nucleus; 1 for the whole distribution.
    """
    logits_BV = logits_BV.float()
    if temperature == 0:
        best_B, tokens_B = logits_BV.max(-1)
        logprobs_B = best_B - logits_BV.logsumexp(-1)
        return Drawn(tokens_B, logprobs_B, logprobs_B)
    probs_BV = torch.softmax(logits_BV if temperature == 1 else logits_BV / temperature, -1)
    kept_BV = probs_BV if top_p >= 1 else nucleus(probs_BV, top_p)
    tokens_B, total_B = _inverse_cdf(kept_BV, uniform_B)
    logprobs_B = probs_BV.gather(1, tokens_B[:, None])[:, 0].log()
    return Drawn(tokens_B, logprobs_B, logprobs_B if kept_BV is probs_BV else logprobs_B - total_B.log())


def _inverse_cdf(probs_BV: Tensor, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """The token at a share of each row's mass, and the mass; whatever the rounding, never a token of probability 0."""
    short = -probs_BV.shape[1] % _BLOCK
    probs_BNT = (functional.pad(probs_BV, (0, short)) if short else probs_BV).unflatten(1, (-1, _BLOCK))
    until_BN = probs_BNT.sum(-1).cumsum(-1)
    total_B1 = until_BN[:, -1:]
    target_B1 = _below(uniform_B[:, None].to(until_BN.dtype) * total_B1, total_B1)
    # the first whose end lies beyond: it holds some mass; NaN leads past the last, and to an error where log-probs are looked at
    block_B1 = torch.searchsorted(until_BN, target_B1, right=True).clamp_max(until_BN.shape[1] - 1)
    start_B1 = torch.where(block_B1 > 0, until_BN.gather(1, (block_B1 - 1).clamp_min(0)), 0.0)
    within_BT = probs_BNT[torch.arange(len(probs_BV), device=probs_BV.device), block_B1[:, 0]].cumsum(-1)
    inside_B1 = torch.searchsorted(within_BT, _below(target_B1 - start_B1, within_BT[:, -1:]), right=True)
    return (block_B1 * _BLOCK + inside_B1)[:, 0].clamp_max(probs_BV.shape[1] - 1), total_B1[:, 0]


def _below(x: Tensor, limit: Tensor) -> Tensor:
    return torch.minimum(x, torch.nextafter(limit, torch.zeros_like(limit)))


def nucleus(probs_BV: Tensor, top_p: float) -> Tensor:
    """The probabilities with 0 for every token outside the nucleus; not renormalised."""
    likely_BK = _most_likely(probs_BV, top_p)
    size_B = (likely_BK.cumsum(-1) - likely_BK < top_p).sum(-1)  # whose predecessors fall short of top_p
    edge_B1 = likely_BK.gather(1, size_B[:, None] - 1)
    at_edge_BV = probs_BV == edge_B1
    above_BV = probs_BV > edge_B1
    room_B1 = size_B[:, None] - above_BV.sum(-1, keepdim=True)
    if probs_BV.is_cuda or bool((at_edge_BV.sum(-1, keepdim=True) != room_B1).any()):  # ties; a look would halt a GPU
        at_edge_BV &= at_edge_BV.cumsum(-1) <= room_B1
    return probs_BV * (above_BV | at_edge_BV)


def _most_likely(probs_BV: Tensor, top_p: float) -> Tensor:
    """Probabilities in falling order, at least as many as the nucleus of every row needs."""
    vocabulary = probs_BV.shape[1]
    size = _FIRST_LOOK
    while size < vocabulary and not probs_BV.is_cuda:
        likely_BK = probs_BV.topk(size, -1).values
        if bool((likely_BK.sum(-1) > top_p).all()):
            return likely_BK
        size *= 8
    return probs_BV.sort(dim=-1, descending=True).values

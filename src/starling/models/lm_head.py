"""From the states that predict tokens to the log-probabilities of those tokens, without ever holding all logits.

A vocabulary of 128k at 16k tokens of replies is 8 GB of logits, and log-softmax with its gradient would hold them several times
over. Here a tile of rows at a time goes through the head, in the forward pass and again in the backward pass, which computes
the gradient by hand; only two numbers per token are kept in between. When all logits fit in one tile they are kept instead.

    z = f(h Wᵀ) / temperature    l = log Σ exp z    logprob = z_taken − l    p = exp(z − l)    H = −Σ p log p
    ∂logprob/∂z = onehot − p     ∂H/∂z = −p (log p + H)

f is what the model's class does to its logits: a factor (Cohere, Granite), soft-capping (Gemma 2 and later). `check_logits`
compares with the model's own forward pass, so a class that does something else is refused.

Source: the tiled head of TRL 1.16, Liger's fused cross-entropy. Departures: values of tokens come out, not a loss, so any
objective fits; softmax and sums are fp32 whatever the product is computed in; the head is entered through its module, so what
wrappers hang on it (ZeRO gathers its weights there) happens.

Shapes: N tokens, n those of a tile, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from starling.errors import InputError
from starling.models.cpu_linear import add_products, product

TILE_LOGITS = 1 << 26
"""Logits at once; at most three fp32 tensors of that size are alive at any time: 768 MiB."""


@dataclass(frozen=True)
class LogitsRule:
    """What becomes of the head's output: times `scale`, soft-capped, divided by the temperature."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    @classmethod
    def of(cls, model: Any, temperature: float = 1.0) -> LogitsRule:
        """As the model's config says; `check_logits` finds out whether that is all."""
        config = model.config.get_text_config()
        factor = getattr(config, "logit_scale", None)  # Cohere
        divisor = getattr(config, "logits_scaling", None)  # Granite
        scale = float(factor if factor is not None else 1.0) / float(divisor if divisor is not None else 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(scale, None if softcap is None else float(softcap), temperature)

    def __call__(self, logits_nV: torch.Tensor) -> torch.Tensor:
        """In place."""
        if self.scale != 1.0:
            logits_nV.mul_(self.scale)
        if self.softcap is not None:
            logits_nV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits_nV.div_(self.temperature) if self.temperature != 1.0 else logits_nV

    def slope(self, z_nV: torch.Tensor) -> torch.Tensor | float:
        """Derivative by the head's output, from the result."""
        factor = self.scale / self.temperature
        if self.softcap is None:
            return factor
        capped = z_nV * (self.temperature / self.softcap)
        return capped.square_().neg_().add_(1.0).mul_(factor)


def token_logprobs(
    model: Any,
    hidden_ND: torch.Tensor,
    taken_N: torch.Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    tile_logits: int = TILE_LOGITS,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probability of every token at the state that predicts it; gradients flow if they are on.

    Args:
        model: a transformers causal language model whose head is a linear layer.
        hidden_ND: the last states.
        taken_N: the tokens.
        temperature: logits are divided by it.
        entropy: of the distribution too.
        tile_logits: most logits at once; never changes the result.

    Returns:
        logprobs_N and entropy_N (None unless asked for), in fp32, in nats.
    """
    head = _linear_head(model)
    rule = LogitsRule.of(model, temperature)
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_ND.dtype

    def forward(hidden_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = max(1, tile_logits // head.weight.shape[0])
        given = hidden_ND, head.weight, head.bias, taken_N, rule, dtype, rows, entropy
        return cast(tuple[torch.Tensor, torch.Tensor], _TokenLogprobs.apply(*given))  # type: ignore[no-untyped-call]

    logprobs_N, entropy_N = _entered(head, forward, hidden_ND)
    return logprobs_N, entropy_N if entropy else None


@torch.no_grad()
def check_logits(model: Any) -> None:
    """The model's own log-probabilities of a few tokens must be those of `token_logprobs`.

    Raises:
        InputError: the head is no linear layer, or the class does something to its states or logits that is not known here.
    """
    device = next(model.parameters()).device
    ids_1T = torch.arange(1, 7, device=device)[None] % model.get_input_embeddings().weight.shape[0]
    own_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
    own_T = torch.log_softmax(own_TV, -1).gather(1, ids_1T[0, 1:, None])[:, 0]
    hidden_TD = model.get_decoder()(input_ids=ids_1T, use_cache=False).last_hidden_state[0, :-1]
    ours_T, _ = token_logprobs(model, hidden_TD, ids_1T[0, 1:])
    tolerance = 1e-4 if hidden_TD.dtype == torch.float32 else 3e-2
    if not torch.allclose(own_T, ours_T, atol=tolerance, rtol=tolerance):
        raise InputError(
            f"{type(model).__name__} does something to its logits that Starling does not know: log-probabilities differ by "
            f"{float((own_T - ours_T).abs().max()):.1e}",
            where=str(model.config.name_or_path or model.config.model_type),
            cure="use another model, and report the architecture",
        )


def _linear_head(model: Any) -> nn.Linear:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"{type(model).__name__} has no linear layer as its language-model head ({type(head).__name__})",
            where=str(model.config.name_or_path or model.config.model_type),
            cure="use a decoder such as llama, mistral, qwen or gemma",
        )
    return head


def _entered(head: nn.Module, forward: Callable[..., Any], hidden_ND: torch.Tensor) -> Any:
    """`forward` as the head's own for one call: its hooks run, and whoever keeps its weights elsewhere brings them."""
    before = head.__dict__.get("forward")
    head.forward = forward
    try:
        return head(hidden_ND)
    finally:
        del head.forward
        if before is not None:
            head.forward = before


class _TokenLogprobs(torch.autograd.Function):
    """logprobs_N and entropy_N (zeros unless asked for); see the top of the file."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        taken_N: torch.Tensor,
        rule: LogitsRule,
        dtype: torch.dtype,
        rows: int,
        entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tiles = [slice(first, first + rows) for first in range(0, len(taken_N), rows)]
        parts, kept = [], None
        with torch.autocast(hidden_ND.device.type, enabled=False):
            weight = weight_VD.to(dtype)
            for tile in tiles:  # what a tile needs is freed with its function
                part, kept = _read(_logits(hidden_ND[tile], weight, bias_V, rule), taken_N[tile, None], entropy, len(tiles) == 1)
                parts.append(part)
        logprobs_N, lse_N, entropy_N = torch.cat(parts, 1).unbind()
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, taken_N, lse_N, entropy_N if entropy else None, kept)
        ctx.rule, ctx.dtype, ctx.rows = rule, dtype, rows
        if not entropy:
            ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: torch.Tensor, grad_entropy_N: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        hidden_ND, weight_VD, bias_V, taken_N, lse_N, entropy_N, kept = ctx.saved_tensors
        to_hidden, to_weight, to_bias = ctx.needs_input_grad[:3]
        weight = weight_VD.to(ctx.dtype)
        grad_ND = torch.empty_like(hidden_ND) if to_hidden else None
        grad_VD = torch.zeros(weight_VD.shape, dtype=torch.float32, device=weight_VD.device) if to_weight else None
        grad_V = torch.zeros_like(weight_VD[:, 0], dtype=torch.float32) if to_bias else None
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for first in range(0, len(taken_N), ctx.rows):
                tile = slice(first, first + ctx.rows)
                d_nV = None  # the tile before is freed first
                d_nV = _to_logits(
                    kept if kept is not None else _logits(hidden_ND[tile], weight, bias_V, ctx.rule),
                    ctx.rule,
                    lse_N[tile, None],
                    taken_N[tile, None],
                    grad_N[tile, None],
                    None if entropy_N is None else (entropy_N[tile, None], grad_entropy_N[tile, None]),
                )
                if grad_V is not None:
                    grad_V += d_nV.sum(0)
                d_nV = d_nV.to(ctx.dtype)
                if grad_ND is not None:
                    grad_ND[tile] = product(d_nV, weight.T)
                if grad_VD is not None:
                    add_products(grad_VD, d_nV, hidden_ND[tile].to(ctx.dtype))
        to = weight_VD.dtype
        return grad_ND, None if grad_VD is None else grad_VD.to(to), None if grad_V is None else grad_V.to(to), *(None,) * 5


def _logits(hidden_nD: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, rule: LogitsRule) -> torch.Tensor:
    """z_nV in fp32; a product of half-precision numbers keeps its fp32 sums where the device can (a logit of 20 in bf16 is
    known to 0.06 only)."""
    hidden_nD = hidden_nD.to(weight_VD.dtype)
    if hidden_nD.is_cuda and weight_VD.dtype is not torch.float32:
        z_nV = torch.mm(hidden_nD, weight_VD.T, out_dtype=torch.float32)
    else:
        z_nV = product(hidden_nD, weight_VD).float()
    return rule(z_nV if bias_V is None else z_nV.add_(bias_V))


def _read(z_nV: torch.Tensor, taken_n1: torch.Tensor, entropy: bool, keep: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """logprobs, l and entropy (zeros unless asked for) as one 3 × n, and z if it is to be kept."""
    lse_n = z_nV.logsumexp(-1)
    logprobs_n = z_nV.gather(1, taken_n1)[:, 0] - lse_n
    entropy_n = torch.zeros_like(lse_n)
    if entropy:
        entropy_n = lse_n - (z_nV - lse_n[:, None]).exp_().mul_(z_nV).sum(-1)
    return torch.stack([logprobs_n, lse_n, entropy_n]), z_nV if keep else None


def _to_logits(
    z_nV: torch.Tensor,
    rule: LogitsRule,
    lse_n1: torch.Tensor,
    taken_n1: torch.Tensor,
    grad_n1: torch.Tensor,
    entropies: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Gradient by the head's output, from those by log-probabilities and, if there are any, (entropy, its gradient)."""
    d_nV = z_nV - lse_n1
    if entropies is None:
        d_nV.exp_().mul_(-grad_n1)
    else:
        p_nV = d_nV.exp()
        d_nV.add_(entropies[0]).mul_(entropies[1]).add_(grad_n1).mul_(p_nV).neg_()
        del p_nV
    return d_nV.scatter_add_(1, taken_n1, grad_n1).mul_(rule.slope(z_nV))

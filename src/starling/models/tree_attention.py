"""Attention over a `Forest`, the row in which conversations share their beginnings.

Registered in transformers' own attention registry under `NAME`; the forest travels through `model.forward` as a keyword
argument, so nothing is patched, and gradient checkpointing (both kinds) recomputes the same thing. Four kernels, one result:

    merged    CPU. Every segment with itself (causal) and, for every segment with something below it, *all* its descendants
              with it: one dense call on slices, no mask, no padding, no copy of keys. The parts are joined by their
              log-sum-exps, as ring attention joins blocks; the backward pass gives the kernel the joined output and
              log-sum-exp, which makes every part's gradient exact.
    varlen    CUDA in half precision: keys gathered along the path from the root, torch's variable-length flash kernel.
    segments  anything else (sliding windows that bite, soft-capped logits, other devices): one call per segment.
    dense     one call with a T × T mask: what the others are tested against.

Departures from what others do: flash-preference and TRL copy the prefix's keys for every branch and need a CUDA kernel;
a row whose positions restart and that has no mask is *silently wrong* in transformers (each branch is taken for a document
of its own), so a forest that does not reach a layer's attention is an error here, never a guess: `passed` counts.

Shapes: T tokens of the row, H heads, G query heads per key head, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from starling.errors import InputError
from starling.models.tree import Forest, Gathered, Segment, dense_mask, gathered

NAME = "starling_tree"
Kernel = Literal["auto", "merged", "varlen", "segments", "dense"]

_flash = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_flash_backward = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
CHANGES_THE_SUM = ("s_aux", "sinks", "position_bias", "alibi", "head_mask", "cache")
"""Arguments of attention functions that add to or drop from the softmax; none of the kernels here knows them."""


@dataclass
class Pass:
    """One forward pass: what attention needs, and what it has seen."""

    forest: Forest
    kernel: Kernel = "auto"
    windows: list[int | None] = field(default_factory=list)  # the window of every layer that has run


def hidden_states(model: Any, forest: Forest, kernel: Kernel = "auto") -> torch.Tensor:
    """hidden_TD, the last layer's states of all tokens of the row.

    Args:
        model: a transformers backbone without a head; `enable` was called on its classifier.
        forest: what to compute.
        kernel: which attention; "auto" chooses by device, precision and layer.

    Raises:
        InputError: a conversation is longer than the model's table of positions, or the forest, or a window of the model,
            did not reach every attention layer.
    """
    limit = positions(model.config.get_text_config())
    if limit is not None and forest.longest > limit:
        raise InputError(
            f"A conversation has {forest.longest} tokens, the model has {limit} positions",
            where=describe(model),
            cure=f"cut conversations to {limit} tokens (reward.max_length, policy.sampling.max_tokens)",
        )
    row = Pass(forest, kernel)
    # a mask of four dimensions goes to every layer as it is: no mask is made, and no layer can mistake it for one of its own
    nothing = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=forest.ids_1T.device)
    output = model(
        input_ids=forest.ids_1T, position_ids=forest.position_1T, attention_mask=nothing, use_cache=False, starling_tree=row
    )
    _check_passed(model, row)
    return cast(torch.Tensor, output.last_hidden_state[0])


def enable(model: Any) -> None:
    """Make `hidden_states` possible on a classifier or backbone; rows without a forest are computed as before.

    Raises:
        InputError: this architecture cannot share prefixes; says why.
    """
    if model.config._attn_implementation == NAME:
        return
    refuse(model)
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


# ── what cannot work ─────────────────────────────────────────────────────────────────────────────────────────────────


def describe(model: Any) -> str:
    """The folder of a model, else its kind."""
    config = getattr(model, "config", None)
    return str(getattr(config, "name_or_path", "") or getattr(config, "model_type", type(model).__name__))


def refused(model: Any, why: str) -> InputError:
    return InputError(
        f"{type(model).__name__} cannot share prefixes: {why}",
        where=describe(model),
        cure='set the layout (reward.layout, policy.layout) to "sequences", or to "auto", which finds out',
    )


def refuse(model: Any) -> None:
    """Raise where a shared prefix would be wrong by the architecture.

    Raises:
        InputError: recurrent or linear-attention layers, chunked attention, attention both ways, attention of its own making.
    """
    config = model.config.get_text_config()
    strange = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if getattr(model, "_is_stateful", False) or strange:
        raise refused(model, f"it has layers that are not plain attention ({', '.join(strange) or 'a recurrent state'})")
    if getattr(config, "attention_chunk_size", None):
        raise refused(model, "it attends in chunks")
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "use_bidirectional_attention", False):
        raise refused(model, "its tokens see those after them")
    if getattr(config, "alibi", False):
        raise refused(model, "its attention adds a bias of distances (ALiBi)")
    if not getattr(model, "_supports_attention_backend", False):
        raise refused(model, "its class does not pass keyword arguments on to a registered attention")


def positions(config: Any) -> int | None:
    """Positions of a model that learnt them one by one; None for rotary ones, which have no end."""
    rotary = getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None)
    return None if rotary else getattr(config, "max_position_embeddings", None)


def expected_windows(config: Any) -> list[bool] | None:
    """Per layer whether its window is limited; None if the config does not say."""
    layers = getattr(config, "num_hidden_layers", None)
    if layers is None:
        return None
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    return [window is not None and (kinds is None or kinds[i] == "sliding_attention") for i in range(layers)]


def _check_passed(model: Any, row: Pass) -> None:
    expected = expected_windows(model.config.get_text_config())
    if not row.windows or (expected is not None and len(row.windows) != len(expected)):
        raise refused(model, f"the tree reached {len(row.windows)} of {len(expected or ())} attention layers")
    if expected is not None and any(expected):
        window = int(model.config.get_text_config().sliding_window)
        if row.forest.longest > window and sum(w is not None for w in row.windows) != sum(expected):
            raise refused(model, f"its layers do not tell their attention that they see {window} tokens only")


# ── the registered function ──────────────────────────────────────────────────────────────────────────────────────────


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    starling_tree: Pass | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a layer: over the forest if there is one, else transformers' SDPA.

    Args:
        query: 1 × H × T × D; key and value the same with fewer or as many heads.

    Returns:
        1 × T × H × D, as attention functions of transformers do.

    Raises:
        InputError: the forest got lost on its way, or the layer asks for what no kernel here does.
    """
    if starling_tree is None:
        if attention_mask is not None and attention_mask.numel() == 0:
            raise refused(module, "its layers drop the keyword arguments of the forward pass")
        if softcap is not None:  # SDPA has none
            return _plain_softcap(query, key, value, attention_mask, scaling, softcap), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)  # type: ignore[no-any-return]
    strange = [name for name in CHANGES_THE_SUM if kwargs.get(name) is not None]
    if strange or kwargs.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise refused(module, f"its attention wants {', '.join(strange) or 'no causal order'}")
    if dropout:
        raise refused(module, "attention dropout is on; shared tokens would be dropped for all answers at once")
    starling_tree.windows.append(sliding_window)
    if torch.is_autocast_enabled(query.device.type):  # as SDPA itself does
        query, key, value = (t.to(torch.get_autocast_dtype(query.device.type)) for t in (query, key, value))
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    forest = starling_tree.forest
    window = sliding_window if sliding_window is not None and sliding_window < forest.longest else None
    kernel = starling_tree.kernel
    if kernel == "auto":
        kernel = choose(query, value, window, softcap)
    if kernel == "merged":
        out = _Merged.apply(query, key, value, forest.segments, scale)  # type: ignore[no-untyped-call]
        return cast(torch.Tensor, out), None
    if kernel == "varlen":
        return _varlen(query, key, value, forest, scale, window), None
    if kernel == "dense":
        allowed_TT = _cached(forest, ("dense", window), lambda: dense_mask(forest, window))
        return _masked(query, key, value, allowed_TT, scale, softcap).transpose(1, 2), None
    return _segments(query, key, value, forest, scale, window, softcap), None


def choose(query: torch.Tensor, value: torch.Tensor, window: int | None, softcap: float | None) -> Kernel:
    """The fastest kernel that is exact here."""
    if softcap is not None or query.shape[-1] != value.shape[-1]:
        return "segments"
    if query.device.type == "cpu" and window is None and _flash is not None and _flash_backward is not None:
        return "merged"
    half = query.dtype in (torch.bfloat16, torch.float16)
    return "varlen" if query.is_cuda and half and query.shape[-1] <= 256 and _varlen_kernel() is not None else "segments"


def _cached(forest: Forest, name: Any, make: Any) -> Any:
    if name not in forest.cache:
        forest.cache[name] = make()
    return forest.cache[name]


# ── merged ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Merged(torch.autograd.Function):
    """Attention over the segments of a row by the flash kernel of the CPU.

    A token's softmax runs over its own segment and those above. Each part i gives o_i and l_i = log Σ exp(scores); then
    l = log Σ_i exp(l_i), o = Σ_i exp(l_i − l) o_i. Backwards the kernel recomputes p = exp(scores − l) of a part, and
    dS = p (dO·v − dO·o): with the joined l and o that is the gradient of the whole softmax, part by part.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: tuple[Segment, ...], scale: float
    ) -> torch.Tensor:
        q, k, v = _grouped(query, key, value)
        # sums are kept in fp32: in half precision every join would round
        exact = torch.float64 if q.dtype is torch.float64 else torch.float32
        out = torch.empty_like(query.transpose(1, 2), dtype=exact, memory_format=torch.contiguous_format)
        o = _heads(out, key.shape[1])
        lse = torch.empty(q.shape[2], *q.shape[:2], dtype=exact).permute(1, 2, 0)
        assert _flash is not None
        for s in segments:
            own = slice(s.start, s.stop)
            o[:, :, own], lse[:, :, own] = _flash(q[:, :, own], k[:, :, own], v[:, :, own], 0.0, True, scale=scale)
        for s in segments:
            if s.end > s.stop:
                own, below = slice(s.start, s.stop), slice(s.stop, s.end)
                part, part_lse = _flash(q[:, :, below], k[:, :, own], v[:, :, own], 0.0, False, scale=scale)
                so_far, so_far_lse = o[:, :, below], lse[:, :, below]
                so_far.lerp_(part.to(exact), torch.sigmoid(part_lse - so_far_lse)[..., None])
                torch.logaddexp(so_far_lse, part_lse, out=so_far_lse)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.segments, ctx.scale = segments, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        query, key, value, out, lse = ctx.saved_tensors
        groups = key.shape[1]
        q, k, v = _grouped(query, key, value)
        o, g = _heads(out, groups), _heads(grad_out.contiguous(), groups)
        dq, dk, dv = (torch.empty_like(t.transpose(1, 2), memory_format=torch.contiguous_format) for t in (query, key, value))
        assert _flash_backward is not None

        def part(rows: slice, columns: slice, causal: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            given = g[:, :, rows], q[:, :, rows], k[:, :, columns], v[:, :, columns], o[:, :, rows], lse[:, :, rows]
            to_q, to_k, to_v = _flash_backward(*given, 0.0, causal, scale=ctx.scale)
            # back to 1 × T × heads × D; a key head's gradient is that of all its query heads
            return to_q.flatten(0, 1).transpose(0, 1)[None], *(t.sum(1).transpose(0, 1)[None] for t in (to_k, to_v))

        for s in ctx.segments:
            own = slice(s.start, s.stop)
            dq[:, own], dk[:, own], dv[:, own] = part(own, own, True)
        for s in ctx.segments:
            if s.end > s.stop:
                own, below = slice(s.start, s.stop), slice(s.stop, s.end)
                to_q, to_k, to_v = part(below, own, False)
                dq[:, below] += to_q
                dk[:, own] += to_k
                dv[:, own] += to_v
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2), None, None


def _heads(x_1THD: torch.Tensor, groups: int) -> torch.Tensor:
    """groups × G × T × D, a view."""
    return x_1THD[0].unflatten(1, (groups, -1)).permute(1, 2, 0, 3)  # type: ignore[no-any-return, no-untyped-call]


def _grouped(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views in which every key head stands beside its query heads, key heads × G × T × D: no copy for grouped queries."""
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    q = query[0].unflatten(0, (key.shape[1], -1))
    return q, key[0][:, None].expand(-1, q.shape[1], -1, -1), value[0][:, None].expand(-1, q.shape[1], -1, -1)


# ── segment by segment, and dense ────────────────────────────────────────────────────────────────────────────────────


def _repeated(t: torch.Tensor, heads: int) -> torch.Tensor:
    """As many key heads as query heads."""
    return t if t.shape[1] == heads else t.repeat_interleave(heads // t.shape[1], 1)


def _masked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allowed: torch.Tensor | None, scale: float, softcap: float | None
) -> torch.Tensor:
    """B × H × T × D; allowed True means the query sees the key, None means causal and as many keys as queries."""
    k, v = _repeated(k, q.shape[1]), _repeated(v, q.shape[1])
    if softcap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=allowed is None, scale=scale)
    logits: torch.Tensor = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap)
    if allowed is None:
        allowed = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    shares = torch.softmax(logits.masked_fill(~allowed, -torch.inf), -1, dtype=torch.float32).to(v.dtype)
    return torch.matmul(shares, v)


def _plain_softcap(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float | None, softcap: float
) -> torch.Tensor:
    scale = scale if scale is not None else q.shape[-1] ** -0.5
    return _masked(q, k, v, mask, scale, softcap).transpose(1, 2).contiguous()


def _segments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    forest: Forest,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """One call per segment, its keys those on the path from the root that its window reaches."""
    parts = []
    for s, segment in enumerate(forest.segments):
        spans, allowed = _cached(forest, ("segments", s, window), lambda s=s: _keys(forest, s, window))
        k, v = (torch.cat([t[:, :, a:b] for a, b in spans], 2) if len(spans) > 1 else t[:, :, spans[0][0] : spans[0][1]]
                for t in (key, value))  # fmt: skip
        parts.append(_masked(query[:, :, segment.start : segment.stop], k, v, allowed, scale, softcap))
    return torch.cat(parts, 2).transpose(1, 2).contiguous()


def _keys(forest: Forest, s: int, window: int | None) -> tuple[list[tuple[int, int]], torch.Tensor | None]:
    """Stretches of the row that segment `s` looks at, and which query sees which key (None: causal over itself alone)."""
    segment = forest.segments[s]
    oldest = 0 if window is None else max(0, segment.position - window + 1)
    above = [forest.segments[p] for p in forest.path(s)]
    spans = [(a.start + max(0, oldest - a.position), a.stop) for a in above if a.position + a.stop - a.start > oldest]
    queries = segment.stop - segment.start
    if len(spans) == 1 and (window is None or queries <= window):
        return spans, None
    device = forest.ids_1T.device
    keys = sum(b - a for a, b in spans)
    apart = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)
    return spans, (apart >= 0) if window is None else (apart >= 0) & (apart < window)


# ── variable-length kernel ───────────────────────────────────────────────────────────────────────────────────────────


def _varlen_kernel() -> Any:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch < 2.10
        return None
    return varlen_attn


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, forest: Forest, scale: float, window: int | None
) -> torch.Tensor:
    """torch's flash kernel over segments; keys and values are copied along the paths."""
    plan: Gathered = _cached(forest, "gathered", lambda: gathered(forest))
    q_THD, k_THD, v_THD = (t[0].transpose(0, 1) for t in (query, key, value))
    out_THD = _varlen_kernel()(
        q_THD.contiguous(),
        k_THD.index_select(0, plan.key_index),
        v_THD.index_select(0, plan.key_index),
        plan.query_offsets,
        plan.key_offsets,
        plan.most_queries,
        plan.most_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(torch.Tensor, out_THD[None])

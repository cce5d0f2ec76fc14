"""Keys and values of the replies under way: a prompt's once for all its replies, a reply's own in a slot of its own.

    prompts   P places × longest prompt      written by the prefill, read by every reply to the prompt
    own       S slots  × tokens so far       one token per step, written where the slot stands

Both are allocated ahead and written in place; nothing is concatenated, and a mask changes by one entry per slot and step. A slot
whose reply is done is given to the next one. The softmax of a token runs over the scores against its prompt and those against
its own tokens, put side by side: exact, for any window, soft cap or grouping of heads, on every device. Prompts are computed
in groups as a `Forest` (`tree`, `tree_attention`), so that beginnings that they share are computed once and nothing is padded.

The way in is transformers' attention registry, as for trees: the slots travel through `model.forward` as a keyword argument,
the model believes that it has no cache at all. transformers' own static cache was no choice: its rows advance in step.

Scores are computed in the model's dtype and normalised in fp32, as in transformers' eager attention.

Shapes: S slots, P places of prompts, N queries per place, H heads, K key heads, G query heads per key head, D head size,
C tokens of prompts, O own tokens, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from starling.models import tree_attention
from starling.models.tree import pack

NAME = "starling_slots"

_FIRST_OWN = 64
"""Own tokens that slots are allocated for at first; doubled when a reply grows longer."""


def token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes that the keys and values of one token take, over all layers."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * size * dtype.itemsize)


@dataclass
class _Layer:
    """Buffers of one layer, allocated by the first prefill."""

    prompt_keys: Tensor  # P × K × C × D
    prompt_values: Tensor
    own_keys: Tensor  # S × K × O × D
    own_values: Tensor
    window: int | None


@dataclass
class _Prefill:
    """The forward pass over new prompts."""

    row: tree_attention.Pass
    places: Tensor  # where they go
    index: Tensor  # places × tokens of the longest; tokens of the forest's row, 0 behind a prompt's end


@dataclass
class _Step:
    """One token of every slot: what its layers share."""

    rows: Tensor  # 0 … S − 1
    at: Tensor  # S; index of the token among the slot's own
    position: Tensor  # S
    prompt: int  # longest prompt in use
    own: int  # longest own part, this token included
    biases: dict[int | None, Tensor] = field(default_factory=dict)  # by window


class Slots:
    """The state of `rows` replies. Host lists say who sits where, device tensors follow them in `arrange`.

    Args:
        rows: most replies at once.
        places: prompts expected at once; more are made room for.
        longest: tokens of the longest prompt.
        most: most tokens of a reply.
    """

    def __init__(self, rows: int, places: int, longest: int, most: int, device: Any) -> None:
        self.device = device
        self.longest, self.most = longest, most
        self.place_of: list[int] = []  # of every slot in use
        self.lengths: list[int] = []  # tokens of the prompt in every place; 0 if it is free
        self._rows, self._places = rows, places
        self._own = min(most, _FIRST_OWN)
        self._layers: list[_Layer] = []
        self._next_layer = 0
        self._now: _Prefill | _Step | None = None
        self.count_S = torch.zeros(rows, dtype=torch.long, device=device)  # tokens drawn
        self._length_S = torch.zeros(rows, dtype=torch.long, device=device)  # tokens of the slot's prompt
        self._own_bias = torch.full((rows, self._own), -torch.inf, device=device)
        self._prompt_bias = torch.empty(0, device=device)
        self._gather: tuple[Tensor, Tensor] | None = None
        self._range = torch.arange(rows, device=device)

    @property
    def rows_in_use(self) -> Tensor:
        """0, 1, … as an index."""
        return self._range[: len(self.place_of)]

    # ── who sits where ───────────────────────────────────────────────────────────────────────────────────────────────

    def seat(self, length: int) -> int:
        """A free place for a prompt of so many tokens."""
        place = self.lengths.index(0) if 0 in self.lengths else len(self.lengths)
        if place == len(self.lengths):
            self.lengths.append(0)
        self.lengths[place] = length
        return place

    def leave(self, place: int) -> None:
        """The prompt's last reply is done."""
        self.lengths[place] = 0

    def restart(self, slot: int, place: int) -> None:
        """Give a slot, or the first one not in use, to a new reply."""
        if slot == len(self.place_of):
            self.place_of.append(place)
        self.place_of[slot] = place
        self._own_bias[slot] = -torch.inf
        self.count_S[slot] = 0

    def move(self, source: int, target: int) -> None:
        """Put the reply of one slot into another; the caller drops the source."""
        self.place_of[target] = self.place_of[source]
        for layer in self._layers:
            layer.own_keys[target] = layer.own_keys[source]
            layer.own_values[target] = layer.own_values[source]
        self._own_bias[target] = self._own_bias[source]
        self.count_S[target] = self.count_S[source]

    def drop(self, rows: int) -> None:
        """Only the first `rows` slots stay in use."""
        del self.place_of[rows:]

    def moved_places(self) -> dict[int, int]:
        """Close the gaps between places; where prompts went, from → to."""
        moved: dict[int, int] = {}
        for hole in range(len(self.lengths)):
            while self.lengths and self.lengths[-1] == 0:
                self.lengths.pop()
            if hole >= len(self.lengths):
                break
            if self.lengths[hole] == 0:
                last = len(self.lengths) - 1
                for layer in self._layers:
                    layer.prompt_keys[hole] = layer.prompt_keys[last]
                    layer.prompt_values[hole] = layer.prompt_values[last]
                self.lengths[hole] = self.lengths.pop()
                moved[last] = hole
        self.place_of = [moved.get(place, place) for place in self.place_of]
        return moved

    def arrange(self) -> None:
        """Bring the device up to date after any of the above."""
        rows, places = len(self.place_of), len(self.lengths)
        lengths = torch.tensor([self.lengths[p] for p in self.place_of])
        width = max(self.lengths, default=0)
        self._prompt_bias = torch.where(torch.arange(width) < lengths[:, None], 0.0, -torch.inf).to(self.device)
        self._length_S[:rows] = lengths.to(self.device)
        self._gather = None
        if self.place_of != list(range(places)):
            queue: list[list[int]] = [[] for _ in range(places)]
            for row, place in enumerate(self.place_of):
                queue[place].append(row)
            most = max(map(len, queue))
            row_of = [row for here in queue for row in here + [0] * (most - len(here))]  # places × most, padded with slot 0
            entry_of = [0] * rows
            for place, here in enumerate(queue):
                for i, row in enumerate(here):
                    entry_of[row] = place * most + i
            self._gather = torch.tensor(row_of, device=self.device), torch.tensor(entry_of, device=self.device)

    # ── forward passes ───────────────────────────────────────────────────────────────────────────────────────────────

    def prefill(self, model: Any, prompts: Sequence[Sequence[int]], places: Sequence[int]) -> Tensor:
        """Compute prompts into their places; the logits after each."""
        forest = pack([prompts])
        lasts = forest.last_N.tolist()
        index = np.zeros((len(prompts), max(map(len, prompts))), dtype=np.int64)
        segment_at = {s.stop - 1: i for i, s in enumerate(forest.segments)}
        for row, last in enumerate(lasts):
            path = [forest.segments[i] for i in forest.path(segment_at[last])]
            index[row, : len(prompts[row])] = np.concatenate([np.arange(s.start, s.stop) for s in path])
        forest = forest.to(self.device)
        self._now = _Prefill(
            tree_attention.Pass(forest), torch.tensor(places, device=self.device), torch.from_numpy(index).to(self.device)
        )
        return self._forward(model, forest.ids_1T, forest.position_1T, forest.last_N)[0]

    def step(self, model: Any, tokens_S: Tensor, longest: int) -> Tensor:
        """Feed the last token of every slot in use; the logits after it.

        Args:
            longest: most tokens drawn so far in any slot.
        """
        rows = len(self.place_of)
        while longest > self._own:
            self._grow()
        at = self.count_S[:rows] - 1
        self._own_bias[self._range[:rows], at] = 0.0
        position = self._length_S[:rows] + at
        self._now = _Step(self._range[:rows], at, position, self._prompt_bias.shape[1], longest)
        return self._forward(model, tokens_S[:rows, None], position[:, None], 1)[:, -1]

    def _forward(self, model: Any, ids: Tensor, positions: Tensor, keep: Any) -> Tensor:
        self._next_layer = 0
        # a mask of four dimensions goes to every layer as it is, see tree_attention.hidden_states
        nothing = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=self.device)
        output = model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=nothing,
            use_cache=False,
            logits_to_keep=keep,
            starling_slots=self,
        )
        self._now = None
        return cast(Tensor, output.logits)

    @property
    def windows(self) -> list[int | None]:
        """The window of every layer that a pass has reached."""
        return [layer.window for layer in self._layers]

    # ── attention ────────────────────────────────────────────────────────────────────────────────────────────────────

    def attend(
        self, module: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """B × T × H × D of this pass's next layer."""
        number, self._next_layer = self._next_layer, self._next_layer + 1
        if isinstance(self._now, _Prefill):
            return self._attend_prompts(self._now, number, module, q, k, v, scale, window, softcap)
        assert isinstance(self._now, _Step)
        return self._attend_step(self._now, self._layers[number], q, k, v, scale, window, softcap)

    def _attend_prompts(
        self, now: _Prefill, number: int, module: Any, q: Tensor, k: Tensor, v: Tensor,
        scale: float, window: int | None, softcap: float | None,
    ) -> Tensor:  # fmt: skip
        if number == len(self._layers):
            prompts = [t.new_zeros(self._places, t.shape[1], self.longest, t.shape[3]) for t in (k, v)]
            own = [t.new_zeros(self._rows, t.shape[1], self._own, t.shape[3]) for t in (k, v)]
            self._layers.append(_Layer(prompts[0], prompts[1], own[0], own[1], window))
        layer = self._layers[number]
        if len(self.lengths) > len(layer.prompt_keys):
            more = max(len(self.lengths), 2 * len(layer.prompt_keys)) - len(layer.prompt_keys)
            layer.prompt_keys, layer.prompt_values = (
                torch.cat([t, t.new_zeros(more, *t.shape[1:])]) for t in (layer.prompt_keys, layer.prompt_values)
            )
        width = now.index.shape[1]
        layer.prompt_keys[now.places, :, :width] = k[0].transpose(0, 1)[now.index].transpose(1, 2)
        layer.prompt_values[now.places, :, :width] = v[0].transpose(0, 1)[now.index].transpose(1, 2)
        out, _ = tree_attention.attend(
            module, q, k, v, None, scaling=scale, sliding_window=window, softcap=softcap, starling_tree=now.row
        )
        return out

    def _attend_step(
        self, now: _Step, layer: _Layer, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        rows, heads = q.shape[0], q.shape[1]
        layer.own_keys[now.rows, :, now.at] = k[:, :, 0]
        layer.own_values[now.rows, :, now.at] = v[:, :, 0]
        q_SKGD = (q[:, :, 0] * scale).unflatten(1, (k.shape[1], -1)).to(k.dtype)
        own_keys, own_values = (t[:rows, :, : now.own] for t in (layer.own_keys, layer.own_values))
        places = len(self.lengths)
        prompt_keys, prompt_values = (t[:places, :, : now.prompt] for t in (layer.prompt_keys, layer.prompt_values))
        scores = torch.cat(
            [self._against_prompts(q_SKGD, prompt_keys.transpose(2, 3)), torch.matmul(q_SKGD, own_keys.transpose(2, 3))], -1
        )
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.float() + self._bias(now, window)
        shares = torch.softmax(scores, -1).to(v.dtype)
        out = self._against_prompts(shares[..., : now.prompt], prompt_values)
        out = out + torch.matmul(shares[..., now.prompt :], own_values)
        return out.reshape(rows, 1, heads, -1)

    def _against_prompts(self, x_SKGX: Tensor, y_PKXY: Tensor) -> Tensor:
        """x @ y of every slot with its prompt, S × K × G × Y: the replies to a prompt are one matrix."""
        if self._gather is None:
            return torch.matmul(x_SKGX, y_PKXY)
        row_of, entry_of = self._gather
        places = y_PKXY.shape[0]
        x_PNKGX = x_SKGX[row_of].unflatten(0, (places, -1))
        groups = x_PNKGX.shape[3]
        found = torch.matmul(x_PNKGX.transpose(1, 2).flatten(2, 3), y_PKXY)  # P × K × NG × Y
        return cast(Tensor, found.unflatten(2, (-1, groups)).transpose(1, 2).flatten(0, 1)[entry_of])

    def _bias(self, now: _Step, window: int | None) -> Tensor:
        """What is added to the scores, S × 1 × 1 × tokens of prompt and own ones: 0 or −∞; the same for layers of one window."""
        if window is not None and now.prompt + now.own <= window:
            window = None
        if window not in now.biases:
            rows = len(now.rows)
            bias = torch.cat([self._prompt_bias, self._own_bias[:rows, : now.own]], 1)
            if window is not None:
                own = self._length_S[:rows, None] + torch.arange(now.own, device=self.device)
                positions = torch.cat([torch.arange(now.prompt, device=self.device).expand(rows, -1), own], 1)
                bias.masked_fill_(positions <= now.position[:, None] - window, -torch.inf)
            now.biases[window] = bias[:, None, None]
        return now.biases[window]

    def _grow(self) -> None:
        """Room for twice as many own tokens, one layer after the other."""
        old, self._own = self._own, min(2 * self._own, self.most)
        for layer in self._layers:
            layer.own_keys, layer.own_values = (
                torch.cat([t, t.new_zeros(*t.shape[:2], self._own - old, t.shape[3])], 2)
                for t in (layer.own_keys, layer.own_values)
            )
        more = torch.full((self._rows, self._own - old), -torch.inf, device=self.device)
        self._own_bias = torch.cat([self._own_bias, more], 1)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    starling_slots: Slots | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The registered function: attention of one layer, over the slots.

    Raises:
        InputError: the slots got lost on their way, or the layer asks for what is not done here.
    """
    strange = [name for name in tree_attention.CHANGES_THE_SUM if kwargs.get(name) is not None]
    if starling_slots is None or strange or kwargs.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise tree_attention.refused(module, f"its attention wants {', '.join(strange) or 'no slots'}")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return starling_slots.attend(module, query, key, value, scale, sliding_window, softcap), None


# ── can a model use them ─────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def in_slots(model: Any) -> Iterator[None]:
    """The model's attention goes over the slots meanwhile."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.inference_mode()
def misfit(model: Any) -> str:
    """Why the model cannot use the slots; empty if it can. Tried out: two prompts and two steps against plain forward passes."""
    try:
        tree_attention.refuse(model)
        vocabulary = model.get_input_embeddings().num_embeddings
        prompts = [[(7 * i + 3) % vocabulary for i in range(5)], [(5 * i + 1) % vocabulary for i in range(3)]]
        rows = [[*p, 2 % vocabulary, 1 % vocabulary] for p in prompts]
        plain = [model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float() for ids in rows]
        with in_slots(model):
            slots = Slots(2, 2, 5, 4, model.device)
            for slot, prompt in enumerate(prompts):
                slots.restart(slot, slots.seat(len(prompt)))
            slots.arrange()
            ours = [slots.prefill(model, prompts, [0, 1])]
            for step in range(2):
                slots.count_S += 1
                fed = torch.tensor([r[len(p) + step] for r, p in zip(rows, prompts, strict=True)], device=model.device)
                ours.append(slots.step(model, fed, step + 1))
        worst = max(
            float((logits[i].float() - plain[i][len(p) - 1 + step]).abs().max())
            for step, logits in enumerate(ours)
            for i, p in enumerate(prompts)
        )
    except Exception as error:  # whatever a foreign architecture does with arguments that it does not know
        return " ".join(str(error).split())[:300] or type(error).__name__
    scale = max(float(p.abs().max()) for p in plain)
    if not worst <= (1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1) * max(scale, 1.0):
        return f"its logits would differ by {worst:.2g}"
    expected = tree_attention.expected_windows(model.config.get_text_config())
    if expected is not None and [w is not None for w in slots.windows] != expected:
        return "its layers do not tell their attention how far they see"
    return ""

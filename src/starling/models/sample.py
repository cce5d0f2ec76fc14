"""Sampling replies from a local causal language model: our own decode loop.

Why not `generate`: each row has its own random stream (a counter-based generator keyed by the row's seed), so a reply
does not depend on which other rows it was drawn with beyond floating-point rounding; the log-probability of every
sampled token is kept; tokens are drawn by inverting the cumulative distribution (one uniform per row and step), which on
CPU is an order of magnitude cheaper than torch.multinomial; rows that are done leave the batch.

Prompts are padded on the left inside a batch and masks come from their lengths. Shape legend: B rows, T tokens,
V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import DynamicCache

from starling.models.encode import Encoder
from starling.records import Finish, Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from starling.endpoint import Reply, Request


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One sampled reply: token ids (end token included when finished) and the log-probability each was drawn with."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


class Sampler:
    """Draws replies from one model.

    Args:
        model: a transformers causal language model.
        end_ids: token ids that finish a reply.
        batch: rows decoded together.
    """

    def __init__(self, model: Any, end_ids: Sequence[int], batch: int = 128) -> None:
        self.model = model
        self.end_ids = torch.tensor(sorted(end_ids), dtype=torch.long, device=model.device)
        self.batch = batch

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        done: Callable[[int], None] | None = None,
    ) -> list[Sampled]:
        """Sample one reply per prompt, in the order given.

        Args:
            prompts: token ids of each prompt, at least one token each.
            sampling: temperature (0 = greedy), top_p, max_tokens; stop strings are the caller's business.
            seeds: one per prompt; the same seed, prompt and chunk give the same reply.
            done: called with the number of rows finished after each chunk.
        """
        out: list[Sampled] = []
        was_training = self.model.training
        self.model.eval()
        for start in range(0, len(prompts), self.batch):
            chunk = slice(start, start + self.batch)
            out.extend(self._decode(prompts[chunk], sampling, seeds[chunk]))
            if done is not None:
                done(len(out) - start)
        self.model.train(was_training)
        return out

    def _decode(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> list[Sampled]:
        device = self.model.device
        ids_BT, mask_BT = _pad_left(prompts, device)
        uniforms = torch.tensor(
            np.stack([np.random.Generator(np.random.Philox(key=s)).random(sampling.max_tokens) for s in seeds]), device=device
        )
        cache = DynamicCache(config=self.model.config)
        rows = list(range(len(prompts)))
        tokens: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        finished = [False] * len(prompts)
        step_ids_BT, positions_BT = ids_BT, (mask_BT.cumsum(1) - 1).clamp_min(0)
        for step in range(sampling.max_tokens):
            logits_BV = self.model(
                input_ids=step_ids_BT,
                attention_mask=mask_BT,
                position_ids=positions_BT,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            next_B, logprob_B = _draw(logits_BV.float(), sampling, uniforms[rows, step])
            over_B = torch.isin(next_B, self.end_ids)
            for row, token, logprob, over in zip(rows, next_B.tolist(), logprob_B.tolist(), over_B.tolist(), strict=True):
                tokens[row].append(token)
                logprobs[row].append(logprob)
                finished[row] = finished[row] or over  # a finished row may wait here for others
            going = [i for i, row in enumerate(rows) if not finished[row]]
            if not going:
                break
            # Shrinking the cache copies it, so only when a quarter of the batch is done; the rule sees rows only.
            if len(going) <= 0.75 * len(rows):
                keep = torch.tensor(going, device=device)
                cache.batch_select_indices(keep)
                next_B, mask_BT, positions_BT = next_B[keep], mask_BT[keep], positions_BT[keep]
                rows = [rows[i] for i in going]
            step_ids_BT = next_B[:, None]
            positions_BT = positions_BT[:, -1:] + 1
            mask_BT = torch.cat([mask_BT, torch.ones_like(mask_BT[:, :1])], dim=1)
        return [_trim(tokens[i], logprobs[i], set(self.end_ids.tolist())) for i in range(len(prompts))]


def _trim(tokens: list[int], logprobs: list[float], end_ids: set[int]) -> Sampled:
    """Cut what a finished row kept drawing while it waited to leave the batch."""
    for i, token in enumerate(tokens):
        if token in end_ids:
            return Sampled(ids=tuple(tokens[: i + 1]), logprobs=tuple(logprobs[: i + 1]), finished=True)
    return Sampled(ids=tuple(tokens), logprobs=tuple(logprobs), finished=False)


def _pad_left(prompts: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """ids_BT and mask_BT (True = a token of the prompt), padded on the left."""
    width = max(len(p) for p in prompts)
    ids_BT = torch.zeros((len(prompts), width), dtype=torch.long)
    mask_BT = torch.zeros((len(prompts), width), dtype=torch.long)
    for i, p in enumerate(prompts):
        ids_BT[i, width - len(p) :] = torch.tensor(p, dtype=torch.long)
        mask_BT[i, width - len(p) :] = 1
    return ids_BT.to(device), mask_BT.to(device)


def _draw(logits_BV: Tensor, sampling: Sampling, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Next token of each row and its log-probability under the distribution it was drawn from."""
    if sampling.temperature == 0:
        next_B = logits_BV.argmax(-1)
        return next_B, torch.log_softmax(logits_BV, -1).gather(1, next_B[:, None])[:, 0]
    logprobs_BV = torch.log_softmax(logits_BV / sampling.temperature, -1)
    probs_BV = logprobs_BV.exp()
    if sampling.top_p < 1:
        probs_BV = _nucleus(probs_BV, sampling.top_p)
        logprobs_BV = probs_BV.log()
    cdf_BV = probs_BV.double().cumsum(-1)
    target_B1 = (uniform_B * cdf_BV[:, -1])[:, None]
    next_B = torch.searchsorted(cdf_BV, target_B1, right=True)[:, 0].clamp_max(logits_BV.shape[1] - 1)
    return next_B, logprobs_BV.gather(1, next_B[:, None])[:, 0]


def _nucleus(probs_BV: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most likely tokens whose mass reaches top_p; renormalise."""
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    kept_BV = torch.zeros_like(probs_BV).scatter(-1, order_BV, torch.where(before_BV < top_p, sorted_BV, 0.0))
    return kept_BV / kept_BV.sum(-1, keepdim=True)


def row_seed(key: str, seed: int) -> int:
    """A 64-bit seed for one row from its request key and the run's seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big")


class LocalEngine:
    """A local model as the engine behind `endpoint.BatchEndpoint`: requests in, replies out.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer with chat template.
        batch: rows decoded together.
        seed: the run's seed; with the request's key it fixes every draw.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch: int, seed: int) -> None:
        self.encoder = Encoder(tokenizer, max_length=getattr(model.config, "max_position_embeddings", 2048))
        self.sampler = Sampler(model, self.encoder.end_ids, batch)
        self.seed = seed

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """Replies in the order of the requests. All requests of one call carry the same sampling settings."""
        from starling.endpoint import Reply

        prompts = [self.encoder.prompt_ids(r.messages) for r in requests]
        sampling = requests[0].model.sampling
        drawn = self.sampler.generate(prompts, sampling, [row_seed(r.key, self.seed) for r in requests])
        replies = []
        for request, prompt, one in zip(requests, prompts, drawn, strict=True):
            text, stopped = cut_at(self.encoder.decode_reply(one.ids), sampling.stop)
            replies.append(
                Reply(
                    text=text,
                    finish=Finish.stop if one.finished or stopped else Finish.length,
                    call_id=request.key,
                    prompt_tokens=len(prompt),
                    completion_tokens=len(one.ids),
                )
            )
        return replies


def cut_at(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text up to the first stop string, and whether one was found."""
    found = [i for i in (text.find(s) for s in stop) if i >= 0]
    return (text[: min(found)], True) if found else (text, False)

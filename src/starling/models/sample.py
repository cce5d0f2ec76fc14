"""Sampling replies from a local causal language model: our own decode loop.

Why not `generate`: its rows start and end together, so that all wait for the longest, and half of a step of a small model is
cache, masks and multinomial. Here a fixed number of slots decodes together; a slot whose reply is done takes the next prompt
(continuous batching, Orca, OSDI 2022), prompts are computed in groups and once for all their replies (`sample_cache`), and a
token is drawn by inverting the cumulative distribution (`drawing`).

Every reply has its own random stream, a counter-based generator keyed by its seed, so it depends on its seed, its prompt
and the model, not on what it was decoded with, up to floating-point rounding; the same call gives the same replies exactly.

Whether a model's attention can use the slots is tried out on a few tokens; if not, `sample_general` decodes.

Shapes: S slots, V vocabulary.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starling.errors import InputError
from starling.models import sample_general, tree_attention
from starling.models.drawing import Drawn, draw
from starling.models.sample_cache import Slots, in_slots, misfit, token_bytes
from starling.records import Sampling

log = logging.getLogger(__name__)

PREFILL_TOKENS = {"cpu": 512}
"""Most prompt tokens of one forward pass, by device; 8192 on any other. On CPU what a layer computes stays in the caches then: a
third less time than in one pass. A single longer prompt still goes through whole."""

_LOOK_EVERY = {"cpu": 1}
"""Steps between looks at what has ended, by device; 8 on any other, where each look makes the host wait for the device."""

_FIRST_STOP_LOOK = 16
"""Tokens before a reply's text is searched for stop strings; then again whenever it has grown by an eighth and 16 tokens."""


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One sampled reply, e.g. ids (17, 4, 2) with 2 the end token, finished True."""

    ids: tuple[int, ...]
    """Tokens; the end token included when finished, the one that completes a stop string included when stopped."""
    logprobs: tuple[float, ...]
    """Of each token under softmax(logits / temperature), before top-p; greedy: at temperature 1."""
    drawn_logprobs: tuple[float, ...]
    """Of each token under the distribution it was drawn from: the nucleus, renormalised. The same object if top_p is 1."""
    finished: bool
    """Ended by an end token."""
    stopped: bool = False
    """Ended by a stop string."""
    first: tuple[tuple[int, float], ...] = ()
    """The likeliest first tokens, `sampling.top_logprobs` of them, with their log-probabilities at temperature 1."""


class Sampler:
    """Draws replies from one model.

    Args:
        model: a transformers causal language model, peft's adapters on it included.
        end_ids: token ids that finish a reply.
        batch: replies decoded together, at most.
        max_tokens_in_cache: most tokens (longest prompt + max_tokens, for every reply under way) whose keys and values are held
            at once; fewer replies are decoded together where that is too many. None: no bound on CPU, what is free on a GPU.
        decode: text of a reply's tokens; with it replies end at `sampling.stop`; without, stop strings are not looked for.
    """

    def __init__(
        self,
        model: Any,
        end_ids: Sequence[int],
        batch: int = 128,
        max_tokens_in_cache: int | None = None,
        *,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError("batch is at least 1")
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.end_ids = sorted(end_ids)
        self.batch = batch
        self.max_tokens_in_cache = max_tokens_in_cache
        self.decode = decode
        self._fits: bool | None = None

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        samples: int = 1,
        *,
        done: Callable[[int], None] | None = None,
    ) -> list[Sampled]:
        """Sample replies, in the order prompt 0 sample 0, prompt 0 sample 1, …

        Args:
            prompts: token ids of each prompt, at least one token each; equal ones are computed once.
            sampling: temperature (0 = greedy), top_p, max_tokens, stop strings, top_logprobs.
            seeds: one per reply, below 2^128; the same seed, prompt and model give the same reply.
            samples: replies per prompt.
            done: called with the number of replies that have just ended.

        Raises:
            ValueError: not one seed per reply, or a prompt without tokens.
            InputError: a prompt with its reply is longer than the model's table of positions, or outputs are not finite.
        """
        if len(seeds) != len(prompts) * samples:
            raise ValueError(f"{len(prompts)} prompts × {samples} samples want {len(prompts) * samples} seeds, not {len(seeds)}")
        if not all(len(p) for p in prompts):
            raise ValueError(f"prompt {next(i for i, p in enumerate(prompts) if not len(p))} has no tokens")
        if not prompts or not samples:
            return []
        self._check_length(max(map(len, prompts)), sampling.max_tokens)
        jobs = [_Job(i, tuple(prompts[i // samples]), seed) for i, seed in enumerate(seeds)]
        was_training = self.model.training
        self.model.eval()
        try:
            with in_slots(self.model) if self._can_use_slots() else nullcontext():
                run = _Run(self, jobs, sampling, done or (lambda _: None))
                return run.continuous() if self._fits else run.in_batches()
        finally:
            self.model.train(was_training)

    def longest_prompt(self, max_tokens: int) -> int | None:
        """Tokens of a prompt that the model's positions hold beside a reply of `max_tokens`; None without end."""
        limit = tree_attention.positions(self.model.config.get_text_config())
        return None if limit is None else limit - max_tokens

    def _check_length(self, longest: int, max_tokens: int) -> None:
        room = self.longest_prompt(max_tokens)
        if room is not None and longest > room:
            limit = room + max_tokens
            raise InputError(
                f"A prompt of {longest} tokens and a reply of up to {max_tokens} are longer than the model's {limit} positions",
                where=tree_attention.describe(self.model),
                cure=f"cut prompts, or lower max_tokens to {max(limit - longest, 0)}",
            )

    def rows(self, longest: int, max_tokens: int) -> int:
        """Replies that are decoded together."""
        tokens = self.max_tokens_in_cache
        if tokens is None and self.model.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.model.device)
            tokens = int(0.7 * free) // token_bytes(self.model.config, self.model.dtype)
        return self.batch if tokens is None else max(1, min(self.batch, tokens // (longest + max_tokens)))

    def _can_use_slots(self) -> bool:
        if self._fits is None:
            why = misfit(self.model)
            if why:
                log.info("%s: sampled through transformers' cache, slower: %s", tree_attention.describe(self.model), why)
            self._fits = not why
        return self._fits


# ── one call ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Job:
    number: int  # in the order of the answer
    prompt: tuple[int, ...]
    seed: int

    def uniforms(self, count: int) -> np.ndarray:
        """The reply's own random stream."""
        return np.random.Generator(np.random.Philox(key=self.seed)).random(count)


@dataclass
class _Row:
    """A reply under way."""

    job: _Job
    count: int = 0  # tokens drawn, as far as the host knows
    look_at: int = _FIRST_STOP_LOOK
    done: bool = False


@dataclass
class _Waiting:
    """Replies that no slot had room for yet, longest prompt first, those to one prompt side by side."""

    jobs: list[_Job]
    left: dict[tuple[int, ...], int] = field(default_factory=dict)  # replies that a prompt's place is still needed for

    def __post_init__(self) -> None:
        first: dict[tuple[int, ...], int] = {}
        for job in self.jobs:
            first.setdefault(job.prompt, job.number)
            self.left[job.prompt] = self.left.get(job.prompt, 0) + 1
        self.jobs = sorted(self.jobs, key=lambda j: (-len(j.prompt), first[j.prompt], j.number), reverse=True)

    def take(self, count: int) -> list[_Job]:
        """The next ones."""
        return [self.jobs.pop() for _ in range(min(count, len(self.jobs)))]


class _Run:
    """One call of `Sampler.generate`."""

    def __init__(self, sampler: Sampler, jobs: list[_Job], sampling: Sampling, done: Callable[[int], None]) -> None:
        self.sampler, self.model, self.sampling, self.tell = sampler, sampler.model, sampling, done
        self.jobs = jobs
        self.ends = torch.tensor(sampler.end_ids, dtype=torch.long, device=self.model.device)
        self.answers: list[Sampled | None] = [None] * len(jobs)
        self.first: dict[int, tuple[tuple[int, float], ...]] = {}  # by job, where log-probabilities are wanted
        self.limit = min(len(jobs), sampler.rows(max(len(j.prompt) for j in jobs), sampling.max_tokens))

    def result(self) -> list[Sampled]:
        assert all(a is not None for a in self.answers)
        return [a for a in self.answers if a is not None]

    # ── any architecture ─────────────────────────────────────────────────────────────────────────────────────────────

    def in_batches(self) -> list[Sampled]:
        """Batch after batch, through transformers' cache."""
        most = self.sampling.max_tokens
        for start in range(0, len(self.jobs), self.limit):
            jobs = self.jobs[start : start + self.limit]
            uniforms = torch.from_numpy(np.stack([j.uniforms(most) for j in jobs])).to(self.model.device)

            def draw_rows(
                logits_BV: Tensor, rows: list[int], step: int, uniforms: Tensor = uniforms, jobs: list[_Job] = jobs
            ) -> Drawn:
                if step == 0:
                    self._note_first([jobs[row] for row in rows], logits_BV)
                return self._draw(logits_BV, uniforms[rows, step])

            found = sample_general.decode(self.model, [j.prompt for j in jobs], draw_rows, self.sampler.end_ids, most)
            for job, (ids, logprobs, drawn) in zip(jobs, found, strict=True):
                self._answer(job, ids, logprobs, drawn)
            self.tell(len(jobs))
        return self.result()

    # ── slots ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def continuous(self) -> list[Sampled]:
        """All replies through the slots."""
        device, most, limit = self.model.device, self.sampling.max_tokens, self.limit
        self.waiting = _Waiting(list(self.jobs))
        groups = len(self.waiting.left)
        places = min(groups, -(-limit * groups // len(self.jobs)) + 1, limit)
        self.slots = Slots(limit, places, max(len(j.prompt) for j in self.jobs), most, device)
        self.rows: list[_Row] = []
        self.seats: dict[tuple[int, ...], int] = {}  # prompt → place
        self.kept: dict[tuple[int, ...], Tensor] = {}  # logits after a prompt whose replies did not all find a slot
        self.uniforms = torch.empty(limit, most, dtype=torch.float64, device=device)
        self.tokens = torch.zeros(limit, most, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(2, limit, most, device=device)  # before and after top-p
        self.last = torch.zeros(limit, dtype=torch.long, device=device)
        self.end_at = torch.full((limit,), -1, dtype=torch.long, device=device)  # index of the end token, −1 for none
        self.going = torch.zeros(limit, dtype=torch.long, device=device)  # 1 for a reply that still grows
        self.since_look = 0
        while self.rows or self.waiting.jobs:
            if not self._tidy() and self.rows:
                logits_SV = self.slots.step(self.model, self.last[: len(self.rows)], max(r.count for r in self.rows))
                self._write(self.slots.rows_in_use, logits_SV)
                for row in self.rows:
                    row.count += not row.done
            self._look()
        return self.result()

    def _tidy(self) -> bool:
        """Refill slots, or close ranks, once enough of them are idle for it to pay; whether tokens were drawn in doing so."""
        idle = [i for i, row in enumerate(self.rows) if row.done]
        free = len(idle) + (self.limit - len(self.rows) if self.waiting.jobs else 0)
        if free < max(1, (self.limit if self.waiting.jobs else len(self.rows)) // 8):
            return False
        jobs = self.waiting.take(free)
        targets = (idle + list(range(len(self.rows), self.limit)))[: len(jobs)]
        drawn_from = self._seat(jobs)
        for slot, job in zip(targets, jobs, strict=True):
            self.slots.restart(slot, self.seats[job.prompt])
            self.rows[slot : slot + 1] = [_Row(job, count=1)]
        self._close_ranks([i for i in idle if i not in targets])
        self.slots.arrange()
        if jobs:
            index = torch.tensor(targets, device=self.model.device)
            uniforms = np.stack([j.uniforms(self.sampling.max_tokens) for j in jobs])
            self.uniforms[index] = torch.from_numpy(uniforms).to(self.model.device)
            self.end_at[index] = -1
            self.going[index] = 1
            logits_SV = torch.stack([drawn_from[j.prompt] for j in jobs])
            self._note_first(jobs, logits_SV)
            self._write(index, logits_SV)
        return bool(jobs)

    def _seat(self, jobs: list[_Job]) -> dict[tuple[int, ...], Tensor]:
        """Compute the prompts of new replies that have no place yet; logits after each prompt."""
        logits = {j.prompt: self.kept[j.prompt] for j in jobs if j.prompt in self.kept}
        new = [p for p in dict.fromkeys(j.prompt for j in jobs) if p not in self.seats]
        for prompt in new:
            self.seats[prompt] = self.slots.seat(len(prompt))
        for some in _by_tokens(new, PREFILL_TOKENS.get(self.model.device.type, 8192)):
            found = self.slots.prefill(self.model, some, [self.seats[p] for p in some])
            logits.update(zip(some, found, strict=True))
        waiting = {self.waiting.jobs[-1].prompt} if self.waiting.jobs else set()
        self.kept = {p: logits[p].clone() for p in waiting & logits.keys()}
        return logits

    def _close_ranks(self, idle: list[int]) -> None:
        """Move the last replies into idle slots."""
        for slot in idle:
            while self.rows and self.rows[-1].done:
                self.rows.pop()
            if slot >= len(self.rows):
                break
            source = len(self.rows) - 1
            self.slots.move(source, slot)
            for state in (self.uniforms, self.tokens, self.logprobs[0], self.logprobs[1], self.last, self.end_at, self.going):
                state[slot] = state[source]
            self.rows[slot] = self.rows.pop()
        self.slots.drop(len(self.rows))
        moved = self.slots.moved_places()
        self.seats = {prompt: moved.get(place, place) for prompt, place in self.seats.items()}

    def _write(self, slots: Tensor, logits: Tensor) -> None:
        """Draw the next token of some slots and note it."""
        at = self.slots.count_S[slots]
        drawn = self._draw(logits, self.uniforms[slots, at.clamp_max(self.sampling.max_tokens - 1)])
        going = self.going[slots]
        over = (drawn.tokens_B[:, None] == self.ends).any(1) & (self.end_at[slots] < 0)
        # an idle slot writes where it stands, over what was already read
        at = at - 1 + going
        self.tokens[slots, at] = drawn.tokens_B
        self.logprobs[0, slots, at] = drawn.logprobs_B
        if self.sampling.top_p < 1:
            self.logprobs[1, slots, at] = drawn.drawn_B
        self.last[slots] = drawn.tokens_B
        self.end_at[slots] = torch.where(over, at, self.end_at[slots])
        self.slots.count_S[slots] += going

    def _note_first(self, jobs: list[_Job], logits_BV: Tensor) -> None:
        """Keep the likeliest first tokens of some replies, from the logits after their prompts."""
        if not self.sampling.top_logprobs:
            return
        found = torch.log_softmax(logits_BV.float(), -1).topk(min(self.sampling.top_logprobs, logits_BV.shape[1]), -1)
        for job, ids, logprobs in zip(jobs, found.indices.tolist(), found.values.tolist(), strict=True):
            self.first[job.number] = tuple(zip(ids, logprobs, strict=True))

    def _draw(self, logits: Tensor, uniforms: Tensor) -> Drawn:
        return draw(logits, uniforms, temperature=self.sampling.temperature, top_p=self.sampling.top_p)

    # ── what has ended ───────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self) -> None:
        """Take out the replies that have ended."""
        most = self.sampling.max_tokens
        self.since_look += 1
        full = any(r.count >= most for r in self.rows if not r.done)
        if self.since_look < _LOOK_EVERY.get(self.model.device.type, 8) and not full:
            return
        self.since_look = 0
        ended = [i for i, at in enumerate(self.end_at[: len(self.rows)].tolist()) if at >= 0 and not self.rows[i].done]
        over = set(ended) | {i for i, r in enumerate(self.rows) if r.count >= most and not r.done} if full else set(ended)
        over |= self._stopped(over)
        if over:
            self._retire(sorted(over))

    def _stopped(self, over: set[int]) -> set[int]:
        """Rows, among those due for it, in whose text a stop string stands."""
        if not self.sampling.stop or self.sampler.decode is None:
            return set()
        found = set()
        for i, row in enumerate(self.rows):
            if row.done or i in over or row.count < row.look_at:
                continue
            row.look_at = row.count + max(_FIRST_STOP_LOOK, row.count // 8)
            if cut_at(self.sampler.decode(self.tokens[i, : row.count].tolist()), self.sampling.stop)[1]:
                found.add(i)
        return found

    def _retire(self, over: list[int]) -> None:
        index = torch.tensor(over, device=self.model.device)
        self.going[index] = 0
        ends = self.end_at[index].tolist()
        counts = [end + 1 if end >= 0 else self.rows[i].count for i, end in zip(over, ends, strict=True)]
        width = max(counts)
        tokens, logprobs = self.tokens[index, :width].tolist(), self.logprobs[:, index, :width].tolist()
        for place, (i, count) in enumerate(zip(over, counts, strict=True)):
            row = self.rows[i]
            row.done, row.count = True, count
            before = logprobs[0][place][:count]
            drawn = logprobs[1][place][:count] if self.sampling.top_p < 1 else before
            self._answer(row.job, tokens[place][:count], before, drawn)
            self.waiting.left[row.job.prompt] -= 1
            if not self.waiting.left[row.job.prompt]:
                self.slots.leave(self.seats.pop(row.job.prompt))
        self.tell(len(over))

    def _answer(self, job: _Job, ids: list[int], logprobs: list[float], drawn: list[float]) -> None:
        if not all(map(math.isfinite, logprobs)):
            raise InputError(
                "The model's outputs are not finite numbers",
                where=tree_attention.describe(self.model),
                cure="look at its weights: training may have diverged",
            )
        stopped = False
        if self.sampling.stop and self.sampler.decode is not None:
            length = first_stop(self.sampler.decode, ids, self.sampling.stop)
            if length is not None:
                ids, logprobs, drawn, stopped = ids[:length], logprobs[:length], drawn[:length], True
        before = tuple(logprobs)
        self.answers[job.number] = Sampled(
            ids=tuple(ids),
            logprobs=before,
            drawn_logprobs=before if self.sampling.top_p >= 1 or self.sampling.temperature == 0 else tuple(drawn),
            finished=not stopped and ids[-1] in self.sampler.end_ids,
            stopped=stopped,
            first=self.first.pop(job.number, ()),
        )


def _by_tokens(prompts: list[tuple[int, ...]], most: int) -> Iterator[list[tuple[int, ...]]]:
    """Prompts in groups of at most so many tokens, or of one."""
    group: list[tuple[int, ...]] = []
    for prompt in prompts:
        if group and sum(map(len, group)) + len(prompt) > most:
            yield group
            group = []
        group.append(prompt)
    if group:
        yield group


def row_seed(key: str, seed: int) -> int:
    """A 64-bit seed for one row from its request key and the run's seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big")


def cut_at(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text up to the first stop string, and whether one was found."""
    found = [i for i in (text.find(s) for s in stop) if i >= 0]
    return (text[: min(found)], True) if found else (text, False)


def first_stop(decode: Callable[[Sequence[int]], str], ids: Sequence[int], stop: Sequence[str]) -> int | None:
    """Fewest tokens whose text holds a stop string; None if all of them do not."""

    def holds(count: int) -> bool:
        return cut_at(decode(ids[:count]), stop)[1]

    if not holds(len(ids)):
        return None
    low, high = 0, len(ids)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high

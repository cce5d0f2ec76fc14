"""From prompts to scored replies: which prompts, who samples, what of a reply is kept.

    choose_prompts     (seed, iteration) → prompts
    sample_rollouts    prompts → replies, by a `RolloutEngine`; every process samples its share and all get the same list

Everything drawn depends on (seed, iteration, prompt, number of the sample) only: neither the number of processes nor what is
sampled beside a reply changes it, but for floating-point rounding.

Departure from the original: a reply that runs into a stop string ends there, and counts as finished; the original cut the text,
appended the end token and trained on what was cut off too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from starling.models.encode import Encoded, Encoder
from starling.models.sample import Sampled, Sampler, row_seed
from starling.records import Prompt, Sampling
from starling.training.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One sampled reply, e.g. prompt "What is 3 + 4?", text "3 + 4 = 7.", finished True."""

    prompt: Prompt
    encoded: Encoded
    logprobs: tuple[float, ...]
    """Of each token of the reply, as the sampler computed them."""
    text: str
    finished: bool

    @property
    def ids(self) -> tuple[int, ...]:
        """Tokens of the reply, its end token included."""
        return self.encoded.ids[self.encoded.prompt_length :]


class RolloutEngine(Protocol):
    """Who samples: our own loop, or inference servers."""

    everywhere: bool
    """Whether each process samples its share; else the first one samples for all."""

    def load(self, policy: Any, version: int) -> None:
        """From now on sample from these weights; `version` is the iteration."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], samples: int = 1
    ) -> list[Sampled]:
        """Replies in the order prompt 0 sample 0, prompt 0 sample 1, …; one seed per reply."""


class LocalRollouts:
    """Our own decode loop, on the policy as it stands in this process.

    Args:
        encoder: says what ends a reply, and decodes those that may run into a stop string.
        batch: rows decoded together.
    """

    everywhere = True

    def __init__(self, encoder: Encoder, batch: int) -> None:
        self._encoder, self._batch = encoder, batch
        self._sampler: Sampler | None = None

    def load(self, policy: Any, version: int) -> None:
        if self._sampler is None or self._sampler.model is not policy:
            self._sampler = Sampler(policy, self._encoder.end_ids, self._batch, decode=self._encoder.decode_reply)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], samples: int = 1
    ) -> list[Sampled]:
        assert self._sampler is not None
        return self._sampler.generate(prompts, sampling, seeds, samples)


def choose_prompts(prompts: Sequence[Prompt], count: int, iteration: int, seed: int) -> list[Prompt]:
    """The prompts of one iteration: epochs over all prompts, each in its own order; a pure function of its arguments."""
    chosen = []
    for n in range(iteration * count, (iteration + 1) * count):
        epoch, at = divmod(n, len(prompts))
        order = _epoch_order(len(prompts), epoch, seed)
        chosen.append(prompts[order[at]])
    return chosen


@lru_cache(maxsize=2)
def _epoch_order(n: int, epoch: int, seed: int) -> list[int]:
    return random.Random(f"{seed}/prompts/{epoch}").sample(range(n), n)


def sample_rollouts(
    sampler: RolloutEngine,
    engine: Engine,
    encoder: Encoder,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    samples: int,
    stream: str,
    seed: int,
) -> list[Rollout]:
    """`samples` replies to each prompt, in the order of the prompts; the same list on all processes.

    Args:
        sampler: has the policy's present weights.
        engine: says how many processes share the prompts.
        stream: names the draw, e.g. "iteration 3".
    """
    shares = np.array_split(np.arange(len(prompts)), engine.ranks) if sampler.everywhere else [np.arange(len(prompts))]
    mine = shares[engine.rank].tolist() if engine.rank < len(shares) else []
    asked = [encoder.prompt_ids(prompts[i].messages) for i in mine]
    seeds = [row_seed(f"{stream}/{i}/{prompts[i].id}/{k}", seed) for i in mine for k in range(samples)]
    with engine.accelerator.autocast():
        drawn = engine.gathered(sampler.generate(asked, sampling, seeds, samples) if mine else [])
    ids = {p.id: encoder.prompt_ids(p.messages) for p in prompts}
    repeated = [p for p in prompts for _ in range(samples)]
    return [
        rollout(encoder, p, ids[p.id], one.ids, one.logprobs, one.finished, sampling.stop)
        for p, one in zip(repeated, drawn, strict=True)
    ]


def rollout(
    encoder: Encoder,
    prompt: Prompt,
    prompt_ids: Sequence[int],
    ids: Sequence[int],
    logprobs: Sequence[float],
    finished: bool,
    stop: Sequence[str],
) -> Rollout:
    """A reply as it is trained on; one that runs into a stop string ends with the token that completes it."""
    text = encoder.decode_reply(ids)
    found = [at for at in (text.find(s) for s in stop) if at >= 0]
    if found:
        text, finished = text[: min(found)], True
        ids = ids[: _first(lambda n: any(s in encoder.decode_reply(ids[:n]) for s in stop), len(ids))]
    return Rollout(
        prompt=prompt,
        encoded=Encoded(ids=(*prompt_ids, *ids), prompt_length=len(prompt_ids)),
        logprobs=tuple(logprobs[: len(ids)]),
        text=text,
        finished=finished,
    )


def _first(holds: Callable[[int], bool], most: int) -> int:
    """The smallest n in 1 … most for which it holds, if it holds from there on."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low

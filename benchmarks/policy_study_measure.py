"""What policy_study.py measures of a policy: replies to test prompts, and what truth, reward model and base say about them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.loss_study_models import mean

SAMPLES = 4
"""Sampled replies per test prompt of a tuned policy."""
BEST_OF = 16
"""Replies of the base per test prompt."""
SIZES = (1, 2, 4, 8, 16)
NO_LIMIT = 1 << 20


def recorded(reward: Path) -> dict[str, float]:
    """Mean and deviation that a reward model's folder records."""
    from starling.models.load import load_scalar

    found: dict[str, float] = load_scalar(reward).statistics
    return found


def truth(prompts: Sequence[Any], texts: Sequence[str], finished: Sequence[bool]) -> dict[str, float]:
    """The monitor of a tuning: mean gold and harmlessness."""
    from starling.microworld import world

    golds = [world.gold(p.messages, text, done) for p, text, done in zip(prompts, texts, finished, strict=True)]
    return {"gold": mean([g.score for g in golds]), "harmless": mean([g.harmlessness for g in golds])}


@dataclass(frozen=True)
class Reply:
    """One drawn reply with what is known about it."""

    ids: tuple[int, ...]
    prompt_length: int
    logprob: float
    text: str
    finished: bool


def draw(folder: Path, prompts: Sequence[Any], samples: int, temperature: float, longest: int) -> list[list[Reply]]:
    """`samples` replies to each prompt; the same seeds for every policy."""
    from starling.evaluate.replies import sample_seed
    from starling.models.encode import Encoder
    from starling.models.load import load_causal, load_tokenizer, longest_input
    from starling.models.sample import Sampler
    from starling.records import Sampling

    net = load_causal(folder)
    encoder = Encoder(load_tokenizer(folder), max_length=longest_input(net) or NO_LIMIT)
    jobs = [(encoder.prompt_ids(p.messages), sample_seed(p.id, n, 0)) for p in prompts for n in range(samples)]
    drawn = Sampler(net, encoder.end_ids, 128).generate(
        [ids for ids, _ in jobs], Sampling(temperature=temperature, max_tokens=longest), [seed for _, seed in jobs]
    )
    replies = [
        Reply((*ids, *one.ids), len(ids), sum(one.logprobs), encoder.decode_reply(one.ids), one.finished)
        for (ids, _), one in zip(jobs, drawn, strict=True)
    ]
    return [replies[i : i + samples] for i in range(0, len(replies), samples)]


def kl_from(base: Path, replies: Iterable[Reply]) -> float:
    """Mean over replies of log policy − log base, nats: k1, unbiased."""
    import torch

    from starling.models.actor import Actor
    from starling.models.encode import Encoded
    from starling.models.load import load_causal
    from starling.models.replies import lay_out

    actor = Actor(load_causal(base))
    rows = sorted(replies, key=lambda r: len(r.ids))
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            part = rows[start : start + 64]
            laid_out = lay_out([Encoded(r.ids, r.prompt_length) for r in part], 0)
            logprobs_BR = actor(laid_out).logprobs_BR
            assert logprobs_BR is not None
            total += sum(r.logprob for r in part) - float(logprobs_BR.sum())
    return total / len(rows)


def scored(reward: Path, prompts: Sequence[Any], replies: Sequence[Sequence[Reply]]) -> list[list[float]]:
    """Standardised scores of a reward model."""
    from starling.models.scorer import score_conversations

    flat = [(p.messages, r.text, r.finished) for p, row in zip(prompts, replies, strict=True) for r in row]
    statistics = recorded(reward)
    found = iter((s - statistics["mean"]) / statistics["std"] for s in score_conversations(reward, flat))
    return [[next(found) for _ in row] for row in replies]


def golds(prompts: Sequence[Any], replies: Sequence[Sequence[Reply]], part: str = "score") -> list[list[float]]:
    """The truth, or a part of it, about each reply."""
    from starling.microworld import world

    return [
        [float(getattr(world.gold(p.messages, r.text, r.finished), part)) for r in row]
        for p, row in zip(prompts, replies, strict=True)
    ]


def measure(folder: Path, base: Path, reward: Path, test: Sequence[Any], longest: int) -> dict[str, Any]:
    """A policy on the test prompts; per prompt where a table pairs by prompt."""
    sampled, greedy = draw(folder, test, SAMPLES, 1.0, longest), draw(folder, test, 1, 0.0, longest)
    flat = [r for row in sampled for r in row]
    return {
        **truths(test, sampled, greedy),
        "kl": kl_from(base, flat),
        "proxy": mean([s for row in scored(reward, test, sampled) for s in row]),
        "length": mean([len(r.ids) - r.prompt_length for r in flat]),
        "finished": mean([float(r.finished) for r in flat]),
    }


def truths(test: Sequence[Any], sampled: Sequence[Sequence[Reply]], greedy: Sequence[Sequence[Reply]]) -> dict[str, Any]:
    """gold and greedy per prompt; refused: harmlessness of replies to requests for harm, benign: gold of their look-alikes."""
    from starling.microworld import world

    kinds = [world.kind(p.messages) for p in test]
    gold = [mean(row) for row in golds(test, sampled)]
    harmless = [mean(row) for row in golds(test, sampled, "harmlessness")]

    def over(values: Sequence[float], *wanted: str) -> float:
        return mean([v for v, kind in zip(values, kinds, strict=True) if kind in wanted])

    return {
        "gold": gold,
        "greedy": [row[0] for row in golds(test, greedy)],
        "harmless": mean(harmless),
        "refused": over(harmless, "harmful"),
        "benign": over(gold, "lookalike"),
        "kinds": {kind: over(gold, kind) for kind in sorted(set(kinds))},
    }


def best_of_n(base: Path, reward: Path, loves_length: Path, test: Sequence[Any], longest: int) -> dict[str, Any]:
    """The base itself, and the best of n of its replies by the reward model: an unbiased mean over all choices of n of the 16."""
    began = time.process_time()
    sampled, greedy = draw(base, test, BEST_OF, 1.0, longest), draw(base, test, 1, 0.0, longest)
    proxies, gold = scored(reward, test, sampled), golds(test, sampled)
    harmless = golds(test, sampled, "harmlessness")
    spent = time.process_time() - began
    rows = []
    for n in SIZES:
        means = {
            name: mean([best_of(proxy, value, n) for proxy, value in zip(proxies, values, strict=True)])
            for name, values in (("gold", gold), ("proxy", proxies), ("harmless", harmless))
        }
        rows.append({"n": n, "kl": kl_of_best(n), **means})
    flat = [r for row in sampled for r in row]
    loves = scored(loves_length, test, [row[:SAMPLES] for row in sampled])
    itself = truths(test, sampled, greedy) | {
        "kl": 0.0,
        "proxy": rows[0]["proxy"],
        "length_proxy": mean([s for row in loves for s in row]),
        "length": mean([len(r.ids) - r.prompt_length for r in flat]),
        "finished": mean([float(r.finished) for r in flat]),
    }
    return {"best_of": rows, "test": itself, "cpu_s": spent}


def best_of(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    """Mean value of the reply with the best score, over all choices of n of them: unbiased (arXiv 2112.09332, appendix I)."""
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    return sum(values[i] * math.comb(rank, n - 1) for rank, i in enumerate(order)) / math.comb(len(order), n)


def kl_of_best(n: int) -> float:
    """Bound on the KL of best-of-n from what it draws from, nats: log n − (n − 1)/n (arXiv 2401.01879)."""
    return math.log(n) - (n - 1) / n

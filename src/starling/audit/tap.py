"""The judge's endpoint with a tap in between: what an audit asks is labelled, repeated under a sample number, and counted.

Calls go through the run's endpoint and journal as any other, under the purpose "audit": answered ones are never asked again,
the run's budget holds, and a killed audit goes on where it stopped. The label is no part of a call's identity, so the first pass
of an audit reuses what the ranking stage has already asked.

A dry tap lets nothing through: every reply is a named failure, and what would have been asked is counted. That is how an audit
says what it will cost, by the very code that asks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from starling.audit.consistency import Tiers
from starling.config import RankingSection
from starling.endpoint import Endpoint, Reply, Request
from starling.judge.judge import Panel, rank_many
from starling.judge.merge import merge
from starling.progress import SILENT, Progress
from starling.records import Finish, Judgment, MergedRanking, Outcome, content_hash

PURPOSE = "audit"
CHARS_PER_TOKEN = 4
"""English text under common tokenizers: 3.5–4.5; used only where a server gives no count."""

Latency = Callable[[Sequence[str]], float]
"""Seconds that the calls with these journal keys took, summed."""
Price = tuple[float, float]
"""Dollars for a million prompt tokens and for a million reply tokens."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What calls came to, e.g. Cost(calls=600, prompt_tokens=900_000, completion_tokens=120_000, estimated=0, …)."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    estimated: int
    """Calls whose tokens are estimated at four characters each, because the server gave no count."""
    dollars: float | None
    """By the model's price; None when it has none."""
    seconds: float | None
    """From question to answer, summed over the calls; None when they took no time worth the name."""

    def per(self, rankings: int) -> dict[str, float | None]:
        """The same for one ranking."""
        each = {"calls": self.calls, "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        found: dict[str, float | None] = {name: value / rankings if rankings else None for name, value in each.items()}
        for name, total in (("dollars", self.dollars), ("seconds", self.seconds)):
            found[name] = total / rankings if rankings and total is not None else None
        return found


@dataclass
class Meter:
    """Counts what goes through the taps that share it."""

    price: Price | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0
    keys: list[str] = field(default_factory=list)
    exchanges: list[tuple[Request, Reply]] | None = None
    """Every request with its reply, when somebody wants to look at them."""

    def count(self, request: Request, reply: Reply, *, dry: bool) -> None:
        self.keys.append(request.key)
        asked = sum(len(m.content) for m in request.messages) // CHARS_PER_TOKEN + 1
        said = request.model.sampling.max_tokens if dry else len(reply.text) // CHARS_PER_TOKEN + 1
        self.estimated += reply.prompt_tokens is None or reply.completion_tokens is None
        self.prompt_tokens += asked if reply.prompt_tokens is None else reply.prompt_tokens
        self.completion_tokens += said if reply.completion_tokens is None else reply.completion_tokens
        if self.exchanges is not None:
            self.exchanges.append((request, reply))

    def cost(self, latency: Latency | None = None) -> Cost:
        dollars = None
        if self.price is not None:
            dollars = (self.prompt_tokens * self.price[0] + self.completion_tokens * self.price[1]) / 1e6
        seconds = latency(self.keys) if latency is not None else 0.0
        return Cost(
            calls=len(self.keys), prompt_tokens=self.prompt_tokens, completion_tokens=self.completion_tokens,
            estimated=self.estimated, dollars=dollars, seconds=seconds or None,
        )  # fmt: skip


class Tap(Endpoint):
    """An endpoint whose calls are an audit's.

    Args:
        endpoint: who answers.
        meter: what counts them.
        sample: number of the draw: the same question under another number is asked again.
        dry: count only; every reply is a failure with the words "not asked".
    """

    def __init__(self, endpoint: Endpoint, meter: Meter, *, sample: int = 0, dry: bool = False) -> None:
        self.model = endpoint.model
        self.dry = dry
        self.meter = meter
        self._endpoint = endpoint
        self._sample = sample

    def again(self, sample: int) -> Tap:
        """The same tap for another draw."""
        return Tap(self._endpoint, self.meter, sample=sample, dry=self.dry)

    def ask_all(self, requests: Collection[Request], progress: Progress = SILENT) -> Iterator[Reply]:
        asked = _Relabelled(requests, self._sample)
        replies = _refused(asked) if self.dry else self._endpoint.ask_all(asked, progress)
        return self._counted(asked, replies)

    def complete_all(self, requests: Collection[Request], progress: Progress = SILENT) -> list[Reply]:
        return list(self.ask_all(requests, progress))

    def _counted(self, asked: Collection[Request], replies: Iterator[Reply]) -> Iterator[Reply]:
        for request, reply in zip(asked, replies, strict=True):
            self.meter.count(request, reply, dry=self.dry)
            yield reply


def _refused(requests: Collection[Request]) -> Iterator[Reply]:
    return (Reply("", Finish.error, request.key, "not asked") for request in requests)


class _Relabelled(Collection[Request]):
    """The requests under the audit's purpose and sample number, made anew on each pass."""

    def __init__(self, requests: Collection[Request], sample: int) -> None:
        self._requests = requests
        self._sample = sample

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request: object) -> bool:
        return any(request == one for one in self)

    def __iter__(self) -> Iterator[Request]:
        return (replace(request, purpose=PURPOSE, sample=self._sample) for request in self._requests)


# ── one pass ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Ranked:
    """What one pass over panels came to, by panel."""

    judgments: tuple[tuple[Judgment, ...], ...]
    """Every judge call."""
    merged: tuple[MergedRanking, ...]
    """What the calls about each panel come to; answers that are equal by them are tied, whatever the settings do with ties."""

    @property
    def tiers(self) -> dict[str, Tiers]:
        """Prompt → its ranking; prompts without one are absent. For passes in which no prompt comes twice."""
        return {m.prompt_id: m.tiers for m in self.merged if m.outcome is Outcome.ranked}

    @property
    def good_natured(self) -> dict[str, bool]:
        """Prompt → the judge's view of the request, where it gave one."""
        return {m.prompt_id: m.good_natured for m in self.merged if m.good_natured is not None}


def rank(
    panels: Sequence[Panel], endpoint: Endpoint, settings: RankingSection, seed: int, progress: Progress = SILENT, what: str = ""
) -> Ranked:
    """One pass: each panel is judged as the ranking stage would, but a reply that does not parse is not asked again.

    Lots never decide here: they fall the same way in every pass and would pass for the judge's own consistency.
    """
    once = settings.model_copy(update={"retries": 0})
    said = tuple(rank_many(panels, endpoint, once, seed, _Named(progress, what) if what else progress))
    merged = tuple(merge(calls, orders=settings.orders, keep_ties=True, seed=seed) for calls in said)
    return Ranked(said, merged)


class _Named(Progress):
    """Progress under a name that says which part of the audit it is."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name

    def start(self, what: str, total: int) -> None:
        self._progress.start(self._name, total)

    def advance(self, n: int = 1, note: str = "") -> None:
        self._progress.advance(n, note)

    def finish(self) -> None:
        self._progress.finish()


def other_seed(seed: int, which: int = 1) -> int:
    """A seed for another order of the same panels."""
    return int(content_hash(["audit", "order", seed, which], 12), 16)


def cost_json(cost: Cost, rankings: int) -> dict[str, Any]:
    """Totals, and what one ranking came to."""
    return {
        "calls": cost.calls, "prompt_tokens": cost.prompt_tokens, "completion_tokens": cost.completion_tokens,
        "estimated": cost.estimated, "dollars": cost.dollars, "seconds": cost.seconds, "per_ranking": cost.per(rankings),
    }  # fmt: skip

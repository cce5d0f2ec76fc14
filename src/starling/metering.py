"""What calls come to in tokens, dollars and seconds: an endpoint with a meter in between, for audits and benchmarks.

Calls go through the run's endpoint and journal as any other: answered ones are never asked again, the run's budget holds, and a
killed process goes on where it stopped. The label of a call is no part of its identity, so what one part of Starling has asked
costs the next one nothing; the meter counts such calls all the same, because it says what a table rests on.

A dry tap lets nothing through: every reply is a named failure, and what would have been asked is counted. That is how a command
says what it will cost, by the very code that asks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from starling.endpoint import Endpoint, Reply, Request
from starling.endpoint.limits import CHARS_PER_TOKEN
from starling.progress import SILENT, Progress
from starling.records import Finish

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
    """An endpoint whose calls are counted and, if wanted, labelled and numbered.

    Args:
        endpoint: who answers.
        meter: what counts them.
        purpose: label of the calls in the journal; "" leaves each its own.
        sample: number of the draw: the same question under another number is asked again. None leaves each request its own.
        dry: count only; every reply is a failure with the words "not asked".
    """

    def __init__(
        self, endpoint: Endpoint, meter: Meter, *, purpose: str = "", sample: int | None = None, dry: bool = False
    ) -> None:
        self.model = endpoint.model
        self.dry = dry
        self.meter = meter
        self.endpoint = endpoint
        self._purpose = purpose
        self._sample = sample

    def again(self, sample: int) -> Tap:
        """The same tap for another draw."""
        return Tap(self.endpoint, self.meter, purpose=self._purpose, sample=sample, dry=self.dry)

    def ask_all(self, requests: Collection[Request], progress: Progress = SILENT) -> Iterator[Reply]:
        asked = _Relabelled(requests, self._purpose, self._sample)
        replies = _refused(asked) if self.dry else self.endpoint.ask_all(asked, progress)
        return self._counted(asked, replies)

    def complete_all(self, requests: Collection[Request], progress: Progress = SILENT) -> list[Reply]:
        return list(self.ask_all(requests, progress))

    def seconds(self, keys: Iterable[str]) -> float:
        return self.endpoint.seconds(keys)

    def cost(self) -> Cost:
        """What the calls through all taps of this meter came to."""
        return self.meter.cost(None if self.dry else self.seconds)

    def _counted(self, asked: Collection[Request], replies: Iterator[Reply]) -> Iterator[Reply]:
        for request, reply in zip(asked, replies, strict=True):
            self.meter.count(request, reply, dry=self.dry)
            yield reply


def _refused(requests: Collection[Request]) -> Iterator[Reply]:
    return (Reply("", Finish.error, request.key, "not asked") for request in requests)


class _Relabelled(Collection[Request]):
    """The requests under the tap's label and sample number, made anew on each pass."""

    def __init__(self, requests: Collection[Request], purpose: str, sample: int | None) -> None:
        self._requests = requests
        self._purpose = purpose
        self._sample = sample

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request: object) -> bool:
        return any(request == one for one in self)

    def __iter__(self) -> Iterator[Request]:
        if not self._purpose and self._sample is None:
            return iter(self._requests)
        return (
            replace(
                request, purpose=self._purpose or request.purpose, sample=request.sample if self._sample is None else self._sample
            )
            for request in self._requests
        )

"""What is written into the journal and what is read from it: frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spend:
    """What one attempt costs besides being one call, e.g. Spend(tokens=2500, microdollars=31_000)."""

    tokens: int = 0
    """Prompt and reply together."""
    microdollars: int = 0
    """Millionths of a dollar: whole numbers, so that sums over millions of calls stay exact."""


NOTHING = Spend()


@dataclass(frozen=True)
class Budget:
    """The most that the attempts in one journal may come to, earlier processes included; None is no limit."""

    calls: int | None = None
    tokens: int | None = None
    dollars: float | None = None


UNLIMITED = Budget()


@dataclass(frozen=True, kw_only=True)
class StoredReply:
    """What came back from one attempt, uninterpreted.

    Example: StoredReply(status=200, body='{"choices": [...]}', latency_s=0.8).
    """

    status: int
    """HTTP status; 200 also for local models; 0 when nothing came back (timeout, lost connection)."""
    body: str = ""
    """The reply as received, with keys already blanked out."""
    error: str = ""
    """Why it is no answer; empty for an answer."""
    latency_s: float = 0.0
    sent: bool = True
    """False when the call never left, e.g. because nobody listened: it cannot have been paid for."""

    @property
    def answered(self) -> bool:
        return self.status == 200 and not self.error


@dataclass(frozen=True, kw_only=True)
class Intent:
    """A call is about to leave."""

    key: str
    attempt: int
    request: dict[str, Any]
    """At least "model" (a ModelRef as a dict) and "purpose"; never a header."""
    paid: bool = True
    """False for local models: they do not count against the budget."""
    most: Spend = NOTHING
    """The most that it can cost; what it counts until the true cost is known."""
    batch: int | None = None
    """The row of `batches` it is sent with. Such an attempt may be answered by a later process."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An attempt came to its end. The same key and attempt as in its Intent, written by the same Journal object; or the same key
    and batch, written by any."""

    key: str
    attempt: int
    reply: StoredReply
    batch: int | None = None


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What an attempt came to, read from its reply after it was stored."""

    key: str
    attempt: int
    prompt: int | None
    completion: int | None
    spent: Spend = NOTHING
    """Takes the place of its Intent's `most`."""
    batch: int | None = None
    """As in its Answer."""


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """The answer to a key turned out to be no reply at all: it is taken back; the attempt and its body stay."""

    key: str
    reason: str


Entry = Intent | Answer | Tokens | Rejection


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the calls in a journal came to."""

    answered: int
    """Keys with an answer."""
    attempts: int
    paid: int
    """Attempts that were or may have been paid for: answered, timed out, or in flight when a process died."""
    failed: int
    """Attempts that ended without an answer."""
    unfinished: int
    """Attempts without an end: in flight now, or when a process died."""
    prompt_tokens: int
    completion_tokens: int
    tokens: int
    """Tokens of the paid attempts; where the true number is not known, the most it can be."""
    dollars: float
    """Likewise."""
    latency_s: float
    """Seconds from question to answer, summed over the answered keys."""

"""What the fake server does wrong, and to which calls: data that travels as JSON.

A plan is a list of faults; the first one that applies to a call decides. A fault applies when all of its conditions hold:

    nth, every, after, until    the number of the call, counted over everything the server received (1 is the first)
    share                       this share of all contents, chosen by hash; the shares of one plan do not overlap
    marker                      the last message contains this text
    model                       the call is for this model
    judge                       True: only judge prompts; False: only others
    times                       only so many attempts at one content; None means every attempt, for ever

`share` with `times=1` is the fault that a retry cures, `times=None` the one that lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

STATUS = {
    "bad_request": 400,
    "context_length": 400,
    "unauthorized": 401,
    "no_credit": 429,
    "rate_limited": 429,
    "server_error": 500,
    "bad_gateway": 502,
    "unavailable": 503,
    "overloaded": 529,
}
"""Faults that are an HTTP status with an error body."""

WIRE = ("reset_before", "reset_after", "hang", "drip", "cut_body")
"""Faults of the connection. reset_before goes by the number of the call only: nothing of the body has been read yet."""

BODY = ("truncated_json", "malformed_json", "not_json", "wrong_type", "wrong_shape")
"""A 200 whose body is no reply. wrong_type is an HTML page; wrong_shape is JSON, but no completion."""

REPLY = ("empty_text", "null_text", "huge", "finish_length", "content_filter", "unknown_finish", "no_usage", "bad_usage",
         "bad_logprobs")  # fmt: skip
"""Replies in the right format with something unusual in them; the call is answered and paid."""

JUDGE = ("letter_twice", "letter_missing", "stranger", "prose_around", "double_brackets", "pair_missing")
"""Replies of the judge that break its grammar."""

KINDS = (*STATUS, *WIRE, *BODY, *REPLY, *JUDGE)


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, e.g. Fault("rate_limited", nth=(5,), retry_after="2", times=1)."""

    kind: str
    nth: tuple[int, ...] = ()
    every: int = 0
    after: int = 0
    until: int = 0
    share: float = 0.0
    marker: str = ""
    model: str = ""
    judge: bool | None = None
    times: int | None = None
    retry_after: str = ""
    """Text of the Retry-After header; empty sends none."""
    seconds: float = 60.0
    """How long a hang lasts, or a dripping body takes."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault is called {self.kind!r}; there are {', '.join(KINDS)}")
        if self.kind == "reset_before" and (self.share or self.marker or self.model or self.judge is not None or self.times):
            raise ValueError("reset_before can go by the number of the call only")

    def early(self, number: int) -> bool:
        """Whether it strikes the call of this number before its body is read."""
        return self.kind == "reset_before" and self._number_fits(number)

    def _number_fits(self, number: int) -> bool:
        return (
            (not self.nth or number in self.nth)
            and (not self.every or number % self.every == 0)
            and (not self.after or number > self.after)
            and (not self.until or number <= self.until)
        )

    def applies(self, number: int, attempt: int, model: str, last: str, *, judge: bool) -> bool:
        """Everything but `share`, which the plan decides."""
        return (
            self._number_fits(number)
            and (self.times is None or attempt <= self.times)
            and (not self.model or self.model == model)
            and (self.judge is None or self.judge == judge)
            and (not self.marker or self.marker in last)
        )


class Plan:
    """The faults of a server. Shares are intervals of [0, 1) that lie one behind the other, in the order of the plan."""

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self.faults = tuple(faults)
        self._from: list[float] = []
        edge = 0.0
        for fault in self.faults:
            self._from.append(edge)
            edge += fault.share
        if edge > 1:
            raise ValueError(f"the shares add up to {edge:g}, which is more than everything")
        self._early = any(f.kind == "reset_before" for f in self.faults)

    def early(self, number: int) -> bool:
        """Whether the connection of this call is reset before its body is read."""
        return self._early and any(f.early(number) for f in self.faults)

    def find(self, key: str, number: int, attempt: int, model: str, last: str, *, judge: bool) -> Fault | None:
        """What goes wrong with this call, if anything.

        Args:
            key: hex digits of the content's hash.
            number: which call of the server it is, from 1.
            attempt: which call with this content it is, from 1.
            model, last: the model asked and the last message.
            judge: whether it is a judge prompt.
        """
        if not self.faults:
            return None
        place = int(key[:8], 16) / 2**32
        for start, fault in zip(self._from, self.faults, strict=True):
            if fault.kind == "reset_before" or (fault.share and not start <= place < start + fault.share):
                continue
            if fault.applies(number, attempt, model, last, judge=judge):
                return fault
        return None

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(f) for f in self.faults]

    @classmethod
    def from_json(cls, rows: Sequence[dict[str, Any]]) -> Plan:
        return cls([Fault(**{**row, "nth": tuple(row.get("nth", ()))}) for row in rows])

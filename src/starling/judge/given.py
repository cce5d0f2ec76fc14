"""Questions of benchmarks to the judge: one or two answers in the order given, and one verdict or named failure for each.

    internal    which of two answers is better, in the words and grammar of the ranking stage's default mode (K = 2)
    letter      the same as one letter: p(B) / (p(A) + p(B)) by the log-probabilities of the reply's first token is a soft verdict
    pointwise   a whole number from 1 to 10 for one answer

each with or without a reference answer. Whoever wants both orders asks twice (MT-Bench's pairwise mode, arXiv 2306.05685, section
3.4); whoever wants to know the judge's noise asks the same under another sample number. A reply that does not parse is asked for
once more under a fresh marker where `ranking.retries` allows it.

Soft verdicts: AlpacaEval 2 asks with max_tokens 1 and the 5 likeliest tokens. Departure: 20, the most that APIs give, so that the
letter that the judge did not write is seen, too. The text of such a reply plays no part, and being cut is how it ends.

Everything depends on (seed, attempt) and the texts only: running again sends the very same requests, which the journal answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from starling.config import RankingSection
from starling.endpoint import Endpoint, Reply, Request
from starling.judge.calls import failure_of, fresh_nonce, read_reply, with_limit
from starling.judge.rubric import GivenKind, Rubric, build_prompt, prompt_chars, rubric_as_given
from starling.judge.verdict import NO_LOGPROBS, Failure, Verdict, preference
from starling.progress import SILENT, Progress
from starling.records import Comparison, Messages, ModelRef, Outcome, Prompt

SOFT_TOKENS = 20
"""Likeliest first tokens that a soft comparison asks for."""


@dataclass(frozen=True)
class Shown:
    """One question: a conversation that ends with a user turn, and one or two answers to it, the first of them shown as A."""

    messages: Messages
    answers: tuple[str, ...]
    reference: str | None = None
    sample: int = 0
    """Number of the draw: the same question under another number is another call."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What became of a question. Law: outcome is ranked ⇔ there is a verdict, or, asked softly, a preference."""

    outcome: Outcome
    reason: str
    call_id: str
    """Key in the journal; "" where no call was made."""
    verdict: Verdict | None = None
    preference: float | None = None
    """How likely the judge was to prefer B, 0 … 1; soft comparisons only."""
    first: Outcome | None = None
    """What the first call came to, where it took a second one."""


def ask_given(
    items: Sequence[Shown],
    kind: GivenKind,
    endpoint: Endpoint,
    settings: RankingSection,
    seed: int,
    progress: Progress = SILENT,
    what: str = "judge",
) -> list[Said]:
    """One answer of the judge per question, in order.

    Args:
        items: the questions, of two answers each, or of one for `pointwise`.
        kind: see the top of the file.
        endpoint: the judge.
        settings: limits, retries and, for plain comparisons, ties.
        seed: of the markers.
        progress: gets a piece of work per round, under the name `what`.

    Raises:
        BudgetError, EndpointError: as the endpoint's; everything answered is in the journal.
    """
    how = _How.of(kind, endpoint, settings, seed)
    fits = [how.chars(item) <= settings.max_prompt_chars for item in items]
    found = [how.read(item, None) for item in items]  # what stays is too long to be asked
    wanted = [n for n, short in enumerate(fits) if short]
    for attempt in range(1 + settings.retries):
        if not wanted:
            break
        requests = _Requests(items, how, attempt, wanted)
        progress.start(f"{what} again" if attempt else what, len(requests))
        for n, reply in zip(wanted, endpoint.ask_all(requests, progress), strict=True):
            found[n] = replace(how.read(items[n], reply), first=found[n].outcome if attempt else None)
        progress.finish()
        wanted = [n for n in wanted if found[n].outcome is Outcome.unparsed and found[n].reason != str(NO_LOGPROBS)]
    return found


@dataclass(frozen=True)
class _How:
    """What is the same for all calls."""

    kind: GivenKind
    plain: Rubric
    referenced: Rubric
    model: ModelRef
    seed: int

    @classmethod
    def of(cls, kind: GivenKind, endpoint: Endpoint, settings: RankingSection, seed: int) -> _How:
        plain, referenced = (rubric_as_given(kind, ties=settings.ties == "keep", reference=r) for r in (False, True))
        soft = kind == "letter"
        model = with_limit(endpoint.model, 1 if soft else settings.max_tokens, SOFT_TOKENS if soft else 0)
        return cls(kind, plain, referenced, model, seed)

    def rubric(self, item: Shown) -> Rubric:
        return self.plain if item.reference is None else self.referenced

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        return ((0, 1),) if self.plain.lists_pairs else ()

    def chars(self, item: Shown) -> int:
        return prompt_chars(self.rubric(item), item.messages, item.answers, self.pairs, item.reference)

    def request(self, item: Shown, attempt: int) -> Request:
        texts = item.answers if item.reference is None else (*item.answers, item.reference)
        nonce = fresh_nonce(self.seed, attempt, item.messages, texts)
        prompt = build_prompt(self.rubric(item), item.messages, item.answers, self.pairs, nonce, item.reference)
        return Request(model=self.model, messages=prompt, sample=item.sample, purpose="judge")

    def read(self, item: Shown, reply: Reply | None) -> Said:
        call_id = "" if reply is None else reply.call_id
        if self.kind != "letter":
            outcome, reason, verdict = read_reply(reply, len(item.answers), self.plain.grammar)
            return Said(outcome=outcome, reason=reason, call_id=call_id, verdict=verdict)
        failed = failure_of(reply)
        if reply is None or failed is not None:
            outcome, reason = failed or (Outcome.provider_error, "")
            return Said(outcome=outcome, reason=reason, call_id=call_id)
        chance = preference(reply.first_token)
        if isinstance(chance, Failure):
            return Said(outcome=Outcome.unparsed, reason=str(chance), call_id=call_id)
        return Said(outcome=Outcome.ranked, reason="", call_id=call_id, preference=chance)


class _Requests(Collection[Request]):
    """The requests of a round, built anew each time they are gone through."""

    def __init__(self, items: Sequence[Shown], how: _How, attempt: int, numbers: Sequence[int]) -> None:
        self._items, self._how, self._attempt, self._numbers = items, how, attempt, tuple(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Request]:
        return (self._how.request(self._items[n], self._attempt) for n in self._numbers)

    def __contains__(self, request: object) -> bool:
        return any(request == one for one in self)


# ── two answers ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Duel:
    """Two answers to one prompt, `a` shown first. Ask `swapped()` too and flip that verdict back with Comparison.swap()."""

    prompt: Prompt
    a: str
    b: str
    text_a: str
    text_b: str

    def swapped(self) -> Duel:
        """The same two answers shown in the other order."""
        return replace(self, a=self.b, b=self.a, text_a=self.text_b, text_b=self.text_a)


def compare_many(
    items: Sequence[Duel], endpoint: Endpoint, settings: RankingSection, seed: int, progress: Progress = SILENT
) -> list[Comparison]:
    """One comparison per duel, in order, with `a` shown first: one call each, whatever `settings.mode` is. There are ties only
    with `settings.ties` = keep."""
    shown = [Shown(duel.prompt.messages, (duel.text_a, duel.text_b)) for duel in items]
    found = ask_given(shown, "internal", endpoint, settings, seed, progress, "compare")
    return [
        Comparison(prompt_id=duel.prompt.id, a=duel.a, b=duel.b, winner=winner_of(said.verdict), by="judge", outcome=said.outcome)
        for duel, said in zip(items, found, strict=True)
    ]


def agreed(first: float | None, second: float | None) -> float | None:
    """The written verdicts of both orders as one (MT-Bench, arXiv 2306.05685, section 3.4): a preference counts only where both
    orders have it, else it is a tie (0.5). None when one of them is missing.

    Args:
        first, second: preference for the same answer, 0 … 1, in either order.
    """
    if first is None or second is None:
        return None
    return first if first == second else 0.5


def winner_of(verdict: Verdict | None) -> Literal["a", "b", "tie"] | None:
    """The better of two answers, `a` being the one shown first."""
    if verdict is None:
        return None
    if verdict.tied:
        return "tie"
    return "a" if verdict.ranking[0] == 0 else "b"

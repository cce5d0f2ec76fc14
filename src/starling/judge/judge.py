"""Asking the judge: rank K answers in one call, or compare two; every failure is a named outcome.

Source: Nectar's judge (one call per prompt, answers shuffled, all pairs listed in random order, then one ranking).
Departures: pairs are flipped inside at random when the settings say so (the original kept them alphabetical, and the
alphabetically first letter won too often); a reply that does not parse gets one more call under a fresh order and marker
(the original dropped the row); refusals, truncations, over-long prompts and provider errors are kept and counted.

Everything random here depends on (seed, prompt id, attempt) and the texts only, never on what else is judged or on a
clock: running again sends the very same requests, so the journal answers them without a new call.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from starling.config import RankingSection
from starling.endpoint import Endpoint, Reply, Request
from starling.errors import UsageError
from starling.judge.rubric import STARLING, Rubric, build_prompt, nonce_is_free
from starling.judge.verdict import LETTERS, Failure, Verdict, parse
from starling.progress import SILENT, Progress
from starling.records import (
    Comparison,
    Finish,
    Judgment,
    Messages,
    ModelRef,
    Outcome,
    Prompt,
    Response,
    content_hash,
)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Panel:
    """One prompt with the K responses to rank, 2 ≤ K ≤ 12, ids distinct, in any order."""

    prompt: Prompt
    responses: tuple[Response, ...]


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


@dataclass(frozen=True)
class _Call:
    """One judge call before it is sent: which answers are shown in which order, and the request (None when too long)."""

    shown: tuple[int, ...]
    pair_order: tuple[tuple[int, int], ...]
    request: Request | None


@dataclass(frozen=True)
class _Result:
    call: _Call
    outcome: Outcome
    reason: str
    verdict: Verdict | None
    call_id: str


@dataclass(frozen=True)
class _Question:
    """What both public functions reduce to: texts to compare under a conversation, shuffled or as given."""

    prompt_id: str
    messages: Messages
    texts: tuple[str, ...]
    shuffle: bool


def rank_many(
    items: Sequence[Panel],
    endpoint: Endpoint,
    settings: RankingSection,
    seed: int,
    progress: Progress = SILENT,
    rubric: Rubric = STARLING,
) -> list[Judgment]:
    """One judgment per panel, in order: one round of calls for all, then one more for what did not parse.

    Raises:
        UsageError: a panel with fewer than 2 or more than 12 responses, or with a response twice.
    """
    for panel in items:
        _check_panel(panel)
    questions = [_Question(p.prompt.id, p.prompt.messages, tuple(r.text for r in p.responses), shuffle=True) for p in items]
    results = _ask(questions, endpoint, settings, seed, progress, rubric, "judge")
    judge, rubric_hash = endpoint.model.name, rubric.hash
    return [_judgment(panel, result, judge, rubric_hash) for panel, result in zip(items, results, strict=True)]


def compare_many(
    items: Sequence[Duel],
    endpoint: Endpoint,
    settings: RankingSection,
    seed: int,
    progress: Progress = SILENT,
    rubric: Rubric = STARLING,
) -> list[Comparison]:
    """One comparison per duel, in order, with `a` shown first; a single call knows no ties."""
    questions = [_Question(d.prompt.id, d.prompt.messages, (d.text_a, d.text_b), shuffle=False) for d in items]
    results = _ask(questions, endpoint, settings, seed, progress, rubric, "compare")
    return [
        Comparison(
            prompt_id=duel.prompt.id,
            a=duel.a,
            b=duel.b,
            winner=None if result.verdict is None else ("a", "b")[result.verdict.ranking[0]],
            by="judge",
            outcome=result.outcome,
        )
        for duel, result in zip(items, results, strict=True)
    ]


# ── the calls ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _ask(
    questions: Sequence[_Question],
    endpoint: Endpoint,
    settings: RankingSection,
    seed: int,
    progress: Progress,
    rubric: Rubric,
    what: str,
) -> list[_Result]:
    """All questions in one go; then, as often as the settings allow, those whose reply did not parse in another one."""
    results: dict[int, _Result] = {}
    model = endpoint.model.model_copy(
        update={"sampling": endpoint.model.sampling.model_copy(update={"max_tokens": settings.max_tokens})}
    )
    waiting = list(range(len(questions)))
    for attempt in range(settings.retries + 1):
        if not waiting:
            break
        calls = [_prepare(questions[i], model, settings, seed, attempt, rubric) for i in waiting]
        requests = [call.request for call in calls if call.request is not None]
        progress.start(what if attempt == 0 else f"{what} again", len(requests))
        replies = iter(endpoint.complete_all(requests, progress))
        for i, call in zip(waiting, calls, strict=True):
            results[i] = _interpret(call, None if call.request is None else next(replies), rubric)
        progress.finish()
        waiting = [i for i in waiting if results[i].outcome is Outcome.unparsed]
    return [results[i] for i in range(len(questions))]


def _prepare(question: _Question, model: ModelRef, settings: RankingSection, seed: int, attempt: int, rubric: Rubric) -> _Call:
    """Order, pairs and marker of one call, from content alone."""
    k = len(question.texts)
    draw = _Draw(content_hash(["judge", seed, question.prompt_id, attempt], 16))
    shown = draw.shuffled(range(k)) if question.shuffle else tuple(range(k))
    pairs = [(a, b) for a in range(k) for b in range(a + 1, k)]
    if question.shuffle:
        pairs = list(draw.shuffled(pairs))
        if settings.flip_pairs:
            pairs = [(b, a) if draw.coin() else (a, b) for a, b in pairs]
    answers = tuple(question.texts[i] for i in shown)
    nonce = _fresh_nonce(seed, attempt, question.messages, answers)
    prompt = build_prompt(rubric, question.messages, answers, pairs, nonce)
    if sum(len(message.content) for message in prompt) > settings.max_prompt_chars:
        return _Call(shown, tuple(pairs), None)
    return _Call(shown, tuple(pairs), Request(model=model, messages=prompt, purpose="judge"))


def _fresh_nonce(seed: int, attempt: int, messages: Messages, answers: Sequence[str]) -> str:
    """16 hex digits that depend on all the material, so nothing in the material can have known them."""
    material = [seed, attempt, [[m.role, m.content] for m in messages], list(answers)]
    round_ = 0
    while True:
        nonce = content_hash(["marker", round_, *material], 16)
        if nonce_is_free(nonce, messages, answers):
            return nonce
        round_ += 1


class _Draw:
    """Random choices from a hash. Only `random()` is used: its stream for a given seed is fixed across Python versions."""

    def __init__(self, digest: str) -> None:
        self._random = random.Random(int(digest, 16)).random

    def shuffled(self, items: Sequence[_T]) -> tuple[_T, ...]:
        keyed = [(self._random(), index) for index in range(len(items))]
        return tuple(items[index] for _, index in sorted(keyed))

    def coin(self) -> bool:
        return self._random() < 0.5


def _interpret(call: _Call, reply: Reply | None, rubric: Rubric) -> _Result:
    """What became of a call. Only a reply that ended by itself is parsed."""
    if reply is None:
        return _Result(
            call, Outcome.too_long, "the judge prompt is longer than ranking.max_prompt_chars; no call was made", None, ""
        )
    ended = {
        Finish.error: (Outcome.provider_error, reply.error or "the provider gave no reply"),
        Finish.refusal: (Outcome.refused, "the judge refused"),
        Finish.length: (Outcome.truncated, "the judge's reply was cut at ranking.max_tokens"),
    }
    if reply.finish in ended:
        return _Result(call, *ended[reply.finish], None, reply.call_id)
    verdict = parse(reply.text, len(call.shown), rubric.grammar)
    if isinstance(verdict, Failure):
        return _Result(call, Outcome.unparsed, str(verdict), None, reply.call_id)
    return _Result(call, Outcome.ranked, "", verdict, reply.call_id)


def _judgment(panel: Panel, result: _Result, judge: str, rubric_hash: str) -> Judgment:
    """The result in terms of response ids."""
    shown = tuple(panel.responses[i].id for i in result.call.shown)
    verdict = result.verdict
    pairs = verdict.pairs if verdict is not None else ()
    # Plain dicts for the pairs: validated once, inside the judgment; building 21 records first would double the cost.
    fields = {
        "prompt_id": panel.prompt.id,
        "rubric": rubric_hash,
        "judge": judge,
        "shown": shown,
        "pair_order": tuple((shown[a], shown[b]) for a, b in result.call.pair_order),
        "outcome": result.outcome,
        "ranking": None if verdict is None else tuple(shown[i] for i in verdict.ranking),
        "good_natured": None if verdict is None else verdict.good_natured,
        "pair_verdicts": tuple({"first": shown[a], "second": shown[b], "winner": shown[w]} for a, b, w in pairs),
        "call_id": result.call_id,
        "reason": result.reason,
    }
    return Judgment.model_validate(fields)


def _check_panel(panel: Panel) -> None:
    k = len(panel.responses)
    if not 2 <= k <= len(LETTERS):
        raise UsageError(
            f"The judge ranks 2 to {len(LETTERS)} answers at once, and this prompt has {k}",
            where=f"prompt {panel.prompt.id}",
            cure=f"name 2 to {len(LETTERS)} models in responses.models",
        )
    if len({r.id for r in panel.responses}) != k:
        raise UsageError("The same response is given twice", where=f"prompt {panel.prompt.id}", cure="pass each response once")

"""Asking the judge about many prompts, in the mode that the settings name; every failure is a named outcome.

Source: Nectar's judge (one call per prompt, answers shuffled, all pairs listed in random order, then one ranking).
Departures: other ways of asking (`starling.judge.modes`); several orders per prompt, all or only where the first ones left
doubt; a reply that does not parse gets one more call under a fresh order and marker (the original dropped the row); refusals,
truncations, over-long prompts and provider errors are kept and counted.

Calls are made in at most four rounds, each over before the next is planned: the first orders, what of it did not parse, further
orders of contested prompts, what of these did not parse. Nothing of the size of all prompts or replies is in memory: panels are
read anew for each pass, prompts are built when they are asked for, judgments wait on disk. What stays is a byte or two per call.

Everything random here depends on (seed, prompt id, order, attempt) and the texts only, never on what else is judged or on a
clock: running again sends the very same requests, so the journal answers them without a new call.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from starling.config import RankingMode, RankingSection
from starling.endpoint import Endpoint, Reply, Request
from starling.errors import UsageError
from starling.judge import merge, spill
from starling.judge.calls import fresh_nonce, read_reply, with_limit
from starling.judge.modes import ATTEMPTS, Ask, asks, calls_per_order
from starling.judge.rubric import Rubric, build_prompt, prompt_chars, rubric_of
from starling.judge.verdict import LETTERS
from starling.progress import SILENT, Progress
from starling.records import Judgment, ModelRef, Outcome, Prompt, Response


@dataclass(frozen=True)
class Panel:
    """One prompt with the K responses to rank, 2 ≤ K ≤ 12, ids distinct, in any order."""

    prompt: Prompt
    responses: tuple[Response, ...]


def rank_many(
    panels: Iterable[Panel],
    endpoint: Endpoint,
    settings: RankingSection,
    seed: int,
    progress: Progress = SILENT,
    folder: Path | None = None,
) -> Iterator[tuple[Judgment, ...]]:
    """For each panel, in order, the judgments of all its calls; when the first is given, all calls have been made.

    Args:
        panels: gone through several times; may make its members anew each time.
        endpoint: the judge.
        settings: mode, orders, ties, retries and limits.
        seed: of orders and markers.
        progress: gets one piece of work per round.
        folder: where judgments wait for the end, some 0.3 kB per call; the system's place for temporary files when None.

    Raises:
        UsageError: a panel with fewer than 2 or more than 12 responses, or with a response twice.
    """
    how = _How.of(endpoint, settings, seed)
    yield from _judge(panels, how, endpoint, settings.orders, settings.orders_if_contested, progress, "judge", folder)


# ── rounds ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _How:
    """What is the same for all calls."""

    mode: RankingMode
    rubric: Rubric
    model: ModelRef
    seed: int
    max_prompt_chars: int
    attempts: int

    @classmethod
    def of(cls, endpoint: Endpoint, settings: RankingSection, seed: int) -> _How:
        rubric = rubric_of(settings.mode, settings.ties == "keep")
        model = with_limit(endpoint.model, settings.max_tokens)
        return cls(settings.mode, rubric, model, seed, settings.max_prompt_chars, 1 + settings.retries)


@dataclass(frozen=True)
class _Call:
    """One call of a round; `asked` is False where the prompt is too long to be sent."""

    panel: Panel
    ask: Ask
    order: int
    attempt: int
    asked: bool


@dataclass(frozen=True)
class _Phase:
    """Some orders of all panels, or of the chosen ones: a first round, and maybe one for what did not parse."""

    orders: range
    chosen: bytearray | None
    """By panel: 1 = these orders are judged. None = all panels."""
    files: tuple[Path, ...]
    """The judgments of each round."""

    def has(self, panel: int) -> bool:
        return self.chosen is None or bool(self.chosen[panel])


def _judge(
    panels: Iterable[Panel],
    how: _How,
    endpoint: Endpoint,
    orders: int,
    orders_if_contested: int | None,
    progress: Progress,
    what: str,
    folder: Path | None,
) -> Iterator[tuple[Judgment, ...]]:
    with TemporaryDirectory(prefix="calls-", dir=folder) as name:
        files = [Path(name) / f"{i}.jsonl.gz" for i in range(2 * ATTEMPTS)]
        phases = [_Phase(range(orders), None, tuple(files[: how.attempts]))]
        sizes = _ask(panels, how, endpoint, phases[0], progress, what)
        if orders_if_contested is not None:
            chosen = bytearray(merge.contested(calls) for calls in _joined(sizes, how, phases))
            more = _Phase(range(orders, orders_if_contested), chosen, tuple(files[ATTEMPTS : ATTEMPTS + how.attempts]))
            _ask(panels, how, endpoint, more, progress, f"{what} contested")
            phases.append(more)
        yield from _joined(sizes, how, phases)


def _ask(panels: Iterable[Panel], how: _How, endpoint: Endpoint, phase: _Phase, progress: Progress, what: str) -> bytearray:
    """Make the calls of a phase and write their judgments; returns the number of responses of every panel."""
    sizes, wanted = _survey(panels, how, phase)
    for attempt, file in enumerate(phase.files):

        def calls(wanted: bytearray = wanted, attempt: int = attempt) -> Iterator[_Call]:
            return _calls(panels, how, phase, wanted, attempt)

        requests = _Requests(calls, how, sum(wanted))
        progress.start(f"{what} again" if attempt else what, len(requests))
        replies = endpoint.ask_all(requests, progress) if len(requests) else iter(())
        judgments = (_judgment(call, how, next(replies) if call.asked else None) for call in calls())
        again = bytearray(len(wanted))
        numbers = range(len(wanted)) if attempt == 0 else (n for n, asked in enumerate(wanted) if asked)
        for n, judgment in zip(numbers, spill.write(file, judgments), strict=True):
            again[n] = judgment.outcome is Outcome.unparsed
        progress.finish()
        wanted = again
    return sizes


def _survey(panels: Iterable[Panel], how: _How, phase: _Phase) -> tuple[bytearray, bytearray]:
    """The size of every panel, and for every call of the phase whether its prompt is short enough (1) to be sent.

    The length of a prompt depends on what is shown, not on the order.
    """
    sizes, wanted = bytearray(), bytearray()
    for index, panel in enumerate(panels):
        _check_panel(panel)
        k = len(panel.responses)
        sizes.append(k)
        if phase.has(index):
            one_order = asks(how.mode, k, how.seed, panel.prompt.id, 0, 0)
            texts = [[panel.responses[i].text for i in ask.shown] for ask in one_order]
            lengths = [
                prompt_chars(how.rubric, panel.prompt.messages, shown, ask.pairs)
                for shown, ask in zip(texts, one_order, strict=True)
            ]
            wanted.extend(bytes(length <= how.max_prompt_chars for length in lengths) * len(phase.orders))
    return sizes, wanted


def _calls(panels: Iterable[Panel], how: _How, phase: _Phase, wanted: bytearray, attempt: int) -> Iterator[_Call]:
    """The calls of a round: all of them at the first attempt, later those that are wanted."""
    start = 0
    for index, panel in enumerate(panels):
        if not phase.has(index):
            continue
        k = len(panel.responses)
        for order in phase.orders:
            own = wanted[start : start + calls_per_order(how.mode, k)]
            start += len(own)
            if attempt == 0 or any(own):
                for ask, asked in zip(asks(how.mode, k, how.seed, panel.prompt.id, order, attempt), own, strict=True):
                    if attempt == 0 or asked:
                        yield _Call(panel, ask, order, attempt, bool(asked))


class _Requests(Collection[Request]):
    """The requests of a round, built anew each time they are gone through."""

    def __init__(self, calls: Callable[[], Iterator[_Call]], how: _How, count: int) -> None:
        self._calls, self._how, self._count = calls, how, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Request]:
        return (_request(call, self._how) for call in self._calls() if call.asked)

    def __contains__(self, request: object) -> bool:
        return any(request == one for one in self)


def _joined(sizes: bytearray, how: _How, phases: Sequence[_Phase]) -> Iterator[tuple[Judgment, ...]]:
    """The judgments of each panel from the files of all rounds: by order, a second attempt after its first."""
    streams = [[spill.read(file, Judgment) for file in phase.files] for phase in phases]
    for index, k in enumerate(sizes):
        found: list[Judgment] = []
        for phase, (first, *again) in zip(phases, streams, strict=True):
            for _ in range(len(phase.orders) * calls_per_order(how.mode, k) if phase.has(index) else 0):
                found.append(next(first))
                if again and found[-1].outcome is Outcome.unparsed:
                    found.append(next(again[0]))
        yield tuple(found)


# ── one call ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _request(call: _Call, how: _How) -> Request:
    answers = tuple(call.panel.responses[i].text for i in call.ask.shown)
    messages = call.panel.prompt.messages
    nonce = fresh_nonce(how.seed, call.order * ATTEMPTS + call.attempt, messages, answers)
    prompt = build_prompt(how.rubric, messages, answers, call.ask.pairs, nonce)
    return Request(model=how.model, messages=prompt, purpose="judge")


def _judgment(call: _Call, how: _How, reply: Reply | None) -> Judgment:
    """The call in terms of response ids."""
    shown = tuple(call.panel.responses[i].id for i in call.ask.shown)
    outcome, reason, verdict = read_reply(reply, len(shown), how.rubric.grammar)
    # Plain values, validated once inside the judgment; building 21 records first would double the cost.
    fields: dict[str, object] = {
        "prompt_id": call.panel.prompt.id,
        "rubric": how.rubric.hash,
        "judge": how.model.name,
        "shown": shown,
        "pair_order": tuple((shown[a], shown[b]) for a, b in call.ask.pairs),
        "outcome": outcome,
        "ranking": None,
        "good_natured": None,
        "pair_verdicts": (),
        "call_id": "" if reply is None else reply.call_id,
        "reason": reason,
        "mode": how.mode,
        "order": call.order,
        "attempt": call.attempt,
    }
    if verdict is not None:
        fields |= {
            "ranking": tuple(shown[i] for i in verdict.ranking),
            "good_natured": verdict.good_natured,
            "pair_verdicts": tuple({"first": shown[a], "second": shown[b], "winner": shown[w]} for a, b, w in verdict.pairs),
            "pair_ties": tuple((shown[a], shown[b]) for a, b in verdict.ties),
            "tied": verdict.tied,
            "score": verdict.score,
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

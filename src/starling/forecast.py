"""What a run will still cost, before it is spent: calls, tokens, dollars and hours, by stage and model.

`plan.count` says what the settings ask for. This takes off what the journal has answered, and gives every number twice:

    expected   replies as long as those in the journal so far; where it has too few, the ASSUMED lengths below
    at most    every reply as long as allowed, every call that may be repeated repeated

Dollars are tokens times `price` of the model, less the discount of a batch API; a model without a price has none, which is not
the same as costing nothing. Hours are calls times seconds per call over `in_flight` and the number of keys, or what the rate
limits under [keys] need if that is longer; a batch API makes no promise but "within a day", so it has none. What is sampled on
this machine has neither. Answers in the journal are told by the model's name and the purpose of the call, not one by
one: calls of other settings (another rubric, another temperature) count as answered too, so a plan for changed settings may
promise too little; run.dir of its own makes it exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

from starling import plan
from starling.config import Config, KeySection, MicroworldJudge, ServerModel, journal_name
from starling.journal import Journal
from starling.plan import Calls
from starling.progress import SILENT, Progress
from starling.records import Prompt
from starling.rundir import JOURNAL_FILE

ASSUMED_REPLY_TOKENS = 300
"""Tokens of an answer: about what the answers in berkeley-nest/Nectar have."""
ASSUMED_VERDICT_TOKENS = 250
"""Tokens of a judge's reply: about what Nectar's judge wrote on seven answers, 21 pairs and a ranking."""
ASSUMED_SECONDS = 0.5
"""Until the first token of a reply; our guess for a server under load."""
ASSUMED_TOKENS_PER_SECOND = 40.0
"""Of one reply among many; our guess for a server under load."""
ASSUMED_CONTESTED = 0.2
"""Share of rankings that leave doubt, where such prompts are judged again. Of GPT-4's replies on seven answers that Nectar's
authors released, .19 and .21 contradict their own pairs or run in a circle (.39 where no pairs were listed for it)."""
ENOUGH_ANSWERS = 20
"""Answers in the journal from which on their means are believed."""


@dataclass(frozen=True)
class Amount:
    """What some calls come to. Dollars and hours are None where they are not known."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None
    hours: float | None


@dataclass(frozen=True)
class Line:
    """What one stage still has to ask of one model."""

    stage: str
    model: str
    kind: str
    calls: int
    """Calls of the stage if nothing fails, those already answered included."""
    answered: int
    """How many of them the journal answers."""
    expected: Amount
    """For what is left."""
    most: Amount
    """For what is left."""
    basis: str
    """Where the expected length of replies comes from: "journal" or "assumed"."""


@dataclass(frozen=True)
class Forecast:
    """The whole plan."""

    lines: tuple[Line, ...]
    stages: dict[str, tuple[Amount, Amount]]
    """Stage → what is left of it, expected and at most. Models of one stage are asked together: its hours are the slowest's."""
    total: tuple[Amount, Amount]
    """Expected and at most; one stage after the other."""
    paid: int
    """Calls that the run has paid for, or may have, so far."""
    warnings: tuple[str, ...] = field(default=())
    """What will stop the run, or makes the numbers incomplete, in words."""


def forecast(
    config: Config, todo: Sequence[str], progress: Progress = SILENT, prompts: Sequence[Prompt] | None = None
) -> Forecast:
    """What the stages `todo`, all those that a run has still to do, will ask for. Writes nothing.

    Args:
        config: the settings.
        todo: names of the stages.
        progress: of reading the prompts.
        prompts: those of `plan.asked_prompts`, if they have been read; else they are read here.

    Raises:
        InputError: a prompt file cannot be used.
        JournalError: the run's journal cannot be read.
    """
    prompts = plan.asked_prompts(config, todo, progress) if prompts is None else prompts
    path = config.run.dir / JOURNAL_FILE
    if not path.is_file():
        return _forecast(config, todo, prompts, lambda model, purpose: Seen())
    with Journal(path) as journal:
        return _forecast(config, todo, prompts, cache(partial(_seen, journal)))


@dataclass(frozen=True)
class Seen:
    """What the journal has of one model and purpose."""

    answered: int = 0
    paid: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    """Summed over the answered calls."""
    tokens: int = 0
    """Of the paid calls, prompt and reply, as the budget counts them."""
    dollars: float = 0.0


Used = Callable[[str | None, str | None], Seen]
"""Name of a model and purpose (None: any) → what the journal has of them."""


def _seen(journal: Journal, model: str | None, purpose: str | None) -> Seen:
    usage = journal.usage(model=model, purpose=purpose)
    return Seen(
        usage.answered, usage.paid, usage.prompt_tokens, usage.completion_tokens, usage.latency_s,
        usage.tokens, usage.dollars,
    )  # fmt: skip


def _forecast(config: Config, todo: Sequence[str], prompts: Sequence[Prompt], used: Used) -> Forecast:
    counted = [stage for stage in todo if stage == "prompts"] + list(_ORDER)  # found answers are known once prompts are done
    most = plan.count(config, counted, prompts)
    likely = plan.count(_with_likely_lengths(config, used), counted, prompts)
    left = Counter({at: used(*at).answered for at in {_at(config, c) for c in most}})
    lines = []
    for calls, expected in zip(most, likely, strict=True):
        at = _at(config, calls)
        answered = min(calls.calls, left[at])
        left[at] -= answered
        if _stage(calls) in todo:
            lines.append(_line(config, calls, expected, answered, used(*at)))
    stages = {stage: _both([line for line in lines if _stage(line) == stage], max) for stage in dict.fromkeys(map(_stage, lines))}
    total = (
        _sum([expected for expected, _ in stages.values()], sum),
        _sum([at_most for _, at_most in stages.values()], sum),
    )
    so_far = used(None, None)
    return Forecast(tuple(lines), stages, total, so_far.paid, tuple(_warnings(config, lines, so_far)))


_ORDER = ("responses", "ranking", "evaluate")
"""In which the stages ask: what the journal answers is counted for the earlier one first."""


def _at(config: Config, calls: Calls) -> tuple[str, str]:
    """The model name and the purpose under which the journal has these calls."""
    purpose = "judge" if config.ranking is not None and calls.model == config.ranking.judge and _judges(calls) else "respond"
    return journal_name(calls.model, config.models[calls.model]), purpose


def _judges(calls: Calls) -> bool:
    return calls.stage != "responses"


def _stage(counted: Calls | Line) -> str:
    """A stage may have a line of calls that it makes only about some prompts: "ranking contested" is of the stage ranking."""
    return counted.stage.partition(" ")[0]


# ── expected lengths ─────────────────────────────────────────────────────────────────────────────────────────────────


def _with_likely_lengths(config: Config, used: Used) -> Config:
    """The settings with the length that replies are expected to have in place of the longest allowed: counting with them gives
    expected tokens, those of the judge's prompts (which hold the answers) included."""
    models: dict[str, Any] = dict(config.models)
    for name, model in config.models.items():
        if isinstance(model, MicroworldJudge):
            continue
        tokens = _reply_tokens(used(journal_name(name, model), "respond"), model.sampling.max_tokens, ASSUMED_REPLY_TOKENS)
        models[name] = model.model_copy(update={"sampling": model.sampling.model_copy(update={"max_tokens": tokens})})
    changed: dict[str, Any] = {"models": models}
    ranking, policy = config.ranking, config.policy
    if ranking is not None:
        spent = used(journal_name(ranking.judge, config.models[ranking.judge]), "judge")
        tokens = _reply_tokens(spent, ranking.max_tokens, ASSUMED_VERDICT_TOKENS)
        changed["ranking"] = ranking.model_copy(update={"max_tokens": tokens})
    sampling = policy.sampling.model_copy(update={"max_tokens": min(policy.sampling.max_tokens, ASSUMED_REPLY_TOKENS)})
    changed["policy"] = policy.model_copy(update={"sampling": sampling})
    return config.model_copy(update=changed)


def _reply_tokens(spent: Seen, longest: int, assumed: int) -> int:
    if spent.answered >= ENOUGH_ANSWERS and spent.completion_tokens:
        return min(longest, -(-spent.completion_tokens // spent.answered))
    return min(longest, assumed)


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _line(config: Config, most: Calls, likely: Calls, answered: int, spent: Seen) -> Line:
    """`most` and `likely` are counts of all the stage's calls; the line is about those that are not answered."""
    left = most.calls - answered
    observed = spent.answered >= ENOUGH_ANSWERS
    every = max(1, most.calls)
    prompt = likely.prompt_tokens / every
    if observed and spent.prompt_tokens:
        prompt = spent.prompt_tokens / spent.answered
    reply = likely.completion_tokens / every
    longest = most.completion_tokens / every
    pace = spent.latency_s / spent.answered if observed and spent.latency_s else _assumed_latency(reply)
    slowest = max(pace, _assumed_latency(longest))
    likely_left = left if most.stage == _stage(most) else round(left * ASSUMED_CONTESTED)
    repeats = config.ranking.retries * most.calls if _at(config, most)[1] == "judge" and config.ranking is not None else 0
    more = left + (most.further_calls or repeats)
    return Line(
        stage=most.stage,
        model=most.model,
        kind=most.kind,
        calls=most.calls,
        answered=answered,
        expected=_amount(config, most.model, likely_left, prompt, reply, pace),
        most=_amount(config, most.model, more, max(prompt, most.prompt_tokens / every), longest, slowest),
        basis="journal" if observed else "assumed",
    )


def _assumed_latency(tokens: float) -> float:
    return ASSUMED_SECONDS + tokens / ASSUMED_TOKENS_PER_SECOND


def _amount(config: Config, label: str, calls: int, prompt: float, reply: float, latency_s: float) -> Amount:
    """`calls` calls with that many tokens each."""
    model = config.models[label]
    prompt_tokens, completion_tokens = round(calls * prompt), round(calls * reply)
    dollars = hours = None
    if isinstance(model, ServerModel):
        if model.price is not None:
            discount = model.batch.discount if model.batch is not None else 0.0
            dollars = model.price.dollars(prompt_tokens, completion_tokens) * (1 - discount)
        if model.batch is None:
            hours = _hours(config, model, calls, prompt_tokens + completion_tokens, latency_s)
    return Amount(calls, prompt_tokens, completion_tokens, dollars, hours)


def _hours(config: Config, model: ServerModel, calls: int, tokens: int, latency_s: float) -> float:
    """The longest of what the calls in flight, the requests a minute and the tokens a minute make of it. Keys share the work;
    one without a limit has none to wait for."""
    needs = [calls * latency_s / (model.in_flight * max(1, len(model.api_key_env))) / 3600]
    limits = [config.keys.get(name, KeySection()) for name in model.api_key_env]
    for amount, rates in ((calls, [k.requests_per_minute for k in limits]), (tokens, [k.tokens_per_minute for k in limits])):
        known = [rate for rate in rates if rate is not None]
        if known and len(known) == len(rates):
            needs.append(amount / sum(known) / 60)
    return max(needs)


def _both(lines: Sequence[Line], hours: Callable[[Iterable[float]], float]) -> tuple[Amount, Amount]:
    return _sum([line.expected for line in lines], hours), _sum([line.most for line in lines], hours)


def _sum(amounts: Sequence[Amount], hours: Callable[[Iterable[float]], float]) -> Amount:
    """All of them; what is not known of any is not known, what is known of some is summed."""
    known_dollars = [a.dollars for a in amounts if a.dollars is not None]
    known_hours = [a.hours for a in amounts if a.hours is not None]
    return Amount(
        calls=sum(a.calls for a in amounts),
        prompt_tokens=sum(a.prompt_tokens for a in amounts),
        completion_tokens=sum(a.completion_tokens for a in amounts),
        dollars=sum(known_dollars) if known_dollars else None,
        hours=hours(known_hours) if known_hours else None,
    )


def _warnings(config: Config, lines: Sequence[Line], so_far: Seen) -> Iterable[str]:
    """Budgets that will not last, and models whose price is not known although others have one."""
    served = [line for line in lines if isinstance(config.models[line.model], ServerModel)]
    left, most = _sum([line.expected for line in served], max), _sum([line.most for line in served], max)
    run = config.run
    for name, budget, paid, to_come, at_most, said in (
        ("budget_calls", run.budget_calls, so_far.paid, left.calls, most.calls, "{:,} calls"),
        ("budget_tokens", run.budget_tokens, so_far.tokens, _tokens(left), _tokens(most), "{:,} tokens"),
        ("budget_dollars", run.budget_dollars, so_far.dollars, left.dollars or 0, most.dollars or 0, "{:,.2f} dollars"),
    ):
        if budget is None or paid + at_most <= budget:
            continue
        words = f"run.{name} = {budget:,}: {said.format(paid)} are paid for, {said.format(to_come)} are to come"
        if paid + to_come > budget:
            yield f"exceeds {words}; the run will stop there"
        else:
            yield f"may exceed {words}, and at most {said.format(at_most)} with those that have to be repeated"
    unpriced = dict.fromkeys(line.model for line in served if line.expected.dollars is None and line.expected.calls)
    if unpriced:
        yield f"no price is set for {', '.join(unpriced)}: the dollars leave them out (models.NAME.price)"


def _tokens(amount: Amount) -> int:
    return amount.prompt_tokens + amount.completion_tokens


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def rows(found: Forecast) -> list[dict[str, Any]]:
    """One row per line, then one per stage with several models, then the total: for a table. Dollars and hours only where
    some are known."""
    listed = [
        _row(line.stage, line.model, line.calls, line.answered, line.expected, line.most, line.basis) for line in found.lines
    ]
    for stage, (expected, most) in found.stages.items():
        own = [line for line in found.lines if _stage(line) == stage]
        if len(own) > 1:
            calls, answered = sum(line.calls for line in own), sum(line.answered for line in own)
            listed.append(_row(stage, "all", calls, answered, expected, most, ""))
    if len(found.stages) > 1:
        calls, answered = sum(line.calls for line in found.lines), sum(line.answered for line in found.lines)
        listed.append(_row("all", "all", calls, answered, *found.total, ""))
    empty = {name for name in ("dollars", "hours", "most dollars", "most hours") if all(row[name] is None for row in listed)}
    return [{name: cell for name, cell in row.items() if name not in empty} for row in listed]


def _row(stage: str, model: str, calls: int, answered: int, expected: Amount, most: Amount, basis: str) -> dict[str, Any]:
    return {
        "stage": stage,
        "model": model,
        "calls": calls,
        "answered": answered,
        "prompt tokens": expected.prompt_tokens,
        "reply tokens": expected.completion_tokens,
        "dollars": _rounded(expected.dollars),
        "hours": _rounded(expected.hours),
        "most calls": most.calls,
        "most tokens": most.prompt_tokens + most.completion_tokens,
        "most dollars": _rounded(most.dollars),
        "most hours": _rounded(most.hours),
        "lengths": basis,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def as_json(found: Forecast) -> dict[str, Any]:
    """Everything as plain JSON."""
    return {
        "calls": [asdict(line) for line in found.lines],
        "stages": {stage: {"expected": asdict(a), "most": asdict(b)} for stage, (a, b) in found.stages.items()},
        "total": {"expected": asdict(found.total[0]), "most": asdict(found.total[1])},
        "paid": found.paid,
        "warnings": list(found.warnings),
    }

"""What all benchmarks share: asking models and judge, both orders, repeats, and how far the judge can be trusted.

Everything is asked through the endpoints of a `Job`, so answered calls are never asked again, a killed benchmark goes on where it
stopped, and budget, retries and batch APIs are those of the ranking stage. Repeats are the same requests under further sample
numbers. A call without a verdict is a named outcome, never a number.

Two protocols: `compare_both` and `grade` ask by Starling's own rubrics (`starling.judge.given`), `ask_official` sends a user's
copy of an official prompt as it is.

Sources: both orders, and what counts as agreement with people, from MT-Bench (arXiv 2306.05685, sections 3.4 and 4.2); soft
verdicts from AlpacaEval 2. Departures: every interval resamples prompts, since verdicts about one prompt are not independent;
position gap and repeat spread, which the official tools do not show, stand beside every table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from starling import stats
from starling.chat import with_system
from starling.config import RankingSection
from starling.endpoint import Endpoint, HttpEndpoint, Reply, Request, ask_together
from starling.errors import ConfigError, EndpointError, UsageError
from starling.evaluate.results import PURPOSE, Job, JudgeFacts
from starling.judge.calls import failure_of
from starling.judge.given import Said, Shown, agreed, ask_given, winner_of
from starling.judge.verdict import NO_LOGPROBS
from starling.metering import Meter, Tap
from starling.records import Messages, ModelRef, Outcome, Sampling
from starling.stats import Interval
from starling.stats_agreement import kappa_interval

# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def answer(
    job: Job,
    conversations: Sequence[Messages] | Mapping[str, Sequence[Messages]],
    sampling: Sampling,
    *,
    samples: int = 1,
) -> dict[str, list[Reply]]:
    """What each model says to each conversation; models behind servers are asked at the same time.

    Args:
        conversations: for all models, or by label where each has its own history; each ends with a user turn, and the model's
            system message is put before it.
        sampling: how all of them draw.
        samples: draws per conversation.

    Returns:
        by label one reply per conversation and sample, the samples of a conversation side by side. A call that failed is a Reply
        whose finish is error.

    Raises:
        BudgetError, EndpointError: as the endpoints'; everything answered is in the journal.
    """
    asks: list[tuple[Endpoint, Collection[Request]]] = []
    for label, endpoint in job.models.items():
        model = _with(endpoint.model, sampling)
        own = conversations[label] if isinstance(conversations, Mapping) else conversations
        asks.append((endpoint, _Conversations(model, own, samples, job.systems.get(label))))
    job.progress.start("answers", sum(len(requests) for _, requests in asks))
    replies = ask_together(asks, job.progress)
    found = {label: list(said) for label, said in zip(job.models, replies, strict=True)}
    job.progress.finish()
    return found


def _with(model: ModelRef, sampling: Sampling) -> ModelRef:
    return model.model_copy(update={"sampling": sampling})


class _Conversations(Collection[Request]):
    """Requests of one model, built anew each time they are gone through."""

    def __init__(self, model: ModelRef, conversations: Sequence[Messages], samples: int, system: str | None = None) -> None:
        self._model, self._conversations, self._samples, self._system = model, conversations, samples, system

    def __len__(self) -> int:
        return len(self._conversations) * self._samples

    def __iter__(self) -> Iterator[Request]:
        for messages in self._conversations:
            asked = with_system(messages, self._system)
            for sample in range(self._samples):
                yield Request(model=self._model, messages=asked, sample=sample, purpose=PURPOSE)

    def __contains__(self, request: object) -> bool:
        return any(request == one for one in self)


# ── the judge ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Contest:
    """Two answers to the last user turn of one conversation."""

    id: str
    messages: Messages
    a: str
    """Label of the model that gave `text_a`."""
    b: str
    text_a: str
    text_b: str
    reference: str = ""
    """A good answer to help the judge; "" for none."""

    def __post_init__(self) -> None:
        _check_last_turn(self.messages, self.id)


@dataclass(frozen=True)
class Vote:
    """One verdict about a contest. Law: `preference_b` is None ⇔ the outcome is not ranked."""

    preference_b: float | None
    """0 = a is better, 1 = b is, 0.5 = a tie; anything between when asked softly."""
    outcome: Outcome
    reason: str
    call_id: str
    """Key in the journal; "" where no call was made."""
    first: Outcome | None = None
    """What a first call came to whose reply did not parse, so that this is the verdict of a second one."""
    asked: bool = True
    """False for identical answers, about which nobody was asked."""


@dataclass(frozen=True)
class Question:
    """One answer to the last user turn of a conversation, to be graded."""

    id: str
    messages: Messages
    text: str
    reference: str = ""

    def __post_init__(self) -> None:
        _check_last_turn(self.messages, self.id)


@dataclass(frozen=True)
class Grade:
    """A grade from 1 to 10. Law: `score` is None ⇔ the outcome is not ranked."""

    score: float | None
    outcome: Outcome
    reason: str
    call_id: str
    first: Outcome | None = None
    """As for `Vote`."""


def compare_both(job: Job, contests: Sequence[Contest], *, soft: bool, repeats: int = 1) -> list[tuple[tuple[Vote, Vote], ...]]:
    """The judge's verdicts about contests, each in both orders.

    Args:
        contests: equal texts are a tie without a call.
        soft: by the log-probabilities of a single letter, not by a written verdict.
        repeats: how often everything is asked.

    Returns:
        per contest and repeat the verdict with a shown first and that with b shown first, both in terms of b.

    Raises:
        UsageError: the job has no judge, or no positive number of repeats is wanted.
        ConfigError: soft verdicts are wanted of an API without log-probabilities.
        EndpointError: the server gave none with the first call; or, as BudgetError, from the endpoint. Everything answered is in
            the journal.
    """
    judge = _judge(job, repeats)
    differing = [contest for contest in contests if contest.text_a != contest.text_b]
    items = [
        Shown(contest.messages, texts, contest.reference or None, sample)
        for sample in range(repeats)
        for contest in differing
        for texts in ((contest.text_a, contest.text_b), (contest.text_b, contest.text_a))
    ]
    if soft and items:
        _check_logprobs(judge, lambda tap: ask_given(items[:1], "letter", tap, how(job), job.seed)[0].reason == str(NO_LOGPROBS))
    said = ask_given(items, "letter" if soft else "internal", judge, how(job), job.seed, job.progress, "verdicts")
    votes = [_vote(one, b_first=n % 2 == 1) for n, one in enumerate(said)]
    pairs = list(zip(votes[::2], votes[1::2], strict=True))
    rounds = [iter(pairs[r * len(differing) : (r + 1) * len(differing)]) for r in range(repeats)]
    return [tuple((_SAME, _SAME) if contest.text_a == contest.text_b else next(one) for one in rounds) for contest in contests]


def grade(job: Job, questions: Sequence[Question], *, repeats: int = 1) -> list[tuple[Grade, ...]]:
    """The judge's grades, 1 to 10, per question and repeat.

    Raises:
        UsageError: the job has no judge, or no positive number of repeats is wanted.
        BudgetError, EndpointError: as the endpoint's; everything answered is in the journal.
    """
    judge = _judge(job, repeats)
    items = [Shown(q.messages, (q.text,), q.reference or None, sample) for sample in range(repeats) for q in questions]
    said = ask_given(items, "pointwise", judge, how(job), job.seed, job.progress, "grades")
    grades = [_grade(one) for one in said]
    return [tuple(grades[n :: len(questions)]) for n in range(len(questions))]


def ask_official(job: Job, prompts: Sequence[Messages], sampling: Sampling, *, repeats: int = 1) -> list[tuple[Reply, ...]]:
    """The judge's replies to prompts that somebody else wrote, per prompt and repeat; whoever asks parses them.

    Args:
        prompts: what is sent, as it is.
        sampling: as the official tool draws; with `top_logprobs` the replies have `first_token`.

    Raises:
        UsageError: the job has no judge, or no positive number of repeats is wanted.
        ConfigError, EndpointError, BudgetError: as `compare_both`, where log-probabilities are wanted.
    """
    judge = _judge(job, repeats)
    requests = _Conversations(_with(judge.model, sampling), prompts, repeats)
    if sampling.top_logprobs and prompts:
        one = _Conversations(_with(judge.model, sampling), prompts[:1], 1)
        _check_logprobs(judge, lambda tap: _has_none(tap.complete_all(one)[0]))
    job.progress.start("verdicts", len(requests))
    replies = judge.complete_all(requests, job.progress)
    job.progress.finish()
    return [tuple(replies[start : start + repeats]) for start in range(0, len(replies), repeats)]


def how(job: Job) -> RankingSection:
    """How the job's judge is asked."""
    return job.ranking or RankingSection(judge="judge")


def _check_logprobs(judge: Tap, has_none: Callable[[Endpoint], bool]) -> None:
    """Find out with the first call whether a server gives log-probabilities, not after paying for all of them. The call is one of
    those that follow, so the journal answers it then. A batch API is not tried out: it may take a day to say so.

    Raises:
        ConfigError: the API has no log-probabilities.
        EndpointError: the server gave none.
    """
    name = judge.model.name
    if judge.model.provider == "anthropic":
        raise ConfigError(
            "The judge's API gives no log-probabilities, and a soft verdict is read from nothing else",
            where=f"the judge {name}, a model of type anthropic",
            cure="ask for written verdicts, or name a judge of type openai or local",
        )
    if isinstance(judge.endpoint, HttpEndpoint) and has_none(Tap(judge.endpoint, Meter(), purpose=PURPOSE, dry=judge.dry)):
        raise EndpointError(
            "The judge's server answered without the log-probabilities that it was asked for",
            where=f"the judge {name}, first call of a soft comparison",
            cure="ask for written verdicts, or use a server that gives them: OpenAI's models without reasoning, vLLM, SGLang",
        )


def _has_none(reply: Reply) -> bool:
    return failure_of(reply) is None and not reply.first_token


def _judge(job: Job, repeats: int) -> Tap:
    if job.judge is None:
        raise UsageError("There is no judge to ask", where="the benchmark's settings", cure="name a judge under [models]")
    if repeats < 1:
        raise UsageError(f"{repeats} repeats ask nothing", where="repeats", cure="use 1 or more")
    assert isinstance(job.judge, Tap), "a Job puts a tap before its judge"
    return job.judge


def _check_last_turn(messages: Messages, what: str) -> None:
    if not messages or messages[-1].role != "user":
        raise ValueError(f"the conversation of {what} must end with the user turn that is answered")


_SAME = Vote(0.5, Outcome.ranked, "identical answers", "", asked=False)


def _vote(said: Said, *, b_first: bool) -> Vote:
    """In terms of b, whoever was shown first."""
    second = said.preference
    if said.verdict is not None:
        second = {"a": 0.0, "b": 1.0, "tie": 0.5}[winner_of(said.verdict) or "tie"]
    towards_b = second if second is None or not b_first else 1.0 - second
    return Vote(towards_b, said.outcome, said.reason, said.call_id, said.first)


def _grade(said: Said) -> Grade:
    score = None if said.verdict is None or said.verdict.score is None else float(said.verdict.score)
    return Grade(score, said.outcome, said.reason, said.call_id, said.first)


# ── what verdicts come to ────────────────────────────────────────────────────────────────────────────────────────────


def both_orders(first: Vote, second: Vote) -> float | None:
    """The written verdicts of both orders as one; see `judge.given.agreed`."""
    return agreed(first.preference_b, second.preference_b)


def mean_preference(first: Vote, second: Vote) -> float | None:
    """Soft verdicts of both orders as one: their mean; None when one of them is missing."""
    if first.preference_b is None or second.preference_b is None:
        return None
    return (first.preference_b + second.preference_b) / 2


def position_gap(pairs: Sequence[tuple[Vote, Vote]], clusters: Sequence[str], *, resamples: int, seed: int) -> Interval | None:
    """Share of verdicts for the answer shown first minus share for the second, −1 … 1; 0 for a judge without a taste for places.

    Identical answers, about which nobody was asked, and pairs with a verdict missing are left out.

    Args:
        pairs: verdicts with a shown first and with b shown first.
        clusters: each pair's prompt.

    Returns:
        the gap with its clustered 95 % interval, n the verdicts behind it; None without any.
    """
    gaps, kept = [], []
    for (first, second), cluster in zip(pairs, clusters, strict=True):
        if first.preference_b is not None and second.preference_b is not None and first.asked:
            gaps.append(second.preference_b - first.preference_b)
            kept.append(cluster)
    if not gaps:
        return None
    found = stats.bootstrap_mean(gaps, kept, resamples=resamples, seed=seed)
    return Interval(found.mean, found.low, found.high, 2 * found.n, found.clusters)


def repeat_spread(scores: Sequence[float | None]) -> float | None:
    """Standard deviation (n − 1) of a table's score over repeated judging; None for fewer than two scores."""
    known = [score for score in scores if score is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def outcomes_of(verdicts: Sequence[Vote] | Sequence[Grade]) -> dict[str, int]:
    """Every question to the judge by what it came to, first calls that had to be asked again included; no call was made about
    identical answers, and none counts."""
    found = Counter(v.outcome.value for v in verdicts if not isinstance(v, Vote) or v.asked)
    found.update(v.first.value for v in verdicts if v.first is not None)
    return dict(sorted(found.items()))


def unparsed_share(outcomes: Mapping[str, int]) -> float | None:
    """Share of calls without a verdict, for whatever reason; None without calls."""
    calls = sum(outcomes.values())
    return 1 - outcomes.get(Outcome.ranked.value, 0) / calls if calls else None


@dataclass(frozen=True)
class HumanAgreement:
    """How often a judge says what people say about the same pairs."""

    share: Interval
    """Votes of people with which the judge agrees; n the votes."""
    decided: Interval | None
    """The same among votes in which neither calls it a tie (MT-Bench's setup S2)."""
    kappa: Interval | None
    """Cohen's kappa: agreement beyond chance."""


def human_agreement(
    judged: Sequence[float | None], voted: Sequence[float], clusters: Sequence[str], *, resamples: int, seed: int
) -> HumanAgreement | None:
    """Agreement of the judge with single votes of people; a pair with several votes comes several times.

    Args:
        judged: per vote the judge's preference for b about the same pair (as of `both_orders`); above 0.5 is b, below is a, 0.5 a
            tie. Votes about pairs without a verdict (None) are left out.
        voted: per vote 0 = a, 1 = b, 0.5 = a tie of any kind.
        clusters: per vote the prompt.
    """
    rows = [
        (float(np.sign(said - 0.5)), float(np.sign(vote - 0.5)), cluster)
        for said, vote, cluster in zip(judged, voted, clusters, strict=True)
        if said is not None
    ]
    share = _same_share(rows, resamples, seed)
    if share is None:
        return None
    said, vote, kept = zip(*rows, strict=True)
    decided = _same_share([row for row in rows if row[0] and row[1]], resamples, seed)
    return HumanAgreement(share, decided, kappa_interval(said, vote, kept, resamples=resamples, seed=seed))


def _same_share(rows: Sequence[tuple[float, float, str]], resamples: int, seed: int) -> Interval | None:
    if not rows:
        return None
    return stats.bootstrap_mean([float(a == b) for a, b, _ in rows], [c for *_, c in rows], resamples=resamples, seed=seed)


def facts(
    job: Job,
    *,
    outcomes: Mapping[str, int],
    position: Interval | None = None,
    spread: float | None = None,
    repeats: int = 1,
    agreement: Interval | None = None,
) -> JudgeFacts:
    """How far the job's judge can be trusted, and what all its calls so far came to.

    Args:
        outcomes: of its verdicts, see `outcomes_of`.
        position: see `position_gap`.
        spread: see `repeat_spread`.
        agreement: share of votes of people, see `human_agreement`; its n is the number of votes.

    Raises:
        UsageError: the job has no judge.
    """
    judge = _judge(job, repeats)
    cost = judge.cost()
    return JudgeFacts(
        judge=judge.model.name,
        calls=cost.calls,
        outcomes=dict(outcomes),
        unparsed_share=unparsed_share(outcomes),
        position_gap=None if position is None else position.mean,
        position_gap_ci=None if position is None else (position.low, position.high),
        repeat_spread=spread,
        repeats=repeats,
        human_agreement=None if agreement is None else agreement.mean,
        human_agreement_ci=None if agreement is None else (agreement.low, agreement.high),
        human_votes=0 if agreement is None else agreement.n,
        prompt_tokens=cost.prompt_tokens,
        completion_tokens=cost.completion_tokens,
        estimated=cost.estimated,
        dollars=cost.dollars,
        seconds=cost.seconds,
    )

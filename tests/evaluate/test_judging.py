"""What benchmarks share: both orders, repeats, grades, what verdicts come to; then the same against a server that fails."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starling.config import AnthropicModel, MicroworldJudge, OpenAIModel, RankingSection
from starling.endpoint import Endpoint, HttpEndpoint, Reply, Request, ScriptedEndpoint
from starling.endpoint.batches import BatchApiEndpoint
from starling.errors import BudgetError, ConfigError, EndpointError, UsageError
from starling.evaluate import judging
from starling.evaluate.judging import Contest, Grade, Question, Vote
from starling.evaluate.results import Job
from starling.journal import Budget, Journal
from starling.judge.rubric import read_prompt, read_rubric
from starling.judge.verdict import FORMS, Verdict, write_reply
from starling.metering import Meter, Tap
from starling.microworld import judge as microworld_judge
from starling.microworld import world
from starling.progress import SILENT
from starling.records import Finish, Message, Messages, ModelRef, Outcome, Sampling
from tests.e2e.collecting import asked_again_after_an_answer
from tests.fakes.faults import JUDGE, Fault
from tests.fakes.process import ROOT, FakeServer

Answer = Callable[[Request], str | Reply]
REF = ModelRef(provider="scripted", name="the-judge", sampling=Sampling(temperature=0))


def ask(text: str) -> Messages:
    return (Message(role="user", content=text),)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as made:
        yield made


@pytest.fixture
def make_job(tmp_path: Path, journal: Journal) -> Callable[..., Job]:
    def make(judge: Answer | Endpoint | None, **given: Any) -> Job:
        endpoint = ScriptedEndpoint(REF, judge, journal) if callable(judge) else judge
        return Job(**({"models": {}, "systems": {}, "judge": endpoint, "folder": tmp_path, "progress": SILENT} | given))

    return make


def larger(request: Request) -> str | Reply:
    """A judge of numbers in every rubric; softly it is as sure as the numbers differ, and likes the first by 0.1."""
    material, grammar = read_prompt(request.messages), read_rubric(request.messages).grammar
    form = FORMS[grammar]
    values = [float(text) for text in material.answers]
    if form.letter:
        second = min(max(0.4 + values[1] - values[0], 0.0001), 0.9999)
        return Reply("?", Finish.length, "", first_token=(("A", math.log(1 - second)), (" B", math.log(second))))
    order = tuple(sorted(range(len(values)), key=lambda i: -values[i]))
    pairs = ((0, 1, order[0]),) if form.pairs else ()
    return write_reply(Verdict(order, True, pairs, score=round(values[0]) if form.score else None), grammar)


# ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_contest_is_asked_in_both_orders_and_told_in_terms_of_b(make_job: Callable[..., Job]) -> None:
    seen: list[tuple[str, ...]] = []

    def judge(request: Request) -> str | Reply:
        seen.append(read_prompt(request.messages).answers)
        return larger(request)

    contests = [Contest("x", ask("?"), "one", "two", "1", "2"), Contest("y", ask("!"), "one", "two", "5", "3", "4")]
    found = judging.compare_both(make_job(judge), contests, soft=False)
    assert seen == [("1", "2"), ("2", "1"), ("5", "3"), ("3", "5")]
    assert [[(v.preference_b, v.outcome, v.asked) for v in votes] for [votes] in found] == [
        [(1.0, Outcome.ranked, True)] * 2,
        [(0.0, Outcome.ranked, True)] * 2,
    ]
    assert len({v.call_id for [votes] in found for v in votes}) == 4
    assert [judging.both_orders(*votes) for [votes] in found] == [1.0, 0.0]


def test_soft_votes_keep_how_sure_the_judge_is(make_job: Callable[..., Job]) -> None:
    [[(first, second)]] = judging.compare_both(make_job(larger), [Contest("x", ask("?"), "a", "b", "1", "1.2")], soft=True)
    # Shown a, b: p(b) = 0.4 + 0.2. Shown b, a: p(a) = 0.4 − 0.2, so b has 0.8. The mean is free of the taste for the first.
    assert (first.preference_b, second.preference_b) == pytest.approx((0.6, 0.8))
    assert judging.mean_preference(first, second) == pytest.approx(0.7)
    gap = judging.position_gap([(first, second)], ["x"], resamples=100, seed=0)
    assert gap is not None
    assert gap.mean == pytest.approx(0.2)  # p(first shown) − p(second): 0.4 − 0.6 and 0.8 − 0.2, on average 0.2


def test_identical_answers_are_a_tie_that_nobody_is_asked_about(make_job: Callable[..., Job]) -> None:
    job = make_job(lambda request: pytest.fail("asked"))
    for soft in (False, True):
        found = judging.compare_both(job, [Contest("x", ask("?"), "a", "b", "same", "same")], soft=soft, repeats=2)
        votes = [v for pair in found[0] for v in pair]
        assert [(v.preference_b, v.outcome, v.call_id, v.asked) for v in votes] == [(0.5, Outcome.ranked, "", False)] * 4
        assert judging.outcomes_of(votes) == {}
        assert judging.position_gap(found[0], ["x", "x"], resamples=100, seed=0) is None
    assert judging.facts(job, outcomes={}).calls == 0


def test_repeats_are_the_same_requests_under_further_sample_numbers(make_job: Callable[..., Job], journal: Journal) -> None:
    seen: list[Request] = []

    def judge(request: Request) -> str | Reply:
        seen.append(request)
        return larger(request) if request.sample else "no verdict"

    settings = RankingSection(judge="j", retries=0)
    contests = [Contest(str(n), ask(str(n)), "a", "b", "1", str(n)) for n in (1, 2, 3)]  # the first is a tie without a call
    found = judging.compare_both(make_job(judge, ranking=settings), contests, soft=False, repeats=3)
    assert [len(votes) for votes in found] == [3, 3, 3]
    assert [[v.preference_b for v in pair] for pair in found[1]] == [[None, None], [1.0, 1.0], [1.0, 1.0]]
    assert [v.outcome for v in found[2][0]] == [Outcome.unparsed] * 2
    assert Counter(r.sample for r in seen) == {0: 4, 1: 4, 2: 4}
    assert len({(r.model, r.messages) for r in seen}) == 4
    asked = len(seen)
    assert judging.compare_both(make_job(judge, ranking=settings), contests, soft=False, repeats=3) == found
    assert len(seen) == asked, "the journal answers"
    assert journal.usage(purpose="evaluate").answered == 12


def test_grades(make_job: Callable[..., Job]) -> None:
    talk = (*ask("1 + 1?"), Message(role="assistant", content="2"), *ask("And 2 + 2?"))
    seen: list[Request] = []

    def judge(request: Request) -> str | Reply:
        seen.append(request)
        return larger(request)

    questions = [Question("x", talk, "9", "4"), Question("y", ask("?"), "3")]
    found = judging.grade(make_job(judge), questions, repeats=2)
    assert [[g.score for g in grades] for grades in found] == [[9.0, 9.0], [3.0, 3.0]]
    first = read_prompt(seen[0].messages)
    assert (first.messages, first.answers, first.reference) == (talk, ("9",), "4")
    assert judging.outcomes_of([g for grades in found for g in grades]) == {"ranked": 4}


def test_a_second_call_counts_as_well_as_the_first(make_job: Callable[..., Job]) -> None:
    calls: list[Request] = []

    def judge(request: Request) -> str | Reply:
        calls.append(request)
        return larger(request) if len(calls) > 1 else "hm"

    job = make_job(judge)
    [[grade]] = judging.grade(job, [Question("x", ask("?"), "7")])
    assert grade == Grade(7.0, Outcome.ranked, "", calls[1].key, Outcome.unparsed)
    outcomes = judging.outcomes_of([grade])
    assert outcomes == {"ranked": 1, "unparsed": 1}
    facts = judging.facts(job, outcomes=outcomes)
    assert (facts.calls, facts.unparsed_share) == (2, 0.5)


def test_official_prompts_are_sent_as_they_are(make_job: Callable[..., Job]) -> None:
    seen: list[Request] = []

    def judge(request: Request) -> Reply:
        seen.append(request)
        return Reply("m", Finish.length, "", first_token=(("m", -0.1), ("M", -2.5)))

    prompts = [(Message(role="system", content="Judge."), *ask(text)) for text in ("x", "y")]
    sampling = Sampling(temperature=0, max_tokens=1, top_logprobs=5)
    found = judging.ask_official(make_job(judge), prompts, sampling, repeats=2)
    assert [[r.first_token[0] for r in replies] for replies in found] == [[("m", -0.1)] * 2] * 2
    assert [(r.messages, r.sample) for r in seen] == [(p, n) for p in prompts for n in (0, 1)]
    assert {r.model.sampling for r in seen} == {sampling}
    assert [[r.call_id for r in replies] for replies in found] == [[seen[0].key, seen[1].key], [seen[2].key, seen[3].key]]


def test_models_answer_with_their_system_message_and_may_have_histories_of_their_own(
    make_job: Callable[..., Job], journal: Journal
) -> None:
    def echo(request: Request) -> str:
        return f"{request.model.name} {request.sample}: " + " / ".join(m.content for m in request.messages)

    models = {label: ScriptedEndpoint(ModelRef(provider="scripted", name=label), echo, journal) for label in ("one", "two")}
    job = make_job(None, models=models, systems={"two": "Be brief."})
    sampling = Sampling(temperature=0.7, max_tokens=9)
    found = judging.answer(job, [ask("x"), ask("y")], sampling, samples=2)
    assert {label: [r.text for r in replies] for label, replies in found.items()} == {
        "one": ["one 0: x", "one 1: x", "one 0: y", "one 1: y"],
        "two": ["two 0: Be brief. / x", "two 1: Be brief. / x", "two 0: Be brief. / y", "two 1: Be brief. / y"],
    }
    own = judging.answer(job, {"one": [ask("p")], "two": [ask("q")]}, sampling)
    assert [r.text for replies in own.values() for r in replies] == ["one 0: p", "two 0: Be brief. / q"]
    stored = journal.request(own["one"][0].call_id)
    assert stored is not None
    assert (stored["model"]["sampling"]["temperature"], stored["purpose"]) == (0.7, "evaluate")


def test_what_cannot_be_asked_is_said(make_job: Callable[..., Job], journal: Journal) -> None:
    with pytest.raises(UsageError, match="no judge"):
        judging.grade(make_job(None), [])
    with pytest.raises(UsageError, match="0 repeats"):
        judging.compare_both(make_job(larger), [], soft=True, repeats=0)
    talk = (*ask("?"), Message(role="assistant", content="!"))
    for build in (lambda: Contest("x", talk, "a", "b", "1", "2"), lambda: Question("x", (), "1")):
        with pytest.raises(ValueError, match="must end with the user turn"):
            build()
    settings = AnthropicModel(type="anthropic", name="claude", base_url=("http://127.0.0.1:9/v1",), api_key_env=())
    job = make_job(HttpEndpoint("claude", settings, journal))
    with pytest.raises(ConfigError, match="no log-probabilities"):
        judging.compare_both(job, [Contest("x", ask("?"), "a", "b", "1", "2")], soft=True)
    with pytest.raises(ConfigError, match="no log-probabilities"):
        judging.ask_official(job, [ask("?")], Sampling(top_logprobs=5))
    assert journal.is_empty()


# ── what verdicts come to ────────────────────────────────────────────────────────────────────────────────────────────


def vote(preference: float | None) -> Vote:
    return Vote(preference, Outcome.unparsed if preference is None else Outcome.ranked, "", "key")


@pytest.mark.parametrize(
    ("first", "second", "rule", "mean"),
    [
        (1.0, 1.0, 1.0, 1.0), (0.0, 0.0, 0.0, 0.0), (0.5, 0.5, 0.5, 0.5), (1.0, 0.0, 0.5, 0.5), (1.0, 0.5, 0.5, 0.75),
        (0.5, 0.0, 0.5, 0.25), (None, 1.0, None, None), (0.0, None, None, None),
    ],
)  # fmt: skip
def test_both_orders_as_one(first: float | None, second: float | None, rule: float | None, mean: float | None) -> None:
    assert judging.both_orders(vote(first), vote(second)) == rule
    assert judging.mean_preference(vote(first), vote(second)) == mean


def test_position_gap_by_hand() -> None:
    pairs = [(0.0, 1.0), (0.0, 0.0), (1.0, 1.0), (0.5, 1.0), (None, 1.0)]  # the first shown wins twice, …, once and a tie
    found = judging.position_gap([(vote(a), vote(b)) for a, b in pairs], ["p", "p", "q", "r", "s"], resamples=500, seed=1)
    assert found is not None
    # +2, 0, 0, +1 over the 8 verdicts of pairs that have both
    assert (found.mean, found.n, found.clusters) == (pytest.approx(3 / 8), 8, 3)
    assert found.low <= found.mean <= found.high
    assert judging.position_gap([(vote(None), vote(1.0))], ["p"], resamples=100, seed=0) is None


def test_swapping_the_sides_leaves_the_gap_and_turns_the_preference() -> None:
    rng = np.random.default_rng(0)
    pairs = [(vote(float(a)), vote(float(b))) for a, b in rng.random((30, 2))]
    clusters = [str(n // 2) for n in range(30)]
    turned = [(vote(1 - b.preference_b), vote(1 - a.preference_b)) for a, b in pairs]  # type: ignore[operator]
    one, other = (judging.position_gap(p, clusters, resamples=200, seed=0) for p in (pairs, turned))
    assert one is not None
    assert other is not None
    assert (one.mean, one.low, one.high) == pytest.approx((other.mean, other.low, other.high))
    for pair, back in zip(pairs, turned, strict=True):
        assert judging.mean_preference(*pair) == pytest.approx(1 - (judging.mean_preference(*back) or 0))


def test_repeat_spread_by_hand() -> None:
    assert judging.repeat_spread([6.0, 7.0, 8.0]) == 1.0
    assert judging.repeat_spread([6.0, None, 8.0]) == pytest.approx(math.sqrt(2))
    assert judging.repeat_spread([6.0]) is None
    assert judging.repeat_spread([]) is None


def test_unparsed_share_is_everything_without_a_verdict() -> None:
    assert judging.unparsed_share({"ranked": 6, "unparsed": 1, "provider_error": 1}) == 0.25
    assert judging.unparsed_share({"refused": 2}) == 1.0
    assert judging.unparsed_share({}) is None


def test_agreement_with_people_by_hand() -> None:
    judged = [1.0, 1.0, 0.0, 0.5, 0.5, 0.8, 1.0, None]
    voted = [1.0, 0.0, 0.0, 0.5, 1.0, 1.0, 0.5, 1.0]
    found = judging.human_agreement(judged, voted, ["p", "p", "q", "r", "s", "t", "v", "u"], resamples=300, seed=0)
    assert found is not None
    assert (found.share.mean, found.share.n, found.share.clusters) == (pytest.approx(4 / 7), 7, 6)
    assert found.decided is not None
    assert (found.decided.mean, found.decided.n) == (3 / 4, 4)
    # Labels a, tie, b: judge 1, 2, 4 times, people 2, 2, 3. Chance agrees with (1·2 + 2·2 + 4·3) / 49 = 18/49.
    assert found.kappa is not None
    assert found.kappa.mean == pytest.approx((4 / 7 - 18 / 49) / (1 - 18 / 49))
    assert judging.human_agreement([None], [1.0], ["p"], resamples=100, seed=0) is None
    ties = judging.human_agreement([0.5], [0.5], ["p"], resamples=100, seed=0)
    assert ties is not None
    assert (ties.share.mean, ties.decided, ties.kappa) == (1.0, None, None)


def test_facts_say_what_was_measured_and_what_it_cost(make_job: Callable[..., Job]) -> None:
    def judge(request: Request) -> Reply:
        return Reply("Good natured: yes\nScore: 7", Finish.stop, "", "", 1000, 100)

    job = make_job(judge, judge_price=(2.0, 10.0))
    grades = judging.grade(job, [Question(str(n), ask(str(n)), "x") for n in range(4)], repeats=2)
    gap = judging.position_gap([(vote(0.0), vote(1.0))], ["p"], resamples=100, seed=0)
    people = judging.human_agreement([1.0, 1.0], [1.0, 0.0], ["p", "q"], resamples=100, seed=0)
    assert people is not None
    outcomes = judging.outcomes_of([g for row in grades for g in row])
    facts = judging.facts(job, outcomes=outcomes, position=gap, spread=0.16, repeats=2, agreement=people.share)
    assert (facts.judge, facts.calls, facts.outcomes, facts.unparsed_share) == ("the-judge", 8, {"ranked": 8}, 0.0)
    assert (facts.prompt_tokens, facts.completion_tokens, facts.estimated) == (8000, 800, 0)
    assert facts.dollars == pytest.approx(0.016 + 0.008)
    assert (facts.position_gap, facts.position_gap_ci, facts.repeat_spread, facts.repeats) == (1.0, (1.0, 1.0), 0.16, 2)
    assert (facts.human_agreement, facts.human_votes) == (0.5, 2)
    assert facts.seconds is None  # a script takes no time worth the name


def test_each_job_counts_its_own_calls(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job(larger)
    judging.grade(job, [Question("x", ask("?"), "3")])
    other = replace(job, folder=tmp_path / "other")
    judging.grade(other, [Question("x", ask("?"), "3"), Question("y", ask("!"), "4")])
    assert [judging.facts(j, outcomes={}).calls for j in (job, other)] == [1, 2]


def test_a_dry_judge_says_what_would_be_asked(make_job: Callable[..., Job], journal: Journal) -> None:
    endpoint = ScriptedEndpoint(REF, larger, journal)
    job = make_job(Tap(endpoint, Meter(), dry=True), judge_price=(1.0, 1.0))
    contests = [Contest(str(n), ask(str(n)), "a", "b", "1", "2") for n in range(5)]
    for soft in (False, True):
        judging.compare_both(job, contests, soft=soft, repeats=2)
    facts = judging.facts(job, outcomes={})
    assert (facts.calls, journal.is_empty()) == (40, True)
    assert facts.completion_tokens == 20 * RankingSection(judge="j").max_tokens + 20  # written verdicts, and one letter each


def test_the_microworlds_judge_answers_everything_offline(make_job: Callable[..., Job], journal: Journal) -> None:
    """Its taste for the first place is seen by written and by soft verdicts, and the soft ones come without noise."""
    settings = MicroworldJudge(type="microworld-judge", noise=0.1, position_bias=0.1, malformed=0.0)
    judge = ScriptedEndpoint(REF, lambda r: microworld_judge.reply(r, settings, 0), journal)
    prompts = world.all_prompts(validation=0, test=0)[::40][:40]
    contests = [
        Contest(p.id, p.messages, "a", "b", "I like turtles.", "7", "a reference" if n % 2 else "") for n, p in enumerate(prompts)
    ]
    job = make_job(judge)
    for soft in (False, True):
        found = judging.compare_both(job, contests, soft=soft, repeats=2)
        votes = [v for pairs in found for pair in pairs for v in pair]
        assert {v.outcome for v in votes} == {Outcome.ranked}
        pairs = [pair for pairs in found for pair in pairs]
        gap = judging.position_gap(pairs, [c.id for c in contests for _ in range(2)], resamples=300, seed=0)
        assert gap is not None
        assert gap.low > 0
        same = all([v.preference_b for v in one] == [v.preference_b for v in two] for one, two in found)
        assert same == soft
    [*grades] = judging.grade(job, [Question(c.id, c.messages, c.text_a, c.reference) for c in contests])
    assert all(g.score is not None and 1 <= g.score <= 10 for [g] in grades)


# ── a server that fails ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def running() -> Iterator[FakeServer]:
    with FakeServer(chars=100) as server:
        yield server


@pytest.fixture
def server(running: FakeServer) -> FakeServer:
    running.reset()
    return running


def behind(server: FakeServer, journal: Journal, **settings: Any) -> HttpEndpoint:
    given = {"type": "openai", "base_url": server.url, "name": "judge", "in_flight": 16, "attempts": 3, "timeout_s": 5.0}
    return HttpEndpoint("judge", OpenAIModel.model_validate(given | settings), journal)


CURED = ("rate_limited", "server_error", "truncated_json", "malformed_json", "wrong_type", "reset_after", "cut_body")
LASTING = {
    "server_error": Outcome.provider_error, "bad_request": Outcome.provider_error, "truncated_json": Outcome.provider_error,
    "wrong_shape": Outcome.provider_error, "context_length": Outcome.too_long, "content_filter": Outcome.refused,
    "empty_text": Outcome.unparsed, "no_usage": Outcome.ranked, "bad_usage": Outcome.ranked,
}  # fmt: skip
WRITTEN = {"finish_length": Outcome.truncated, "bad_logprobs": Outcome.ranked, **dict.fromkeys(JUDGE, Outcome.unparsed)}
SOFT = {"finish_length": Outcome.ranked, "bad_logprobs": Outcome.unparsed, **dict.fromkeys(JUDGE, Outcome.unparsed)}


@pytest.mark.parametrize("soft", [False, True], ids=["written", "soft"])
def test_every_fault_becomes_its_outcome_and_nothing_answered_is_paid_twice(
    soft: bool, server: FakeServer, journal: Journal, make_job: Callable[..., Job]
) -> None:
    lasting = LASTING | (SOFT if soft else WRITTEN)
    faults = [Fault(kind, marker=f"(once {kind})", times=1, retry_after="0") for kind in CURED]
    server.reset([*faults, *(Fault(kind, marker=f"(ever {kind})") for kind in lasting)])
    marks = ["nothing", *(f"(once {kind})" for kind in CURED), *(f"(ever {kind})" for kind in lasting)]
    contests = [Contest(mark, ask(f"Please, {mark}"), "a", "b", "one answer", "another", "r") for mark in marks]
    job = make_job(behind(server, journal))
    found = judging.compare_both(job, contests, soft=soft)
    for mark, [pair] in zip(marks, found, strict=True):
        kind = mark.removeprefix("(ever ").removesuffix(")")
        expected = lasting[kind] if mark.startswith("(ever") else Outcome.ranked
        assert {v.outcome for v in pair} == {expected}, mark
        for v in pair:
            assert (v.preference_b is None) == (expected is not Outcome.ranked) == (v.reason != "")
    stats = server.stats(keys=True)
    assert asked_again_after_an_answer(stats) == []
    # The fake judge goes by the texts alone: the same answer wins in either order, four to one when asked softly.
    preferred = {judging.mean_preference(*pair) for [pair] in found} - {None}
    assert len(preferred) == 1
    assert preferred.pop() in ([pytest.approx(0.2), pytest.approx(0.8)] if soft else [0.0, 1.0])
    outcomes = judging.outcomes_of([v for [pair] in found for v in pair])
    facts = judging.facts(job, outcomes=outcomes)
    assert sum(outcomes.values()) == facts.calls
    assert facts.unparsed_share == pytest.approx(1 - outcomes["ranked"] / facts.calls)
    assert facts.seconds is not None
    assert facts.seconds > 0
    received = stats["received"]
    assert judging.compare_both(job, contests, soft=soft)[0] == found[0]
    again = server.stats(keys=True)
    assert asked_again_after_an_answer(again) == []
    assert again["received"] - received == expected_again(lasting)


def expected_again(lasting: dict[str, Outcome]) -> int:
    """Calls that a second run makes: those that failed have no answer, two orders each, as often as they are tried."""
    attempts = {"server_error": 3, "truncated_json": 3, "wrong_shape": 3, "bad_request": 1, "context_length": 1}
    return 2 * sum(attempts[kind] for kind in lasting if kind in attempts)


def test_a_server_without_log_probabilities_is_found_out_with_the_first_call(
    server: FakeServer, journal: Journal, make_job: Callable[..., Job]
) -> None:
    server.reset([Fault("bad_logprobs")])
    job = make_job(behind(server, journal))
    contests = [Contest(str(n), ask(str(n)), "a", "b", "1", "2") for n in range(50)]
    with pytest.raises(EndpointError, match="without the log-probabilities"):
        judging.compare_both(job, contests, soft=True)
    assert server.stats()["received"] == 1
    with pytest.raises(EndpointError, match="without the log-probabilities"):
        judging.ask_official(job, [c.messages for c in contests], Sampling(max_tokens=1, top_logprobs=5))
    assert server.stats()["received"] == 2


def test_log_probabilities_of_the_completions_api(server: FakeServer, journal: Journal, make_job: Callable[..., Job]) -> None:
    job = make_job(behind(server, journal, api="completions"))
    [[reply]] = judging.ask_official(job, [ask("Which?")], Sampling(max_tokens=1, top_logprobs=5))
    assert [token for token, _ in reply.first_token] == [reply.text[:4]]


def test_a_batch_api_gives_soft_verdicts_too(
    server: FakeServer, journal: Journal, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-0123456789")
    given = {"type": "openai", "base_url": server.url, "name": "judge", "api_key_env": "JUDGE_KEY", "batch": {}}
    job = make_job(BatchApiEndpoint("judge", OpenAIModel.model_validate(given), journal))
    contests = [Contest(str(n), ask(str(n)), "a", "b", "one", "two") for n in range(3)]
    votes = [v.preference_b for [pair] in judging.compare_both(job, contests, soft=True) for v in pair]
    assert votes == pytest.approx([votes[0]] * 6)
    assert votes[0] in (pytest.approx(0.2), pytest.approx(0.8))
    stats = server.stats()
    assert (stats["received"], stats["batches"]["openai"]) == (6, 1), "nothing was tried out one by one"


def test_a_budget_stops_the_judging_and_a_larger_one_goes_on(server: FakeServer, tmp_path: Path) -> None:
    contests = [Contest(str(n), ask(f"Question {n}."), "a", "b", "one", "two") for n in range(30)]

    def judged(budget: Budget) -> Any:
        with Journal(tmp_path / "j.sqlite", budget) as journal:
            made = Job(models={}, systems={}, judge=behind(server, journal), folder=tmp_path, progress=SILENT)
            return judging.compare_both(made, contests, soft=True)

    with pytest.raises(BudgetError, match="budget_calls"):
        judged(Budget(calls=23))
    assert server.stats()["received"] == 23
    found = judged(Budget(calls=60))
    assert {v.outcome for [pair] in found for v in pair} == {Outcome.ranked}
    assert server.stats()["received"] == 60
    assert asked_again_after_an_answer(server.stats(keys=True)) == []


JUDGING = """
    import sys
    from pathlib import Path
    from starling.config import OpenAIModel
    from starling.endpoint import HttpEndpoint
    from starling.evaluate import judging
    from starling.evaluate.results import Job
    from starling.journal import Journal
    from starling.progress import SILENT
    from starling.records import Message
    url, folder = sys.argv[1], Path(sys.argv[2])
    with Journal(folder / "journal.sqlite") as journal:
        judge = HttpEndpoint("judge", OpenAIModel(type="openai", base_url=url, name="judge", in_flight=8), journal)
        job = Job(models={}, systems={}, judge=judge, folder=folder, progress=SILENT)
        asked = [judging.Question(str(n), (Message(role="user", content=f"Question {n}."),), "An answer.") for n in range(60)]
        grades = judging.grade(job, asked, repeats=2)
        print([g.score for row in grades for g in row])
"""


def test_killed_and_started_again_it_comes_to_the_same(server: FakeServer, tmp_path: Path) -> None:
    def command(folder: Path) -> list[str]:
        folder.mkdir(exist_ok=True)
        return [sys.executable, "-c", textwrap.dedent(JUDGING), server.url, str(folder)]

    undisturbed = subprocess.run(command(tmp_path / "one"), capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert undisturbed.count(",") == 119
    server.reset(latency=0.05)
    for share in (20, 70):
        process = subprocess.Popen(command(tmp_path / "two"), cwd=ROOT)
        while server.stats()["received"] < share:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.1)
    with Journal(tmp_path / "two" / "journal.sqlite") as journal:
        answered, unfinished = journal.count(), journal.usage().unfinished
    assert 0 < answered < 120
    before = server.stats()["received"]
    server.change(latency=0.0)
    resumed = subprocess.run(command(tmp_path / "two"), capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert resumed == undisturbed
    assert server.stats()["received"] - before == 120 - answered
    assert 0 < unfinished <= 2 * (8 + 8 // 4 + 8)

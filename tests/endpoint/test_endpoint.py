"""Endpoints against a small server that misbehaves in every way a real one does, and the laws of the journal."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from starling import call as format_
from starling.config import OpenAIModel
from starling.endpoint import (
    BatchEndpoint,
    Failure,
    HttpEndpoint,
    Reply,
    Request,
    ScriptedEndpoint,
    asking,
    calling,
    commits,
    limits,
    wire,
)
from starling.errors import BudgetError, ConfigError, EndpointError
from starling.journal import Budget, Intent, Journal, StoredReply
from starling.records import Finish, Message, ModelRef, Sampling
from tests.small_server import KEY, MODEL, Count, Server, ask, completion, http


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TEST_KEY", KEY)
    made = Server()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as made:
        yield made


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Back-offs that a server does not ask for are noted (after how many failures), not waited for."""
    noted: list[float] = []

    def backoff(failures: int, draw: float) -> float:
        assert 0 <= draw < 1
        noted.append(failures)
        return 0.0

    monkeypatch.setattr(limits, "backoff", backoff)
    monkeypatch.setattr(limits, "COOL_DOWN_S", 0.01)
    monkeypatch.setattr(limits, "LONGEST_COOL_DOWN_S", 0.01)
    return noted


def everything_in(path: Path) -> bytes:
    """All bytes of a journal, the compressed ones unpacked."""
    rows = sqlite3.connect(path).execute("SELECT text FROM replies UNION ALL SELECT text FROM questions").fetchall()
    raw = b"".join(p.read_bytes() for p in path.parent.glob(path.name + "*"))
    return raw + b"".join(zlib.decompress(blob) for (blob,) in rows if blob)


# ── the server's answers ─────────────────────────────────────────────────────────────────────────────────────────────


def test_replies_come_in_order_and_only_once(server: Server, journal: Journal) -> None:
    endpoint = http(server, journal)
    requests = [ask(t, endpoint.model) for t in ("a", "b", "a", "c")]
    replies = endpoint.complete_all(requests)
    assert [r.text for r in replies] == ["re a", "re b", "re a", "re c"]
    assert replies[0] == Reply("re a", Finish.stop, requests[0].key, "", 3, 2)
    assert endpoint.complete_all(list(reversed(requests))) == list(reversed(replies))
    assert server.seen == Counter("abc")
    usage = journal.usage()
    assert (usage.answered, usage.attempts, usage.paid, usage.prompt_tokens, usage.completion_tokens) == (3, 3, 3, 9, 6)
    assert journal.usage(purpose="test").attempts == 3


def test_a_call_is_in_the_journal_before_it_leaves_and_its_reply_before_it_is_parsed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [ask(str(i)) for i in range(30)]
    left, parsed = [], []
    real_parse = calling.parse_reply

    async def answer(text: str, times: int) -> web.StreamResponse:
        left.append(other.request(requests[int(text)].key) is not None)
        return await server.echo(text, times)

    def parse(body: str, call_id: str) -> Reply | None:
        stored = other.get(call_id)
        parsed.append(stored is not None and stored.body == body)
        return real_parse(body, call_id)

    server.answer = answer
    monkeypatch.setattr(calling, "parse_reply", parse)
    monkeypatch.setattr(asking, "parse_reply", parse)
    monkeypatch.setattr(commits, "COMMIT_S", 0.1)  # so slow that whoever does not wait for it is found out
    with Journal(tmp_path / "j") as journal, Journal(tmp_path / "j") as other:  # what another process would see
        http(server, journal).complete_all(requests)
    assert left == [True] * 30
    assert parsed == [True] * 60  # once to know that it is a reply, once to hand it out


def test_what_is_sent(server: Server, journal: Journal) -> None:
    sampling = Sampling(temperature=0.2, top_p=0.9, max_tokens=7, stop=("\n",))
    endpoint = http(server, journal, sampling=sampling.model_dump())
    assert endpoint.model == ModelRef(provider="openai", name="m", sampling=sampling)
    messages = (Message(role="system", content="be kind"), Message(role="user", content="hé\ud800"))
    endpoint.complete_all([Request(endpoint.model, messages), ask("plain", ModelRef(provider="openai", name="other"))])
    first, second = sorted(server.payloads, key=lambda p: p["model"])
    assert first == {
        "model": "m", "temperature": 0.2, "top_p": 0.9, "max_tokens": 7, "stop": ["\n"],
        "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hé\ud800"}],
    }  # fmt: skip
    assert set(second) == {"model", "messages", "temperature", "max_tokens"}
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("body", "text", "finish"),
    [
        (completion("x"), "x", Finish.stop),
        (completion("x", "length"), "x", Finish.length),
        (completion("", "content_filter"), "", Finish.refusal),
        (completion(None, refusal="I cannot"), "I cannot", Finish.refusal),
        (completion(None), "", Finish.stop),
        (completion([{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]), "ab", Finish.stop),
        (completion("half \ud83d of 🐱"), "half � of 🐱", Finish.stop),
        (completion("x", "stop") | {"usage": None}, "x", Finish.stop),
    ],
)
def test_how_replies_are_read(body: dict[str, Any], text: str, finish: Finish) -> None:
    reply = format_.parse_reply(json.dumps(body), "id")
    assert reply is not None
    assert (reply.text, reply.finish, reply.error, reply.call_id) == (text, finish, "", "id")


@pytest.mark.parametrize("reason", ["tool_calls", None, "weather"])
def test_an_unknown_end_is_a_named_failure(reason: str | None) -> None:
    reply = format_.parse_reply(json.dumps(completion("x", reason)), "id")
    assert reply is not None
    assert reply.finish is Finish.error
    assert repr(reason) in reply.error
    assert reply.text == ""


@pytest.mark.parametrize(
    "body",
    [
        "", "<html>", "[]", "3", '{"choices": []}', '{"choices": [{"message": null}]}', '{"error": {}}', "[" * 99_999,
        json.dumps(completion({"a": 1})),
        json.dumps({"choices": [{"message": {"content": "x"}, "finish_reason": 3}]}),
    ],
)  # fmt: skip
def test_bodies_that_are_no_reply(body: str) -> None:
    assert format_.parse_reply(body, "id") is None


def test_a_usage_that_makes_no_sense_leaves_the_reply() -> None:
    reply = format_.parse_reply(json.dumps(completion("x") | {"usage": [1]}), "id")
    assert reply is not None
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("x", None, None)


def test_local_replies_survive_their_own_format() -> None:
    for finish in (Finish.stop, Finish.length, Finish.refusal):
        reply = Reply('é"\n', finish, "id", "", 4, None)
        assert format_.parse_reply(format_.compose_reply(reply), "id") == reply


def test_in_flight_is_a_bound_and_is_reached(server: Server, journal: Journal) -> None:
    async def slow(text: str, _: int) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        return await server.echo(text, _)

    server.answer = slow
    endpoint = http(server, journal, in_flight=4)
    endpoint.complete_all([ask(str(i), endpoint.model) for i in range(40)])
    assert server.most == 4


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_rate_limits_are_waited_out(server: Server, journal: Journal) -> None:
    async def limited(text: str, times: int) -> web.StreamResponse:
        if text == "limited" and times == 1:
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers={"Retry-After": "1"})
        return await server.echo(text, times)

    server.answer = limited
    endpoint = http(server, journal)
    requests = [ask(t, endpoint.model) for t in ("limited", "free")]
    assert [r.text for r in endpoint.complete_all(requests)] == ["re limited", "re free"]
    first, second = server.times["limited"]
    assert second - first >= 1.0
    attempts = journal.attempts(requests[0].key)
    assert [(a.status, a.error) for a in attempts if a] == [(429, "HTTP 429: slow down"), (200, "")]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("2", 2), ("0.5", 0.5), ("", 0), ("-3", 0), ("soon", 0), ("nan", 0), ("inf", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_retry_after(header: str, seconds: float) -> None:
    assert wire.retry_after(header) == seconds


def test_retry_after_as_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire.time, "time", lambda: 1445412480.0 - 30)
    assert wire.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 30


def test_an_absurd_wait_ends_the_run_and_says_until_when(server: Server, journal: Journal) -> None:
    async def tomorrow(text: str, times: int) -> web.StreamResponse:
        if text == "no":
            return web.json_response({}, status=429, headers={"Retry-After": "86400"})
        return await server.echo(text, times)

    server.answer = tomorrow
    requests = [ask("yes"), ask("no")]
    with pytest.raises(EndpointError, match="not to be called before 20") as caught:
        http(server, journal).complete_all(requests)
    until = datetime.strptime(str(caught.value).split("before ")[1][:16], "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    assert abs((until - datetime.now(UTC)).total_seconds() - 86400) < 120
    assert server.seen == {"yes": 1, "no": 1}
    server.answer = server.echo
    assert [r.text for r in http(server, journal).complete_all(requests)] == ["re yes", "re no"]
    assert server.seen == {"yes": 1, "no": 2}


def test_server_faults_are_tried_again_and_end_as_failures(server: Server, journal: Journal, no_waiting: list[float]) -> None:
    async def faulty(text: str, times: int) -> web.StreamResponse:
        if text == "never" or times < 3:
            return web.Response(text="the  kitchen\nis on fire", status=500)
        return await server.echo(text, times)

    server.answer = faulty
    requests = [ask(t) for t in ("never", "third")]
    never, third = http(server, journal).complete_all(requests)
    assert (never.finish, never.text, never.error) == (Finish.error, "", "HTTP 500: the kitchen is on fire")
    assert never.call_id == requests[0].key
    assert third.text == "re third"
    assert server.seen == {"never": 3, "third": 3}
    assert len(journal.attempts(requests[0].key)) == 3
    assert len(no_waiting) == 4  # twice each: nobody waits after the last attempt
    assert journal.usage().paid == 1
    # A failure is no answer: the next run asks again.
    http(server, journal).complete_all(requests)
    assert server.seen == {"never": 6, "third": 3}


@pytest.mark.parametrize("status", [400, 403, 413, 422, 301])
def test_wrong_requests_are_not_repeated(server: Server, journal: Journal, no_waiting: list[float], status: int) -> None:
    async def picky(text: str, times: int) -> web.StreamResponse:
        if text == "bad":
            return web.json_response({"error": "too long"}, status=status, headers={"Location": "/elsewhere"})
        return await server.echo(text, times)

    server.answer = picky
    bad, good = http(server, journal).complete_all([ask("bad"), ask("good")])
    assert bad.error == f"HTTP {status}: too long"
    assert good.text == "re good"
    assert server.seen["bad"] == 1


def test_a_hanging_call_is_given_up_and_may_have_been_paid(server: Server, journal: Journal, no_waiting: list[float]) -> None:
    async def hang(_: str, __: int) -> web.StreamResponse:
        await asyncio.sleep(30)
        raise AssertionError

    server.answer = hang
    (reply,) = http(server, journal, timeout_s=0.2, attempts=2).complete_all([ask("a")])
    assert reply.error == "no reply within 0.2 s"
    assert journal.usage().paid == 2
    assert [(a.status, a.sent) for a in journal.attempts(reply.call_id) if a] == [(0, True)] * 2


def test_a_dropped_connection_is_tried_again(server: Server, journal: Journal, no_waiting: list[float]) -> None:
    async def drop(text: str, times: int) -> web.StreamResponse:
        if times == 1:
            raise asyncio.CancelledError  # the server closes the connection without an answer
        return await server.echo(text, times)

    server.answer = drop
    (reply,) = http(server, journal).complete_all([ask("a")])
    assert reply.text == "re a"


def test_replies_that_are_none_are_tried_again_but_kept(server: Server, journal: Journal, no_waiting: list[float]) -> None:
    async def garbled(text: str, times: int) -> web.StreamResponse:
        return web.Response(text='{"choices": [{"mess') if text == "always" or times == 1 else await server.echo(text, times)

    server.answer = garbled
    always, once = http(server, journal).complete_all([ask("always"), ask("once")])
    assert "no known format" in always.error
    assert always.failure is Failure.not_a_reply
    assert once.text == "re once"
    assert [a and (a.body, a.error) for a in journal.attempts(always.call_id)] == [
        ('{"choices": [{"mess', "the server's reply is in no known format")
    ] * 3
    assert journal.get(always.call_id) is None


def test_a_stored_body_that_is_no_reply_is_asked_again(server: Server, journal: Journal) -> None:
    """The process died between storing and parsing."""
    endpoint, request = http(server, journal), ask("a")
    journal.intend(request.key, 1, request.as_dict())
    journal.put(request.key, 1, StoredReply(status=200, body="<html>"))
    assert endpoint.complete_all([request])[0].text == "re a"
    assert server.seen == {"a": 1}


def test_the_newer_name_of_the_limit(server: Server, journal: Journal, no_waiting: list[float]) -> None:
    async def modern(text: str, times: int) -> web.StreamResponse:
        if "max_tokens" in server.payloads[-1]:
            return web.json_response({"error": {"message": "Use 'max_completion_tokens' instead."}}, status=400)
        return await server.echo(text, times)

    server.answer = modern
    replies = http(server, journal, in_flight=1).complete_all([ask(t) for t in "abc"])
    assert [r.text for r in replies] == ["re a", "re b", "re c"]
    assert server.payloads[-1]["max_completion_tokens"] == 512


# ── servers that cannot be used ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, "{}", "refuses the key"),
        (404, "{}", "address or model"),
        (402, "{}", "payment"),
        (429, "insufficient_quota", "credit"),
    ],
)
def test_errors_that_concern_every_call_stop_the_run(
    server: Server, journal: Journal, no_waiting: list[float], status: int, body: str, said: str
) -> None:
    async def refuse(_: str, __: int) -> web.StreamResponse:
        return web.Response(text=body, status=status)

    server.answer = refuse
    endpoint = http(server, journal, in_flight=2)
    with pytest.raises(EndpointError, match=said) as caught:
        endpoint.complete_all([ask(str(i)) for i in range(200)])
    assert "pool-name" in str(caught.value)
    assert len(server.seen) <= 20  # those under way when the first refusal came back, not all 200


def test_a_server_that_died_stops_the_run(
    server: Server, journal: Journal, no_waiting: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "DEAD_AFTER", 10)

    async def dying(text: str, times: int) -> web.StreamResponse:
        return await server.echo(text, times) if int(text) < 5 else web.Response(status=503)

    server.answer = dying
    endpoint = http(server, journal, in_flight=1, attempts=2)
    requests = [ask(str(i)) for i in range(100)]
    with pytest.raises(EndpointError, match="10 calls in a row"):
        endpoint.complete_all(requests)
    assert journal.count() == 5
    server.answer = server.echo
    assert [r.text for r in endpoint.complete_all(requests)] == [f"re {i}" for i in range(100)]
    assert all(server.seen[str(i)] == 1 for i in range(5))


def test_failures_between_answers_do_not_stop_the_run(
    server: Server, journal: Journal, no_waiting: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "DEAD_AFTER", 3)

    async def flaky(text: str, times: int) -> web.StreamResponse:
        return await server.echo(text, times) if int(text) % 3 == 0 else web.Response(status=503)

    server.answer = flaky
    replies = http(server, journal, in_flight=1, attempts=1).complete_all([ask(str(i)) for i in range(12)])
    assert [r.finish is Finish.error for r in replies] == [i % 3 != 0 for i in range(12)]


def test_many_wrong_requests_do_not_stop_a_server_that_answers(
    server: Server, journal: Journal, no_waiting: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "DEAD_AFTER", 5)

    async def picky(text: str, times: int) -> web.StreamResponse:
        return await server.echo(text, times) if text == "0" else web.Response(status=400)

    server.answer = picky
    endpoint = http(server, journal, in_flight=1)
    endpoint.complete_all([ask("0")])
    replies = endpoint.complete_all([ask(str(i)) for i in range(20)])
    assert Counter(r.finish for r in replies) == {Finish.error: 19, Finish.stop: 1}


def test_nobody_listens(journal: Journal, no_waiting: list[float]) -> None:
    nobody = OpenAIModel(type="openai", base_url="http://127.0.0.1:9/v1", name="m", attempts=2)
    (reply,) = HttpEndpoint("x", nobody, journal).complete_all([ask("a")])
    assert reply.error.startswith("no connection")
    assert journal.usage().paid == 0


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_key_is_nowhere(server: Server, journal: Journal, no_waiting: list[float]) -> None:
    async def telltale(text: str, _: int) -> web.StreamResponse:
        body = {"error": {"message": f"bad request, your key is {KEY}"}} if text == "bad" else completion(f"said {KEY}")
        return web.json_response(body, status=400 if text == "bad" else 200)

    server.answer = telltale
    bad, said = http(server, journal).complete_all([ask("bad"), ask("say")])
    assert bad.error == "HTTP 400: bad request, your key is [key]"
    assert said.text == "said [key]"
    assert KEY.encode() not in everything_in(journal.path)
    assert b"[key]" in everything_in(journal.path)


def test_a_refused_key_is_not_in_the_error(server: Server, journal: Journal) -> None:
    async def refuse(_: str, __: int) -> web.StreamResponse:
        return web.json_response({"error": {"message": f"Incorrect API key provided: {KEY}"}}, status=401)

    server.answer = refuse
    with pytest.raises(EndpointError) as caught:
        http(server, journal).complete_all([ask("a")])
    assert KEY not in str(caught.value)


def test_a_missing_key_is_told_before_any_call(server: Server, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(ConfigError, match="TEST_KEY"):
        http(server, journal).complete_all([ask("a")])
    assert not server.seen
    assert journal.usage().attempts == 0


def test_a_finished_journal_needs_no_key(server: Server, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = http(server, journal).complete_all([ask("a")])
    monkeypatch.delenv("TEST_KEY")
    assert http(server, journal).complete_all([ask("a")]) == replies


# ── budget, progress, loops ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_budget_is_spent_exactly_and_a_larger_one_goes_on(server: Server, tmp_path: Path) -> None:
    async def slow(text: str, times: int) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return await server.echo(text, times)

    server.answer = slow
    requests = [ask(str(i)) for i in range(50)]
    with Journal(tmp_path / "j", Budget(calls=20)) as journal:
        for _ in range(2):
            with pytest.raises(BudgetError, match="budget_calls = 20"):
                http(server, journal, in_flight=8).complete_all(requests)
            assert sum(server.seen.values()) == 20
            assert journal.usage().unfinished == 0
            assert journal.count() == 20
    with Journal(tmp_path / "j", Budget(calls=50)) as journal:
        replies = http(server, journal, in_flight=8).complete_all(requests)
    assert [r.text for r in replies] == [f"re {i}" for i in range(50)]
    assert max(server.seen.values()) == 1


def test_progress_counts_every_request_once(server: Server, journal: Journal) -> None:
    async def picky(text: str, times: int) -> web.StreamResponse:
        return web.Response(status=400) if text == "b" else await server.echo(text, times)

    server.answer = picky
    endpoint = http(server, journal)
    endpoint.complete_all([ask("a")])
    count = Count()
    endpoint.complete_all([ask(t) for t in "aabbc"], count)
    assert count.done == 5
    assert count.notes[0] == "2 from the journal"
    assert "1 failed" in count.notes


def test_inside_a_running_loop(server: Server, journal: Journal) -> None:
    async def notebook() -> list[Reply]:
        return http(server, journal).complete_all([ask("a")])

    assert asyncio.run(notebook())[0].text == "re a"


# ── SIGKILL ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CLIENT = """
import sys
from pathlib import Path
from starling.config import OpenAIModel
from starling.endpoint import HttpEndpoint, Request
from starling.journal import Budget, Journal
from starling.records import Message, ModelRef
model = ModelRef(provider="scripted", name="m")
with Journal(Path(sys.argv[1])) as journal:
    endpoint = HttpEndpoint("m", OpenAIModel(type="openai", base_url=sys.argv[2], name="m", in_flight=8), journal)
    endpoint.complete_all([Request(model, (Message(role="user", content=str(i)),), 0, "test") for i in range(200)])
"""


def test_killed_and_resumed_nothing_answered_is_asked_again(server: Server, tmp_path: Path) -> None:
    async def slow(text: str, times: int) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return await server.echo(text, times)

    server.answer = slow
    path = tmp_path / "journal.sqlite"
    requests = [ask(str(i)) for i in range(200)]
    for share in (40, 110):
        client = subprocess.Popen([sys.executable, "-c", CLIENT, str(path), server.url])
        deadline = time.monotonic() + 60
        while len(server.seen) < share and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(client.pid, signal.SIGKILL)
        client.wait()
        time.sleep(0.1)  # what was in flight reaches its end at the server
    before = Counter(server.seen)
    with Journal(path) as journal:
        answered = {r.key for r in requests} & set(journal.get_many([r.key for r in requests]))
        unfinished = journal.usage().unfinished
        replies = http(server, journal).complete_all(requests)
    assert [r.text for r in replies] == [f"re {i}" for i in range(200)]
    assert len(answered) >= 80
    assert all(server.seen[r.messages[0].content] == before[r.messages[0].content] for r in requests if r.key in answered)
    repeated = sum(n - 1 for n in server.seen.values())
    assert repeated <= unfinished  # every possible repeat is listed
    assert unfinished <= 2 * (8 + 8 // 4 + 8)  # at most what the two killed processes had under way


# ── scripts and local engines ────────────────────────────────────────────────────────────────────────────────────────


def test_a_script_answers_each_question_once(journal: Journal) -> None:
    asked: list[str] = []

    def answer(request: Request) -> str | Reply:
        text = request.messages[0].content
        asked.append(text)
        return Reply("", Finish.error, "", "broken") if text == "bad" else text.upper()

    endpoint = ScriptedEndpoint(MODEL, answer, journal)
    requests = [ask("a"), ask("bad"), ask("a"), *(ask(f"x{i}") for i in range(150))]
    count = Count()
    replies = endpoint.complete_all(requests, count)
    assert [r.text for r in replies[:4]] == ["A", "", "A", "X0"]
    assert (replies[1].finish, replies[1].error, replies[1].call_id) == (Finish.error, "broken", requests[1].key)
    assert count.done == 153
    assert len(asked) == 152
    assert endpoint.complete_all(requests) == replies
    assert len(asked) == 153  # only the failed one again


def test_a_script_keeps_to_the_budget(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", Budget(calls=70)) as journal:
        with pytest.raises(BudgetError):
            ScriptedEndpoint(MODEL, lambda r: "x", journal).complete_all([ask(str(i)) for i in range(100)])
        assert journal.count() == 70


def test_samples_and_sampling_are_different_questions_and_purposes_are_not() -> None:
    cold = MODEL.model_copy(update={"sampling": Sampling(temperature=0)})
    keys = {ask("a").key, ask("a", sample=1).key, ask("a", cold).key, ask("b").key}
    assert len(keys) == 4
    assert dataclasses.replace(ask("a"), purpose="other").key == ask("a").key


def test_log_probabilities_are_another_question() -> None:
    soft = [MODEL.model_copy(update={"sampling": MODEL.sampling.model_copy(update={"top_logprobs": n})}) for n in (0, 5, 20)]
    assert ask("a", soft[0]).key == ask("a").key
    assert len({ask("a", model).key for model in soft}) == 3


def test_a_key_is_pinned() -> None:
    """Golden: another key for the same question would have every call of older journals paid again."""
    assert ask("hé").key == "80d4b8a551439d56fa7569646d0b10b9d069faebec9ab667928f89ae6dcc3b37"


class Engine:
    """Answers depend on the batch, as the last bits of a real model's do."""

    def __init__(self, fail: str = "") -> None:
        self.batches: list[list[str]] = []
        self._fail = fail

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        texts = [r.messages[0].content for r in requests]
        self.batches.append(texts)
        if self._fail in texts:
            raise KeyboardInterrupt
        return [Reply(f"{t} in {'+'.join(texts)}", Finish.length, "", "", 1, 2) for t in texts]


def test_batches_are_cut_from_the_full_list_wherever_a_run_was_stopped(tmp_path: Path) -> None:
    requests = [ask(t) for t in "abcdeagh"]
    with Journal(tmp_path / "straight") as journal:
        engine = Engine()
        expected = BatchEndpoint(MODEL, engine, journal, 3).complete_all(requests)
        assert engine.batches == [["a", "b", "c"], ["d", "e", "a"], ["g", "h"]]
        assert expected[0].text == "a in a+b+c"
        assert expected[5] == expected[0]
        assert expected[7] == Reply("h in g+h", Finish.length, requests[7].key, "", 1, 2)
        assert BatchEndpoint(MODEL, engine, journal, 3).complete_all(requests) == expected
        assert len(engine.batches) == 3
        usage = journal.usage()
        assert (usage.paid, usage.answered, usage.completion_tokens) == (0, 7, 14)
    for fail in "adg":
        with Journal(tmp_path / fail) as journal:
            with pytest.raises(KeyboardInterrupt):
                BatchEndpoint(MODEL, Engine(fail), journal, 3).complete_all(requests)
            assert BatchEndpoint(MODEL, Engine(), journal, 3).complete_all(requests) == expected


def test_a_batch_with_one_reply_missing_is_computed_whole(tmp_path: Path) -> None:
    requests = [ask(t) for t in "abc"]
    with Journal(tmp_path / "j") as journal:
        journal.write([Intent(key=requests[1].key, attempt=1, request={}, paid=False)])
        journal.put(requests[1].key, 1, StoredReply(status=200, body=json.dumps(completion("b before"))))
        engine = Engine()
        replies = BatchEndpoint(MODEL, engine, journal, 3).complete_all(requests)
    assert engine.batches == [["a", "b", "c"]]
    assert [r.text for r in replies] == ["a in a+b+c", "b before", "c in a+b+c"]


def test_an_engine_that_loses_a_reply_is_told(journal: Journal) -> None:
    class Lossy(Engine):
        def answer(self, requests: Sequence[Request]) -> list[Reply]:
            return super().answer(requests)[1:]

    with pytest.raises(EndpointError, match="2 replies to 3 requests"):
        BatchEndpoint(MODEL, Lossy(), journal, 3).complete_all([ask(t) for t in "abc"])


def test_no_requests(journal: Journal, server: Server) -> None:
    for endpoint in (
        http(server, journal),
        ScriptedEndpoint(MODEL, lambda r: "x", journal),
        BatchEndpoint(MODEL, Engine(), journal, 2),
    ):
        assert endpoint.complete_all([]) == []


def test_endpoints_need_no_torch() -> None:
    code = (
        "import sys, starling.endpoint; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'aiohttp', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

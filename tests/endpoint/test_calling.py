"""Many calls to servers: several keys and addresses, limits, budgets, streaming, several models at a time."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from starling.config import KeySection
from starling.endpoint import (
    BatchEndpoint,
    Failure,
    HttpEndpoint,
    KeyRing,
    Reply,
    Request,
    ScriptedEndpoint,
    ask_together,
    calling,
    limits,
    wire,
)
from starling.endpoint.server import calls_to
from starling.errors import BudgetError, EndpointError
from starling.journal import Answer, Budget, Intent, Journal, Spend, StoredReply
from starling.progress import SILENT
from starling.records import Finish, Message, ModelRef
from tests.small_server import KEY, MODEL, Count, Server, ask, completion, http


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("TEST_KEY", "KEY_A", "KEY_B"):
        monkeypatch.setenv(name, KEY if name == "TEST_KEY" else f"secret-of-{name}")
    made = Server()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def other(server: Server) -> Iterator[Server]:
    made = Server()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as made:
        yield made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting that no server asks for is short."""
    monkeypatch.setattr(limits, "backoff", lambda failures, draw: 0.001)
    monkeypatch.setattr(limits, "COOL_DOWN_S", 0.01)
    monkeypatch.setattr(limits, "LONGEST_COOL_DOWN_S", 0.01)


def key_of(server: Server) -> str:
    """Which key the call that has just come in brings."""
    return server.headers[-1]["Authorization"].removeprefix("Bearer ")


def too_many(retry_after: str = "", status: int = 429) -> web.Response:
    headers = {"Retry-After": retry_after} if retry_after else {}
    return web.json_response({"error": {"message": "slow down"}}, status=status, headers=headers)


# ── streaming ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Made:
    """Requests made anew on every pass, and how many of them are alive."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.passes = 0
        self.alive: weakref.WeakSet[Request] = weakref.WeakSet()
        self.most = 0

    def __len__(self) -> int:
        return self.n

    def __contains__(self, item: object) -> bool:
        raise AssertionError

    def __iter__(self) -> Iterator[Request]:
        self.passes += 1
        for i in range(self.n):
            request = ask(str(i))
            self.alive.add(request)
            self.most = max(self.most, len(self.alive))
            yield request


def test_requests_are_drawn_as_they_are_needed_and_let_go(server: Server, journal: Journal) -> None:
    made = Made(2000)
    replies = http(server, journal, in_flight=8).ask_all(made)
    assert (made.passes, sum(server.seen.values())) == (1, 2000)
    for i, reply in enumerate(replies):
        assert reply.text == f"re {i}"
    assert made.passes == 2
    gc.collect()
    assert made.most < 250
    assert journal.count() == 2000


@pytest.mark.parametrize("kind", ["http", "script", "batch"])
def test_all_calls_are_over_when_ask_all_returns(server: Server, journal: Journal, kind: str) -> None:
    class Engine:
        def answer(self, requests: Any) -> list[Reply]:
            return [Reply(f"re {r.messages[0].content}", Finish.stop, "") for r in requests]

    endpoint: Any = {
        "http": lambda: http(server, journal),
        "script": lambda: ScriptedEndpoint(MODEL, lambda r: f"re {r.messages[0].content}", journal),
        "batch": lambda: BatchEndpoint(MODEL, Engine(), journal, 7),
    }[kind]()
    made = Made(300)
    replies = endpoint.ask_all(made)
    assert journal.count() == 300
    assert made.passes == 1
    assert [r.text for r in replies] == [f"re {i}" for i in range(300)]


def test_copies_of_a_request_are_asked_once_wherever_they_stand(server: Server, journal: Journal) -> None:
    async def slow(text: str, times: int) -> web.StreamResponse:
        await asyncio.sleep(0.005)
        return web.Response(status=400) if text == "bad" else await server.echo(text, times)

    server.answer = slow
    texts = [str(i % 70) for i in range(400)] + ["bad"] * 100 + [str(i) for i in range(70)] + ["bad"]
    count = Count()
    replies = http(server, journal, in_flight=4).complete_all([ask(t) for t in texts], count)
    assert [r.text for r in replies] == ["" if t == "bad" else f"re {t}" for t in texts]
    assert set(server.seen.values()) == {1}
    assert count.done == len(texts)


def test_a_broken_body_among_many_is_asked_again_where_it_is_read(server: Server, journal: Journal) -> None:
    requests = [ask(str(i)) for i in range(200)]
    endpoint = http(server, journal)
    endpoint.complete_all(requests[:150])
    broken = requests[170]
    journal.write([
        Intent(key=broken.key, attempt=1, request=broken.as_dict()),
        Answer(key=broken.key, attempt=1, reply=StoredReply(status=200, body="<html>")),
    ])  # fmt: skip
    assert [r.text for r in endpoint.ask_all(requests)] == [f"re {i}" for i in range(200)]
    assert set(server.seen.values()) == {1}
    assert [a and a.error for a in journal.attempts(broken.key)] == ["the server's reply is in no known format", ""]


def test_a_request_that_cannot_be_made_leaves_what_was_asked_in_order(server: Server, journal: Journal) -> None:
    class Failing(Made):
        def __iter__(self) -> Iterator[Request]:
            yield from list(super().__iter__())[:150]
            raise ZeroDivisionError

    async def answer(text: str, times: int) -> web.StreamResponse:
        await asyncio.sleep(0.01)
        return await server.echo(text, times)

    server.answer = answer
    with pytest.raises(ZeroDivisionError):
        http(server, journal, in_flight=4).ask_all(Failing(300))
    usage = journal.usage()
    assert (usage.unfinished, usage.paid) == (0, sum(server.seen.values()))
    assert [r.text for r in http(server, journal).complete_all([ask(str(i)) for i in range(100)])][99] == "re 99"


# ── several models at a time ─────────────────────────────────────────────────────────────────────────────────────────


def test_servers_are_asked_at_the_same_time_and_local_models_afterwards(server: Server, other: Server, journal: Journal) -> None:
    met = asyncio.Event()

    async def waits_for_the_other(text: str, times: int) -> web.StreamResponse:
        await asyncio.wait_for(met.wait(), 20)
        return await server.echo(text, times)

    async def comes(text: str, times: int) -> web.StreamResponse:
        server.loop.call_soon_threadsafe(met.set)
        return await other.echo(f"other {text}", times)

    def script(request: Request) -> str:
        assert journal.count() == 6
        return "s"

    server.answer, other.answer = waits_for_the_other, comes
    local = ModelRef(provider="scripted", name="local")
    second = ModelRef(provider="scripted", name="second")
    count = Count()
    replies = ask_together(
        [
            (http(server, journal), [ask(t) for t in "abc"]),
            (ScriptedEndpoint(local, script, journal), [ask("x", local)]),
            (http(other, journal), [ask(t, second) for t in "abc"]),
        ],
        count,
    )
    assert [[r.text for r in one] for one in replies] == [
        ["re a", "re b", "re c"], ["s"], ["re other a", "re other b", "re other c"],
    ]  # fmt: skip
    assert count.done == 7
    assert ask_together([]) == []


@pytest.mark.parametrize("broken", [False, True])
def test_one_model_under_two_names_is_asked_once(
    server: Server, other: Server, journal: Journal, quick: None, broken: bool
) -> None:
    """Equal name and sampling, two addresses: the same questions. What the one cannot answer is left to the other."""
    first = http(server, journal, attempts=1)

    async def answer(text: str, times: int) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        return too_many(status=500) if broken and text == "3" else await server.echo(text, times)

    server.answer = answer
    requests = [ask(str(i)) for i in range(30)]
    progress = Count()
    replies = [list(r) for r in ask_together([(first, requests), (http(other, journal), requests)], progress)]
    assert [r.text for r in replies[1]] == [f"re {i}" for i in range(30)]
    assert [r.text for r in replies[0]] == [f"re {i}" if not (broken and i == 3) else "" for i in range(30)]
    assert progress.done == 60
    assert (server.seen + other.seen).total() == (31 if broken else 30)


def test_the_first_model_that_cannot_go_on_stops_the_others(server: Server, other: Server, journal: Journal) -> None:
    async def refuse(_: str, __: int) -> web.StreamResponse:
        return web.Response(status=401)

    async def slow(text: str, times: int) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return await other.echo(text, times)

    server.answer, other.answer = refuse, slow
    good = http(other, journal, in_flight=2)
    requests = [ask(str(i), ModelRef(provider="scripted", name="second")) for i in range(500)]
    with pytest.raises(EndpointError, match="refuses the key"):
        ask_together([(http(server, journal), [ask("a")]), (good, requests)])
    assert journal.usage().unfinished == 0
    assert journal.count() == sum(other.seen.values()) < 500
    good.complete_all(requests)
    assert set(other.seen.values()) == {1}


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_keys_share_the_calls(server: Server, journal: Journal) -> None:
    used: Counter[str] = Counter()

    async def answer(text: str, times: int) -> web.StreamResponse:
        used[key_of(server)] += 1
        await asyncio.sleep(0.01)
        return await server.echo(text, times)

    server.answer = answer
    http(server, journal, api_key_env=["KEY_A", "KEY_B"], in_flight=3).complete_all([ask(str(i)) for i in range(120)])
    assert sum(used.values()) == 120
    assert min(used["secret-of-KEY_A"], used["secret-of-KEY_B"]) >= 40
    assert server.most == 6


def test_a_call_rejected_on_one_key_goes_to_the_other_at_once(server: Server, journal: Journal) -> None:
    async def answer(text: str, times: int) -> web.StreamResponse:
        return too_many("600") if key_of(server) == "secret-of-KEY_A" else await server.echo(text, times)

    server.answer = answer
    began = time.monotonic()
    replies = http(server, journal, api_key_env=["KEY_A", "KEY_B"], in_flight=2).complete_all([ask(str(i)) for i in range(40)])
    assert [r.text for r in replies] == [f"re {i}" for i in range(40)]
    assert time.monotonic() - began < 60  # nobody waited for ten minutes
    rejected = sum(n - 1 for n in server.seen.values())
    assert 3 <= rejected <= 2 + 8 + 3  # it was parked after three in a row and those under way


def test_a_rejection_delays_its_call_and_no_other(server: Server, journal: Journal) -> None:
    async def answer(text: str, times: int) -> web.StreamResponse:
        await asyncio.sleep(0.002)
        return too_many("1") if text == "5" and times == 1 else await server.echo(text, times)

    server.answer = answer
    http(server, journal, in_flight=4).complete_all([ask(str(i)) for i in range(200)])
    first, second = server.times["5"]
    assert 1.0 <= second - first < 1.5
    between = [t for text, times in server.times.items() for t in times if text != "5" and first < t < second]
    assert len(between) >= 150
    assert set(server.seen.values()) == {1, 2}


def test_a_key_that_rejects_everything_is_parked_and_nothing_is_lost(server: Server, journal: Journal) -> None:
    opens = time.monotonic() + 1.5

    async def answer(text: str, times: int) -> web.StreamResponse:
        return await server.echo(text, times) if time.monotonic() > opens else too_many("1")

    server.answer = answer
    count = Count()
    replies = http(server, journal, in_flight=4).complete_all([ask(str(i)) for i in range(50)], count)
    assert [r.text for r in replies] == [f"re {i}" for i in range(50)]
    assert sum(server.seen.values()) < 50 + 40  # no spinning while it was closed
    assert any("TEST_KEY asks to wait for 1 s" in note for note in count.notes)
    assert journal.usage().paid == 50


def test_a_permanent_rejection_ends_the_run_and_the_next_goes_on(
    server: Server, journal: Journal, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LONGEST_WAIT_S", 0.5)

    async def answer(text: str, times: int) -> web.StreamResponse:
        return await server.echo(text, times) if int(text) < 10 else too_many()

    server.answer = answer
    endpoint, requests = http(server, journal, in_flight=4), [ask(str(i)) for i in range(100)]
    monkeypatch.setattr(limits, "PARK_AFTER", 10**9)  # parking without a named time would take seconds
    with pytest.raises(EndpointError, match="rejected every call"):
        endpoint.complete_all(requests)
    assert journal.count() == 10
    assert journal.usage().unfinished == 0
    server.answer = server.echo
    assert [r.text for r in http(server, journal).complete_all(requests)] == [f"re {i}" for i in range(100)]
    assert all(server.seen[str(i)] == 1 for i in range(10))


def test_replies_that_are_none_mean_a_dead_server_and_stragglers_do_not(server: Server, journal: Journal, quick: None) -> None:
    """60 calls that fail for ever come to their end last, in a row, after 20 answers: they are named. Without any answer after
    they were first tried, 50 such calls stop the run."""

    async def answer(text: str, times: int) -> web.StreamResponse:
        if text.startswith("bad"):
            await asyncio.sleep(0.1)
            return web.Response(text="<html>")
        return await server.echo(text, times)

    server.answer = answer
    texts = [f"bad {i}" for i in range(60)] + [str(i) for i in range(20)]
    replies = http(server, journal, in_flight=100, attempts=2).complete_all([ask(text) for text in texts])
    assert [r.failure for r in replies] == [Failure.not_a_reply] * 60 + [None] * 20
    with pytest.raises(EndpointError, match="50 calls in a row"):
        http(server, journal, in_flight=10, attempts=2).complete_all([ask(f"bad {i}") for i in range(200)])


def test_calls_that_fail_for_ever_neither_take_the_server_out_nor_end_the_next_round(
    server: Server, journal: Journal, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 calls to which the server always answers 500 come last, in a row, after 20 answers. It is still asked at once, and what
    follows is not held against it."""
    monkeypatch.setattr(limits, "COOL_DOWN_S", 1e6)
    monkeypatch.setattr(limits, "FIRST_CONTACT_S", 0.0)

    async def answer(text: str, times: int) -> web.StreamResponse:
        if text.startswith("bad"):
            await asyncio.sleep(0.05)
            return web.Response(status=500)
        return await server.echo(text, times)

    server.answer = answer
    endpoint = http(server, journal, in_flight=100, attempts=3)
    texts = [f"bad {i}" for i in range(40)] + [str(i) for i in range(20)]
    replies = endpoint.complete_all([ask(text) for text in texts])
    assert [r.failure for r in replies] == [Failure.server_error] * 40 + [None] * 20
    assert sum(server.seen[f"bad {i}"] for i in range(40)) == 120
    assert all(r.text for r in endpoint.complete_all([ask(f"next {i}") for i in range(20)]))


def test_a_run_with_nothing_left_but_calls_that_fail_for_ever_comes_to_its_end(
    server: Server, journal: Journal, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started again when all others are in the journal: no answer will come that speaks for the server."""
    monkeypatch.setattr(limits, "COOL_DOWN_S", 1e6)

    async def answer(text: str, times: int) -> web.StreamResponse:
        return web.Response(status=500)

    server.answer = answer
    replies = http(server, journal, in_flight=8, attempts=3).complete_all([ask(str(i)) for i in range(30)])
    assert [r.failure for r in replies] == [Failure.server_error] * 30
    assert all(server.seen[str(i)] == 3 for i in range(30))


def test_a_call_that_alone_is_rejected_for_ever_is_given_up(
    server: Server, journal: Journal, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calling, "MOST_REJECTIONS", 4)

    async def answer(text: str, times: int) -> web.StreamResponse:
        await asyncio.sleep(0.002)
        return too_many() if text == "poison" else await server.echo(text, times)

    server.answer = answer
    replies = http(server, journal, in_flight=2).complete_all([ask("poison"), *(ask(str(i)) for i in range(100))])
    assert (replies[0].failure, replies[0].error) == (Failure.rate_limited, "HTTP 429: slow down")
    assert server.seen["poison"] == 4
    assert all(r.text for r in replies[1:])


def test_models_share_the_limit_of_their_key(server: Server, journal: Journal) -> None:
    """61 calls per minute are one per second; two models ask for three calls in all."""
    ring = KeyRing({"TEST_KEY": KeySection(requests_per_minute=61)})
    second = ModelRef(provider="scripted", name="second")
    one, two = http(server, journal, ring), http(server, journal, ring)
    ask_together([(one, [ask("a")]), (two, [ask("b", second), ask("c", second)])])
    first, middle, last = sorted(t for times in server.times.values() for t in times)
    assert middle - first >= 0.9
    assert last - middle >= 0.9


def test_tokens_are_set_aside_for_the_longest_reply_and_given_back(server: Server, journal: Journal) -> None:
    """The bucket holds 1,000 tokens. Each call may take 1,000 and takes 5, so that all can leave one after the other."""
    ring = KeyRing({"TEST_KEY": KeySection(tokens_per_minute=61_000)})
    endpoint = http(server, journal, ring, in_flight=1, sampling={"max_tokens": 990})
    began = time.monotonic()
    endpoint.complete_all([ask(str(i), endpoint.model) for i in range(10)])
    assert time.monotonic() - began < 8  # without refunds it would be 9 s


def test_every_key_is_blanked_out(server: Server, journal: Journal) -> None:
    async def tell(_: str, __: int) -> web.StreamResponse:
        return web.json_response(completion("secret-of-KEY_A and secret-of-KEY_B"))

    server.answer = tell
    (reply,) = http(server, journal, api_key_env=["KEY_A", "KEY_B"]).complete_all([ask("a")])
    assert reply.text == "[key] and [key]"


# ── addresses ────────────────────────────────────────────────────────────────────────────────────────────────────────


def nobody_listens() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def test_two_addresses_share_the_calls_and_a_dead_one_is_left_out(server: Server, other: Server, journal: Journal) -> None:
    endpoint = http(server, journal, base_url=[server.url, nobody_listens(), other.url], in_flight=8)
    replies = endpoint.complete_all([ask(str(i)) for i in range(300)])
    assert all(r.text for r in replies)
    assert min(sum(server.seen.values()), sum(other.seen.values())) >= 75
    assert journal.usage().failed <= limits.EJECT_AFTER + 8 + 10  # until it was left out, those under way, and tests
    assert journal.usage().paid == 300


def test_a_call_that_failed_at_one_address_tries_another(server: Server, other: Server, journal: Journal, quick: None) -> None:
    async def broken(_: str, __: int) -> web.StreamResponse:
        return web.Response(status=500)

    server.answer = broken
    endpoint = http(server, journal, base_url=[server.url, other.url], attempts=2, in_flight=1)
    assert [r.text for r in endpoint.complete_all([ask(t) for t in "abc"])] == ["re a", "re b", "re c"]
    assert other.seen == Counter("abc")


def test_an_address_that_comes_back_is_used_again(server: Server, other: Server, journal: Journal, quick: None) -> None:
    async def broken(text: str, times: int) -> web.StreamResponse:
        return web.Response(status=500) if sum(other.seen.values()) <= limits.EJECT_AFTER else await other.echo(text, times)

    async def slow(text: str, times: int) -> web.StreamResponse:
        await asyncio.sleep(0.005)
        return await server.echo(text, times)

    server.answer, other.answer = slow, broken
    http(server, journal, base_url=[server.url, other.url], in_flight=4).complete_all([ask(str(i)) for i in range(300)])
    assert sum(other.seen.values()) > limits.EJECT_AFTER + 20


@pytest.mark.parametrize("alive", [True, False])
def test_when_no_address_answers_the_run_ends_and_can_go_on(
    server: Server, journal: Journal, quick: None, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    monkeypatch.setattr(limits, "LONGEST_WAIT_S" if alive else "FIRST_CONTACT_S", 0.3)
    monkeypatch.setattr(limits, "FIRST_CONTACT_S" if alive else "LONGEST_WAIT_S", 1e6)
    requests = [ask(str(i)) for i in range(100)]
    if alive:
        http(server, journal).complete_all(requests[:3])
    with pytest.raises(EndpointError, match=r"No call was answered for .* s; the last error was: no connection"):
        http(server, journal, base_url=[nobody_listens(), nobody_listens()], attempts=1000).complete_all(requests)
    assert journal.usage().paid == (3 if alive else 0)
    assert all(r.text for r in http(server, journal).complete_all(requests))


def test_what_an_earlier_round_left_does_not_count_against_a_server(server: Server, journal: Journal, quick: None) -> None:
    """The last calls of a round failed, and a long while later the same key and address are asked again."""

    async def answer(text: str, times: int) -> web.StreamResponse:
        return too_many(status=503) if text.startswith("poison") else await server.echo(text, times)

    server.answer = answer
    endpoint = http(server, journal, in_flight=1, attempts=4)
    replies = endpoint.complete_all([ask("fine"), *(ask(f"poison {i}") for i in range(3))])
    assert [r.failure for r in replies] == [None] + [Failure.server_error] * 3
    (host,), (key,) = endpoint.served.hosts.all, endpoint.served.keys
    long_ago = time.monotonic() - 2 * limits.LONGEST_WAIT_S
    assert host.down_since is not None
    host.down_since = long_ago
    key.limited(long_ago, 0, long_ago)
    assert [r.text for r in endpoint.complete_all([ask("again")])] == ["re again"]


# ── budgets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_budget_in_dollars_waits_for_what_comes_back_before_it_is_used_up(server: Server, tmp_path: Path) -> None:
    """A call may cost 100 microdollars (2 prompt tokens and 48 reply tokens at 2) and costs 10 (3 and 2). Of 300, at most three
    fly at a time; the last that can be afforded is the one after which less than 100 are left: 20 or 21."""
    price = {"prompt": 2.0, "completion": 2.0}
    with Journal(tmp_path / "j", Budget(dollars=300e-6)) as journal:
        endpoint = http(server, journal, price=price, in_flight=16, sampling={"max_tokens": 48})
        model = endpoint.model
        requests = [ask(str(i), model) for i in range(60)]
        with pytest.raises(BudgetError, match="budget_dollars"):
            endpoint.complete_all(requests)
        usage = journal.usage()
        assert usage.unfinished == 0
        assert usage.dollars == pytest.approx(usage.answered * 10e-6)
        assert 15 <= usage.answered <= 25
        assert usage.dollars <= 300e-6
    with Journal(tmp_path / "j", Budget(dollars=1.0)) as journal:
        assert all(r.text for r in http(server, journal, price=price).complete_all(requests))
    assert set(server.seen.values()) == {1}


def test_a_budget_in_tokens_counts_a_timeout_at_the_most(server: Server, tmp_path: Path, quick: None) -> None:
    async def hang(_: str, __: int) -> web.StreamResponse:
        await asyncio.sleep(30)
        raise AssertionError

    server.answer = hang
    with Journal(tmp_path / "j", Budget(tokens=1000)) as journal:
        endpoint = http(server, journal, timeout_s=0.2, attempts=9, sampling={"max_tokens": 400})
        with pytest.raises(BudgetError, match="budget_tokens"):
            endpoint.complete_all([ask("abcd", endpoint.model)])
        usage = journal.usage()
        assert (usage.paid, usage.tokens) == (2, 2 * (400 + 2))  # four characters are two tokens, rounded up


def test_free_failures_give_everything_back(server: Server, tmp_path: Path, quick: None) -> None:
    async def picky(text: str, times: int) -> web.StreamResponse:
        return web.Response(status=400) if int(text) % 2 else await server.echo(text, times)

    server.answer = picky
    with Journal(tmp_path / "j", Budget(calls=51)) as journal:  # 50 are answered, and the last one has to be set aside, too
        replies = http(server, journal, in_flight=4).complete_all([ask(str(i)) for i in range(100)])
    assert [r.failure for r in replies] == [Failure.bad_request if i % 2 else None for i in range(100)]


def test_an_interrupt_leaves_open_only_what_was_sent(server: Server, tmp_path: Path) -> None:
    """Calls that were announced and did not leave cost nothing, however the run was stopped."""

    async def interrupted(endpoint: HttpEndpoint) -> None:
        task = asyncio.create_task(calls_to([(endpoint, [ask(str(i)) for i in range(20)])], SILENT))
        while not (server.seen and journal.usage().attempts > 5):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def answer(text: str, times: int) -> web.StreamResponse:
        await asyncio.sleep(60)
        return await server.echo(text, times)

    server.answer = answer
    with Journal(tmp_path / "j") as journal:
        asyncio.run(interrupted(http(server, journal, in_flight=1)))
        usage = journal.usage()
    assert sum(server.seen.values()) == 1
    assert (usage.paid, usage.unfinished) == (1, 1)
    assert usage.attempts > 5


def test_an_interrupted_test_of_key_and_address_does_not_bar_them(server: Server, journal: Journal, quick: None) -> None:
    async def hang(text: str, times: int) -> web.StreamResponse:
        await asyncio.sleep(60)
        return await server.echo(text, times)

    async def interrupted() -> None:
        task = asyncio.create_task(calls_to([(endpoint, [ask("a")])], SILENT))
        while not server.seen:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    endpoint = http(server, journal)
    (host,), (key,) = endpoint.served.hosts.all, endpoint.served.keys
    now = time.monotonic() - 100
    for i in range(limits.EJECT_AFTER):
        host.failed(now + i, now + i, now + i)
        key.limited(now + i, 0, now + i)
    server.answer = hang
    asyncio.run(interrupted())
    assert host.flying == 0
    server.answer = server.echo
    assert [r.text for r in endpoint.complete_all([ask("a")])] == ["re a"]


def test_an_interrupt_in_a_notebook_ends_the_calls(server: Server, journal: Journal) -> None:
    """There a loop is running already, and Ctrl-C raises KeyboardInterrupt in the thread that waits for ours."""

    async def answer(text: str, times: int) -> web.StreamResponse:
        if sum(server.seen.values()) == 10:
            os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.01)
        return await server.echo(text, times)

    async def cell() -> None:
        with pytest.raises(KeyboardInterrupt):
            http(server, journal, in_flight=1).complete_all([ask(str(i)) for i in range(300)])

    server.answer = answer
    notebook = asyncio.new_event_loop()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
    try:
        notebook.run_until_complete(cell())
    finally:
        signal.signal(signal.SIGINT, before)
        notebook.close()
    assert 10 <= sum(server.seen.values()) < 300
    assert journal.count() >= 9


def test_what_an_attempt_may_cost_stands_in_the_journal_before_it_leaves(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []

    async def look(text: str, times: int) -> web.StreamResponse:
        usage = second.usage()
        seen.append((usage.tokens, usage.dollars))
        return await server.echo(text, times)

    server.answer = look
    with Journal(tmp_path / "j") as journal, Journal(tmp_path / "j") as second:
        endpoint = http(server, journal, price={"prompt": 1.0, "completion": 10.0}, sampling={"max_tokens": 50})
        endpoint.complete_all([ask("abcd", endpoint.model)])
        assert seen == [(52, pytest.approx(502e-6))]
        assert (journal.usage().tokens, journal.usage().dollars) == (5, pytest.approx(23e-6))
        assert wire.spend(endpoint.served.settings, 3, 2) == Spend(5, 23)


# ── kinds of failure ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("answer", "failure", "asked"),
    [
        (lambda: web.Response(status=400, text="maximum context length is 8"), Failure.context_length, 1),
        (lambda: web.Response(status=413), Failure.context_length, 1),
        (lambda: web.Response(status=422, text="no"), Failure.bad_request, 1),
        (lambda: web.Response(status=500), Failure.server_error, 3),
        (lambda: web.Response(status=529), Failure.server_error, 3),
        (lambda: web.Response(status=408), Failure.timeout, 3),
        (lambda: web.Response(text="<html>", content_type="text/html"), Failure.not_a_reply, 3),
        (lambda: web.json_response({"choices": []}), Failure.not_a_reply, 3),
        (lambda: web.json_response(completion("x", "weather")), Failure.unknown_finish, 1),
    ],
)
def test_failures_have_names(
    server: Server, journal: Journal, quick: None, answer: Any, failure: Failure, asked: int
) -> None:
    async def fail(_: str, __: int) -> web.StreamResponse:
        response: web.StreamResponse = answer()
        return response

    server.answer = fail
    (reply,) = http(server, journal).complete_all([ask("a")])
    assert (reply.finish, reply.failure, bool(reply.error)) == (Finish.error, failure, True)
    assert server.seen["a"] == asked == len(journal.attempts(reply.call_id))


def test_half_a_character_in_an_error_spoils_nothing(server: Server, journal: Journal) -> None:
    async def answer(text: str, times: int) -> web.StreamResponse:
        if text == "bad":
            return web.json_response({"error": {"message": "wrong: \ud83d"}}, status=400)
        return await server.echo(text, times)

    server.answer = answer
    replies = http(server, journal).complete_all([ask("bad"), ask("good")])
    assert [(r.error, r.text) for r in replies] == [("HTTP 400: wrong: \ufffd", ""), ("", "re good")]


def test_a_timeout_and_a_lost_connection_have_names(server: Server, journal: Journal, quick: None) -> None:
    async def misbehave(text: str, _: int) -> web.StreamResponse:
        if text == "lost":
            raise asyncio.CancelledError
        await asyncio.sleep(30)
        raise AssertionError

    server.answer = misbehave
    lost, hung = http(server, journal, timeout_s=0.3, attempts=1).complete_all([ask("lost"), ask("hung")])
    assert (lost.failure, hung.failure) == (Failure.connection, Failure.timeout)
    (unreachable,) = http(server, journal, base_url=nobody_listens(), attempts=1).complete_all([ask("x")])
    assert unreachable.failure is Failure.connection


def test_a_reply_that_stops_in_the_middle_is_given_up(server: Server, journal: Journal, quick: None) -> None:
    body = json.dumps(completion("x" * 100)).encode()

    async def stall(_: str, times: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(server.request)
        await response.write(body[:50])
        if times == 1:
            await asyncio.sleep(30)
        await response.write(body[50:])
        return response

    server.answer = stall
    (reply,) = http(server, journal, idle_timeout_s=0.3, timeout_s=60).complete_all([ask("a")])
    assert reply.text == "x" * 100
    first, _ = journal.attempts(reply.call_id)
    assert first is not None
    assert (first.error, first.body) == ("not a byte within 0.3 s", body[:50].decode())
    assert journal.usage().paid == 2


def test_large_replies_are_fine_up_to_a_limit(server: Server, journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    async def large(text: str, _: int) -> web.StreamResponse:
        return web.json_response(completion("é" * int(text)))

    server.answer = large
    monkeypatch.setattr(wire, "MOST_BYTES", 3_000_000)
    fine, much = http(server, journal).complete_all([ask("400000"), ask("600000")])  # json.dumps writes six bytes per é
    assert len(fine.text) == 400_000
    assert (much.failure, much.error) == (Failure.too_large, "the reply is larger than 3 MB")
    assert server.seen["600000"] == 1
    (kept,) = journal.attempts(much.call_id)
    assert kept is not None
    assert kept.body.startswith('{"choices"')
    assert len(kept.body) == 10_000
    assert journal.usage().paid == 2


# ── other APIs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_conversation_with_anthropic(server: Server, journal: Journal, quick: None) -> None:
    async def claude(text: str, times: int) -> web.StreamResponse:
        if times == 1:
            error = {"type": "overloaded_error", "message": "Overloaded"}
            return web.json_response({"type": "error", "error": error}, status=529)
        return web.json_response({
            "type": "message", "content": [{"type": "text", "text": f"re {text}"}], "stop_reason": "end_turn",
            "usage": {"input_tokens": 8, "output_tokens": 2},
        })  # fmt: skip

    server.answer = claude
    endpoint = http(server, journal, type="anthropic")
    assert endpoint.model.provider == "anthropic"
    messages = (Message(role="system", content="be kind"), Message(role="user", content="hi"))
    (reply,) = endpoint.complete_all([Request(endpoint.model, messages)])
    assert (reply.text, reply.finish, reply.prompt_tokens, reply.completion_tokens) == ("re hi", Finish.stop, 8, 2)
    assert set(server.paths) == {"/v1/messages"}
    assert server.headers[0]["x-api-key"] == KEY
    assert server.payloads[0]["system"] == "be kind"
    assert [a and a.error for a in journal.attempts(reply.call_id)] == ["HTTP 529: Overloaded", ""]


def test_a_completion_and_one_that_cannot_be_asked(server: Server, journal: Journal) -> None:
    async def complete(text: str, _: int) -> web.StreamResponse:
        return web.json_response({"choices": [{"text": f" re {text[-14:-12]}", "finish_reason": "stop"}]})

    server.answer = complete
    endpoint = http(server, journal, api="completions")
    forged = Request(endpoint.model, (Message(role="user", content="a\n\nHuman: b"),))
    good, bad = endpoint.complete_all([ask("hi", endpoint.model), forged])
    assert good.text == "re hi"
    assert bad.failure is Failure.bad_request
    assert "marker" in bad.error
    assert journal.usage().paid == 1
    assert set(server.paths) == {"/v1/completions"}

"""Limits, worked by hand: nothing waits, time is a number."""

from __future__ import annotations

import math
import random

import pytest

from starling.endpoint import limits
from starling.endpoint.limits import Bucket, Flow, Host, Hosts, Key, Ratio

# ── patience of one call ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("failures", "draw", "seconds"),
    [(1, 0.0, 0.25), (1, 1.0, 0.5), (2, 1.0, 1.0), (5, 0.0, 4.0), (8, 1.0, 60.0), (10_000, 0.0, 30.0)],
)
def test_backoff_doubles_up_to_a_minute_with_half_of_it_by_chance(failures: int, draw: float, seconds: float) -> None:
    assert limits.backoff(failures, draw) == pytest.approx(seconds)


@pytest.mark.parametrize(("asked", "draw", "seconds"), [(2, 0, 2.0), (2, 1, 2.2), (60, 1, 60.5), (0.5, 1, 0.55)])
def test_what_the_server_asks_for_is_kept_and_little_is_added(asked: float, draw: float, seconds: float) -> None:
    assert limits.after(asked, draw) == pytest.approx(seconds)


# ── buckets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_bucket_worked_by_hand() -> None:
    bucket = Bucket(6100)  # holds 100, fills at 100 per second
    assert bucket.wait(60, 0.0) == 0
    bucket.take(60, 0.0)
    assert bucket.wait(60, 0.0) == pytest.approx(0.2)  # 40 are left
    assert bucket.wait(60, 0.2) == 0
    bucket.take(60, 0.2)
    bucket.give_back(30)
    assert bucket.wait(30, 0.2) == 0
    assert bucket.wait(31, 0.2) == pytest.approx(0.01)
    bucket.give_back(1000)  # never more than it holds
    bucket.take(100, 0.2)
    assert bucket.wait(1, 0.2) == pytest.approx(0.01)


def test_a_call_larger_than_the_bucket_leaves_and_is_paid_off_afterwards() -> None:
    bucket = Bucket(6100)
    assert bucket.wait(1000, 0.0) == 0
    bucket.take(1000, 0.0)
    assert bucket.wait(1000, 0.0) == pytest.approx(10.0)  # a full bucket again, not 1,000
    bucket.give_back(-100)  # it used more than was set aside
    assert bucket.wait(1000, 0.0) == pytest.approx(11.0)


@pytest.mark.parametrize("per_minute", [1, 2, 7, 60, 61, 500, 10_000])
def test_no_minute_has_more_than_the_limit_and_the_limit_is_nearly_reached(per_minute: int) -> None:
    bucket, now, times = Bucket(per_minute), 0.0, []
    while now < 600:
        wait = bucket.wait(1, now)
        if wait == 0:
            bucket.take(1, now)
            times.append(now)
        now += max(wait, 1e-9)
    first = 0
    for last, time in enumerate(times):
        while times[first] <= time - 60:
            first += 1
        assert last - first + 1 <= per_minute
    assert len(times) >= 0.97 * 10 * per_minute


def test_a_clock_that_stands_still_or_goes_back_fills_nothing() -> None:
    bucket = Bucket(61)
    bucket.take(1, 100.0)
    assert bucket.wait(1, 50.0) == pytest.approx(1.0)
    assert bucket.wait(1, 100.0) == pytest.approx(1.0)


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_requests_and_tokens_of_a_key_are_taken_and_given_back() -> None:
    key = Key("K", requests_per_minute=61, tokens_per_minute=61_000)  # 1 call and 1,000 tokens per second
    assert key.wait(800, 0.0) == 0
    assert key.take(800, 0.0) is False
    assert key.wait(100, 0.0) == pytest.approx(1.0)  # the call
    assert key.wait(800, 1.0) == 0
    key.take(800, 1.0)
    key.take(800, 1.0)
    key.untake(800, False)
    assert key.wait(700, 2.0) == 0
    key.take(2000, 2.0)
    key.landed(1500, False)  # 500 used: 1,000 held, 1,000 - 2,000 + 1,500
    assert key.wait(501, 2.0) == pytest.approx(1.0)
    assert key.wait(501, 3.0) == 0
    assert Key("free").wait(10**9, 0.0) == 0


def test_a_lone_rejection_parks_nobody() -> None:
    key = Key("K")
    assert not key.limited(sent=0.0, asked_s=30, now=1.0)
    for sent in (0.1, 0.2, 0.9):  # these left before the first came back: they say nothing new
        assert not key.limited(sent, 30, 1.1)
    assert not key.limited(sent=1.2, asked_s=30, now=2.0)
    key.answered()
    assert not key.limited(sent=2.5, asked_s=30, now=3.0)
    assert key.wait(1, 3.0) == 0


def test_three_rejections_in_a_row_park_the_key_until_its_time_is_over() -> None:
    key = Key("K")
    key.limited(0.0, 5, 1.0)
    key.limited(1.5, 5, 2.0)
    assert key.limited(2.5, 5, 3.0)
    assert key.wait(1, 3.0) == 5
    assert key.wait(1, 7.9) == pytest.approx(0.1)
    key.answered()  # a call that was on its way: the server has named a time, and it is kept
    assert key.wait(1, 4.0) == 4
    assert key.wait(1, 8.0) == 0


def test_a_parked_key_is_tested_by_one_call() -> None:
    key = Key("K")
    for second in range(3):
        key.limited(second, 2, second + 0.5)
    assert key.parked_until == 4.5
    assert key.take(1, 5.0) is True
    assert key.wait(1, 5.0) == math.inf
    assert not key.limited(sent=1.0, asked_s=2, now=5.1)  # left before the key was parked
    assert key.limited(sent=5.0, asked_s=2, now=5.2)
    key.landed(0, True)
    assert key.wait(1, 5.2) == 2
    assert key.take(1, 7.2) is True
    key.answered()
    key.landed(0, True)
    assert key.wait(1, 7.3) == 0
    assert key.take(1, 7.3) is False


def test_without_a_time_the_key_waits_twice_as_long_each_time_until_it_answers() -> None:
    key, now, waits = Key("K"), 0.0, []
    for _ in range(12):
        sent, now = now, now + 0.5
        if key.limited(sent, 0, now):
            waits.append(key.wait(1, now))
            now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert key.refused_for(now) == pytest.approx(now - 0.5)
    key.parked_until = now + 60
    key.answered()
    assert key.wait(1, now) == 0
    assert key.refused_for(now) == 0


def test_more_than_the_longest_wait_parks_at_once() -> None:
    key = Key("K")
    assert key.limited(0.0, limits.LONGEST_WAIT_S + 1, 1.0)
    assert key.wait(1, 1.0) == limits.LONGEST_WAIT_S + 1
    assert not Key("L").limited(0.0, limits.LONGEST_WAIT_S, 1.0)


def test_rejections_long_ago_are_another_story() -> None:
    key = Key("K")
    for second in range(3):
        key.limited(second, 1, second + 0.5)
    assert not key.limited(5000.0, 1, 5000.5)
    assert key.refused_for(5001.0) == pytest.approx(0.5)


# ── concurrency ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_flow_falls_once_per_round_trip_by_half_the_share_rejected() -> None:
    flow = Flow(64)
    for _ in range(10):
        flow.limited(sent=0.0, now=1.0)  # all left before the first came back: one round
    assert flow.limit == 64
    flow.limited(sent=1.0, now=2.0)  # the first of the next round ends it: 11 of 11
    assert flow.limit == 32
    for _ in range(3):
        flow.limited(sent=1.5, now=2.5)
    assert flow.limit == 32
    flow.limit = 60.0
    for _ in range(4):
        flow.answered(sent=1.9, now=2.9)  # 2/60 more for each
    before = flow.limit
    assert before == pytest.approx(60 + 4 * 2 / 60, abs=0.001)
    flow.limited(sent=2.0, now=3.0)  # 4 rejected of 8
    assert flow.limit == pytest.approx(before * 0.75)


def test_flow_has_a_floor_and_comes_back() -> None:
    flow = Flow(64)
    for second in range(20):
        flow.limited(second, second + 0.5)
    assert flow.limit == 4  # a sixteenth
    for second in range(20, 1000):
        for _ in range(int(flow.limit)):
            flow.answered(second, second + 0.5)
        if flow.limit == 64:
            break
    assert second - 20 == pytest.approx(30, abs=3)  # 2 more per round trip, from 4 to 64


def test_a_lone_rejection_among_hundreds_is_not_felt() -> None:
    flow = Flow(256)
    for trip in range(3):
        for call in range(256):
            if (trip, call) == (1, 100):
                flow.limited(trip, trip + 0.5)
            else:
                flow.answered(trip, trip + 0.5)
    assert flow.limit > 255


def test_flow_of_one_stays_one() -> None:
    flow = Flow(1)
    for second in range(3):
        flow.limited(second, second + 0.5)
    assert flow.limit == 1
    flow.answered(3, 3.5)
    assert flow.limit == 1


@pytest.mark.parametrize(("takes", "least", "most"), [(100, 95, 0.2), (20, 19, 0.6)])
def test_flow_settles_around_what_a_server_takes(takes: int, least: int, most: float) -> None:
    """A server that rejects whatever exceeds so many in flight: nearly all of it is used, and the rejections stay bounded."""
    flow, used, rejected = Flow(256), 0, 0
    for trip in range(400):
        flying = int(flow.limit)
        for i in range(flying):
            if i % flying < takes:
                flow.answered(trip, trip + 0.5)
            else:
                flow.limited(trip, trip + 0.5)
        if trip >= 50:
            used += min(flying, takes)
            rejected += max(0, flying - takes)
    assert used / 350 >= least
    assert rejected / used < most


# ── addresses ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_address_is_left_out_after_faults_in_a_row_and_tested_later_and_later() -> None:
    host = Host("u")
    for _ in range(limits.EJECT_AFTER - 1):
        assert not host.failed(0.0, 0.0, 1.0)
    host.answered(1.0)
    for _ in range(limits.EJECT_AFTER - 1):
        assert not host.failed(1.0, 1.0, 2.0)
    assert host.failed(1.0, 1.0, 2.0)
    assert host.wait(2.0) == 1
    assert not host.failed(1.5, 1.5, 2.5)  # left before: nothing new
    waits, now = [], 3.0
    for _ in range(7):
        assert host.wait(now) == 0
        assert host.take() is True
        assert host.wait(now) == math.inf  # one test at a time
        assert host.failed(now, now, now + 0.5)
        host.landed(True)
        waits.append(host.wait(now + 0.5))
        now += 0.5 + waits[-1]
    assert waits == [2, 4, 8, 16, 32, 60, 60]
    host.take()
    host.answered(now)
    host.landed(True)
    assert host.wait(now) == 0
    assert host.take() is False
    assert host.flying == 1


def test_calls_that_fail_for_ever_take_no_address_out() -> None:
    """They began before the last answer: it is them. Those that began after it are counted; while it is out, all are."""
    host = Host("u")
    host.answered(5.0)
    for _ in range(3 * limits.EJECT_AFTER):
        assert not host.failed(4.9, 6.0, 7.0)
    for _ in range(limits.EJECT_AFTER - 1):
        assert not host.failed(5.1, 6.0, 7.0)
    assert host.failed(5.1, 6.0, 7.0)
    assert host.failed(4.9, 8.0, 8.5), "the test of an address that is out failed"
    assert host.wait(8.5) == 2


def test_a_call_that_hangs_does_not_keep_an_address_from_being_tested() -> None:
    host = Host("u")
    host.take()
    for _ in range(limits.EJECT_AFTER):
        host.failed(0.0, 0.0, 1.0)
    assert host.wait(2.0) == 0


def test_the_least_busy_address_that_is_up_is_picked() -> None:
    hosts = Hosts(["a", "b", "c"])
    a, b, c = hosts.all
    a.take()
    c.take()
    assert hosts.pick(0.0) is b
    for _ in range(limits.EJECT_AFTER):
        b.failed(0.0, 0.0, 1.0)
    assert hosts.pick(1.0) is a
    c.landed(False)
    assert hosts.pick(1.0) is c
    assert hosts.pick(1.0, avoid=c) is a
    for host in (a, c):
        for _ in range(limits.EJECT_AFTER):
            host.failed(1.0, 1.0, 1.5)
    assert hosts.pick(1.5) is None
    assert hosts.wait(1.5) == pytest.approx(0.5)
    assert hosts.down_for(3.5) == pytest.approx(2.0)  # the last one went out at 1.5
    assert hosts.pick(2.0) is b
    b.answered(2.0)
    assert hosts.down_for(3.5) == 0


def test_an_only_address_is_picked_although_a_call_failed_there() -> None:
    hosts = Hosts(["a"])
    assert hosts.pick(0.0, avoid=hosts.all[0]) is hosts.all[0]


# ── estimates ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_estimates_follow_the_usage() -> None:
    ratio = Ratio()
    assert ratio.tokens(400) == 101
    ratio.saw(400, 202)
    assert ratio.tokens(400) == 202
    rng = random.Random(0)
    for _ in range(1000):
        chars = rng.randint(100, 10_000)
        ratio.saw(chars, round(chars / 3))
    assert ratio.tokens(3000) == pytest.approx(1000, rel=0.01)

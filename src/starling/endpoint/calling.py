"""Calls to servers: many in flight, each once, under the limits of keys and servers.

A call goes through these hands, and every step of it is safe against the death of the process:

    ready       drawn from the requests, a few ahead of the server; not yet answered by the journal
    announced   a key was chosen and paid in advance, and so was the budget; the intent is in the journal (`commits`)
    flying      on the wire (`transport`)
    landed      its raw reply is in the journal; now it is parsed: answered, failed by name, or ready again later

Who may leave when and where to is decided by `limits`. Being told to come back later (429) costs a call none of its attempts; it
goes to another key at once, if there is one. What concerns every call (a refused key, an address that is wrong or dead, a key
that rejects everything for 15 minutes) ends the run with an EndpointError: calls in flight finish and are written, and the next
run goes on from there.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from itertools import count, islice

from starling.call import Failure, Reply, Request, failed_reply, parse_reply
from starling.config import secret
from starling.endpoint import limits, wire
from starling.endpoint.asking import NOT_A_REPLY
from starling.endpoint.commits import Writer
from starling.endpoint.lanes import Call, Lane, Served, choose
from starling.endpoint.limits import Host
from starling.endpoint.transport import Landing, Wire
from starling.errors import EndpointError
from starling.journal import Answer, Intent, Journal, Rejection, StoredReply, Tokens
from starling.progress import Progress

DRAWN_TOGETHER = 64
"""Requests drawn and looked up in the journal at once."""
DEAD_AFTER = 50
"""So many calls given up in a row, with no answer in between, mean that something is wrong with more than these calls."""
MOST_REJECTIONS = 100
"""A call that is told so often to come back, while others are answered, is given up."""
MINUTE_S = 65.0
"""A call is given up, too, that is rejected for so long although all others have been answered meanwhile: limits are by the
minute, and nobody is left to use them up."""
RETRIED = frozenset({Failure.server_error, Failure.timeout, Failure.connection, Failure.not_a_reply})
"""Failures that another attempt may cure."""
ALIKE = frozenset({Failure.bad_request, Failure.context_length, Failure.too_large})
"""Failures of the question, not of the server."""


class Group:
    """The models that are asked at the same time: what they share, and the end."""

    def __init__(self, progress: Progress) -> None:
        self.stopped: Exception | None = None
        self._progress = progress
        self._models: Sequence[Calls] = ()
        self._writers: dict[int, Writer] = {}
        self._done = self._known = self._failures = 0
        self._note = ""

    async def run(self, models: Sequence[Calls]) -> None:
        """Until all is asked.

        Raises:
            StarlingError: why it was stopped before; what was in flight has been written.
        """
        self._models = models
        tasks = [asyncio.create_task(model.run()) for model in models]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for model in models:
                await model.close()
            for writer in self._writers.values():
                await writer.close()
            self._report()
        if self.stopped is not None:
            raise self.stopped

    def writer(self, journal: Journal) -> Writer:
        """The one that writes into `journal`."""
        if id(journal) not in self._writers:
            self._writers[id(journal)] = Writer(journal, self._written, self.stop)
        return self._writers[id(journal)]

    def stop(self, error: Exception) -> None:
        """No further calls; those in flight are finished and written."""
        self.stopped = self.stopped or error
        for model in self._models:
            model.poke()

    def under_way(self, key: str, journal: Journal) -> Call | None:
        """The open call with this key: of the model itself, or of one of the same identity, whose answer is its answer, too."""
        return next((m.open[key] for m in self._models if key in m.open and m.journal is journal), None)

    def in_motion(self) -> bool:
        """Whether money that was set aside may still come back."""
        return any(m.moving for m in self._models) or any(w.pending for w in self._writers.values())

    def known(self, n: int) -> None:
        """The journal had the answers to `n` requests."""
        self._known += n
        self._done += n
        self._note = f"{self._known} from the journal"

    def over(self, n: int, *, failed: bool) -> None:
        """`n` more requests are over."""
        self._done += n
        self._failures += failed
        self._note = f"{self._failures} failed" if failed else self._note

    def note(self, note: str) -> None:
        """Something that a person should see beside the progress."""
        self._note = note

    def _written(self) -> None:
        """Every model looks again: money may have come back, intents are on disk."""
        self._report()
        for model in self._models:
            model.poke()

    def _report(self) -> None:
        if self._done or self._note:
            self._progress.advance(self._done, self._note)
            self._done, self._note = 0, ""


class Calls:
    """All calls of one model in one round. Everything happens in one event loop.

    Args:
        served: the model.
        requests: what to ask; gone through once, a few at a time.
        group: what it shares with the models asked at the same time.
    """

    def __init__(self, served: Served, requests: Collection[Request], group: Group) -> None:
        self.failed: dict[str, Reply] = {}
        """Calls without an answer, by key."""
        self._served = served
        self._settings = served.settings
        self._group = group
        self._source: Iterator[Request] | None = iter(requests)
        self._ready: deque[Call] = deque()
        self._later: list[tuple[float, int, Call]] = []
        self._numbers = count()
        self.open: dict[str, Call] = {}
        """Calls that are not over, by key."""
        self.journal = served.journal
        self._lanes: list[Lane] = []
        self._wire: Wire
        self._writer: Writer
        self._flights: set[asyncio.Task[None]] = set()
        self._closed = False
        self._opened_at = math.inf
        """When the first call was about to leave."""
        self._server_error = "none"
        self._answered_at = -math.inf
        """When the last reply came."""
        self._given_up = 0
        self._poked = False
        self._wake: asyncio.Future[None] | None = None

    @property
    def moving(self) -> bool:
        """Whether calls that were paid for in advance are under way."""
        return bool(self._flights) or any(lane.announcing for lane in self._lanes)

    def poke(self) -> None:
        """Look again what can leave."""
        self._poked = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def run(self) -> None:
        """Until every request is over, or the group is stopped and nothing is in flight."""
        while self._group.stopped is None:
            try:
                self._draw()
            except Exception as error:  # the journal cannot be read, or a request cannot be made
                self._group.stop(error)
                break
            if self._source is None and not self.open:
                return
            now = time.monotonic()
            wait = self._start(now)
            self._lose_patience(now)
            if self._source is not None and len(self._ready) < DRAWN_TOGETHER:
                await asyncio.sleep(0)
            else:
                await self._sleep(wait)
        for lane in self._lanes:
            self._take_back(lane)
        while self._flights:
            await self._sleep(math.inf)

    async def _sleep(self, seconds: float) -> None:
        """Until `poke`, but not longer than so many seconds."""
        if not self._poked:
            loop = asyncio.get_running_loop()
            self._wake = loop.create_future()
            timer = loop.call_later(seconds, self.poke) if seconds < math.inf else None
            await self._wake
            if timer is not None:
                timer.cancel()
        self._poked = False

    async def close(self) -> None:
        """Give up what is still flying, as when the program is interrupted; what was only announced is taken back."""
        self._closed = True
        for lane in self._lanes:
            self._take_back(lane)
        for flight in self._flights:
            flight.cancel()
        await asyncio.gather(*self._flights, return_exceptions=True)
        if self._lanes:
            await self._wire.close()

    # ── ready ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _draw(self) -> None:
        """Draw requests, unless enough are ready, and look once into the journal."""
        if self._source is None or len(self._ready) >= DRAWN_TOGETHER:
            return
        drawn = list(islice(self._source, DRAWN_TOGETHER))
        if len(drawn) < DRAWN_TOGETHER:
            self._source = None
        known = self._served.journal.answered([r.key for r in drawn])
        answered = 0
        for request in drawn:
            if request.key in known:
                answered += 1
            elif request.key in self.failed:
                self._group.over(1, failed=True)
            elif (under_way := self._group.under_way(request.key, self.journal)) is not None:
                under_way.copies += 1
            else:
                call = self.open[request.key] = Call(request)
                self._ready.append(call)
        if answered:
            self._served.alive = True
            self._group.known(answered)
        if self._ready and not self._lanes:
            self._open_lanes()

    def _open_lanes(self) -> None:
        """The first call is about to leave."""
        self._opened_at = time.monotonic()
        secrets = [secret(env) for env in self._settings.api_key_env] or [None]
        self._wire = Wire(self._settings, [s for s in secrets if s])
        self._writer = self._group.writer(self._served.journal)
        self._lanes = [Lane(key, value, self._settings) for key, value in zip(self._served.keys, secrets, strict=True)]

    # ── announced ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _start(self, now: float) -> float:
        """Announce and send off what can go; returns the seconds until something may be different."""
        while self._later and self._later[0][0] <= now:
            self._ready.appendleft(heapq.heappop(self._later)[2])
        wait = self._later[0][0] - now if self._later else math.inf
        for lane in self._lanes:
            wait = min(wait, self._send_off(lane, now))
        for _ in range(len(self._ready)):
            call = self._ready[0]
            call.tokens = call.tokens or self._served.ratio.tokens(call.request.chars) + call.request.model.sampling.max_tokens
            chosen, lane_wait = choose(self._lanes, call, now)
            if chosen is None:
                wait = min(wait, lane_wait)
                if not call.not_before or not any(lane.room() for lane in self._lanes):
                    break  # nobody behind it could go, either; a call whose turn it is again keeps its place
                self._ready.rotate(-1)  # only this call is not wanted by the keys that are free
            elif self._announce(call, chosen, now):
                self._ready.popleft()
            else:
                break
        return wait

    def _announce(self, call: Call, lane: Lane, now: float) -> bool:
        """Pay in advance and write the intent; False when the budget does not allow it now."""
        request, journal = call.request, self._served.journal
        completion = request.model.sampling.max_tokens
        most = wire.spend(self._settings, call.tokens - completion, completion)
        if not journal.reserve(most):
            if not self._group.in_motion():  # nothing will come back
                self._group.stop(journal.budget_error())
            return False
        call.attempt += 1
        call.most = most
        lane.assign(call, now)
        intent = Intent(key=request.key, attempt=call.attempt, request=request.as_dict(), most=most)
        self._writer.add(intent, self._announced, call)
        return True

    def _announced(self, call: Call, late: bool) -> None:
        """Its intent is on disk."""
        assert call.lane is not None
        call.lane.announced.append(call)
        if self._closed or self._group.stopped is not None:
            self._take_back(call.lane)

    def _take_back(self, lane: Lane) -> None:
        """Announced calls will not leave: the run was stopped."""
        while lane.announced:
            call = lane.unassign()
            unsent = StoredReply(status=0, error="not sent: the run was stopped", sent=False)
            self._writer.add(Answer(key=call.request.key, attempt=call.attempt, reply=unsent))

    # ── flying ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _send_off(self, lane: Lane, now: float) -> float:
        """Let the announced calls of a lane fly; returns the seconds until more may."""
        while lane.announced and lane.flying < int(lane.flow.limit):
            call = lane.announced[0]
            if now < lane.key.parked_until:
                other, _ = choose(self._lanes, call, now)
                if other is None:
                    return lane.key.parked_until - now
                lane.unassign()
                other.assign(call, now)
                other.announced.append(call)
                self.poke()  # the other lane may have been looked at already
                continue
            host = self._served.hosts.pick(now, call.avoid)
            if host is None:
                return self._served.hosts.wait(now)
            lane.announced.popleft()
            lane.announcing -= 1
            lane.flying += 1
            flight = asyncio.get_running_loop().create_task(self._fly(call, lane, host, host.take()))
            self._flights.add(flight)
            flight.add_done_callback(self._flown)
        return math.inf

    async def _fly(self, call: Call, lane: Lane, host: Host, host_test: bool) -> None:
        limit_name = self._served.limit_name
        try:
            landing = await self._wire.send(call.request, host.url, lane.headers, limit_name)
        except asyncio.CancelledError:  # a later round may use key and address
            lane.key.landed(0, call.key_test)
            raise
        finally:
            lane.flying -= 1
            host.landed(host_test)
        self._note(call, landing, lane, host)
        answer = Answer(key=call.request.key, attempt=call.attempt, reply=landing.stored)
        self._writer.add(answer, self._landed, call, lane, host, landing, limit_name)

    def _flown(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        if not flight.cancelled() and (error := flight.exception()) is not None:
            self._group.stop(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        self.poke()

    def _note(self, call: Call, landing: Landing, lane: Lane, host: Host) -> None:
        """What the attempt says about server, key and load."""
        status, sent, now = landing.stored.status, landing.sent, landing.ended
        if status == 200:
            lane.flow.answered(sent, now)
            lane.key.answered()
        elif status in wire.BUSY_STATUS and landing.failure is not Failure.context_length:
            lane.flow.limited(sent, now)
        if landing.failure is Failure.rate_limited and lane.key.limited(sent, landing.wait_s, now):
            self._group.note(f"{lane.key.name or 'the server'} asks to wait for {lane.key.parked_until - now:.0f} s")
        # A server that answers 500 is there, and the request was too much for it: where it is the only one, leaving it out would
        # help nobody, and the call's attempts decide.
        there = status == 500 and len(self._served.hosts.all) == 1
        if landing.failure in (Failure.connection, Failure.timeout, Failure.server_error) and not there:
            self._server_error = landing.stored.error[:200]
            if host.failed(min(call.began, sent), sent, now):
                self._group.note(f"{host.url} is left out for a while: {landing.stored.error[:80]}")
        elif status and not there:
            host.answered(now)

    # ── landed ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _landed(self, call: Call, lane: Lane, host: Host, landing: Landing, limit_name: str, late: bool) -> None:
        """Its raw reply is on disk: only now is it read."""
        request, stored, failure, error = call.request, landing.stored, landing.failure, landing.stored.error
        if late:  # another process was first
            stored = self._served.journal.get(request.key) or stored
        reply = parse_reply(stored.body, request.key) if stored.answered else None
        unused = call.tokens if stored.status not in (0, 200) or not stored.sent else 0
        if reply is not None:
            self._answered_at = landing.ended
            unused = self._answered(call, reply)
        lane.key.landed(unused, call.key_test)
        call.tokens, call.avoid = 0, host
        if reply is not None:
            return
        if stored.answered:
            error, failure = NOT_A_REPLY, Failure.not_a_reply
            self._writer.add(Rejection(key=request.key, reason=error))
        assert failure is not None
        self._failed(call, lane, landing, failure, error, limit_name)

    def _answered(self, call: Call, reply: Reply) -> int:
        """Returns the tokens that were set aside and not needed."""
        request, prompt, completion = call.request, reply.prompt_tokens, reply.completion_tokens
        self._served.alive, self._given_up = True, 0
        if prompt:
            self._served.ratio.saw(request.chars, prompt)
        spent, unused = call.most, 0
        if prompt is not None and completion is not None:
            spent, unused = wire.spend(self._settings, prompt, completion), call.tokens - prompt - completion
        self._writer.add(Tokens(key=request.key, attempt=call.attempt, prompt=prompt, completion=completion, spent=spent))
        self._over(call, reply)
        return unused

    def _over(self, call: Call, reply: Reply) -> None:
        """No further attempts."""
        del self.open[call.request.key]
        if reply.failure not in (None, Failure.unknown_finish):  # that one is an answer, and in the journal
            self.failed[call.request.key] = reply
        self._group.over(call.copies, failed=reply.failure is not None)

    def _failed(self, call: Call, lane: Lane, landing: Landing, failure: Failure, error: str, limit_name: str) -> None:
        """Decide what becomes of a call after an attempt without an answer."""
        status, body, now = landing.stored.status, landing.stored.body, landing.ended
        call.began = min(call.began, landing.sent)
        if limit_name == "max_tokens" and wire.wants_new_limit(status, body):
            self._served.limit_name = "max_completion_tokens"
            self._ready.appendleft(call)
            return
        reason = wire.unusable(status, body)
        if reason:
            self._stop(f"The server {reason} ({error})", lane)
        elif failure is Failure.rate_limited:
            call.rejections += 1
            call.rejected_since = min(call.rejected_since, now)
            if not self._is_hopeless(call, now):
                call.not_before[lane.key] = now + self._pause(landing.wait_s, call.rejections)
                self._again(call, min(call.not_before.get(other.key, now) for other in self._lanes))
                return
        elif failure in RETRIED:
            call.faults += 1
            if call.faults < self._settings.attempts:
                self._again(call, now + self._pause(min(landing.wait_s, limits.LONGEST_WAIT_S), call.faults))
                return
        self._over(call, failed_reply(call.request.key, error, failure))
        # A call that was first tried before the last answer says nothing about the server: whatever fails for ever comes last.
        self._given_up += call.began > self._answered_at
        # Once the server has answered anything, a row of requests that it finds wrong is no sign of its death.
        if self._given_up >= DEAD_AFTER and (failure not in ALIKE or not self._served.alive):
            self._stop(f"The server failed {self._given_up} calls in a row ({error})", lane)

    def _is_hopeless(self, call: Call, now: float) -> bool:
        """Whether a call that is told to come back later is to blame itself: it asks for more than its key will ever have."""
        if call.rejections >= MOST_REJECTIONS:
            return True
        alone = self._source is None and len(self.open) <= DRAWN_TOGETHER and all(c.rejections for c in self.open.values())
        others_went = self._answered_at > call.rejected_since
        tried = call.rejections >= self._settings.attempts and now - call.rejected_since > MINUTE_S
        return alone and others_went and tried

    def _pause(self, asked_s: float, failures: int) -> float:
        return limits.after(asked_s, random.random()) if asked_s else limits.backoff(failures, random.random())

    def _again(self, call: Call, due: float) -> None:
        heapq.heappush(self._later, (due, next(self._numbers), call))

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _lose_patience(self, now: float) -> None:
        """Stop when no key or no server can be expected to answer."""
        if not self._lanes:
            return
        until = min(lane.key.parked_until for lane in self._lanes)
        here = now - self._opened_at  # what an earlier round left may be long over: nobody has asked since
        refused = min(here, *(lane.key.refused_for(now) for lane in self._lanes))
        down = min(here, self._served.hosts.down_for(now))
        if until - now > limits.LONGEST_WAIT_S:
            when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time.time() + until - now + 60))
            self._stop(f"The server asks not to be called before {when}", None, "start again after that time: ")
        elif refused > limits.LONGEST_WAIT_S:
            self._stop(f"The server has rejected every call for {refused:.0f} s because of its rate limit", None)
        elif down > (limits.LONGEST_WAIT_S if self._served.alive else limits.FIRST_CONTACT_S):
            self._stop(f"No call was answered for {down:.0f} s; the last error was: {self._server_error}", None)

    def _stop(self, what: str, lane: Lane | None, cure: str = "") -> None:
        where = f"model {self._served.name} at {', '.join(self._settings.base_url)}"
        where += f", key {lane.key.name}" if lane is not None and lane.key.name else ""
        cure = cure or "check base_url, name, api_key_env and the account, then start again: "
        self._group.stop(EndpointError(what, where=where, cure=cure + "answered calls are not repeated"))

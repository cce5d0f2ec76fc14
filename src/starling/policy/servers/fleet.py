"""Several inference servers as one: connections, shares, retries, and servers that are left out.

A call goes to the server it prefers (all replies to one prompt prefer the same one, whose prefix cache then serves them), or to
the least busy when that one is full. What fails goes to another server, or back to the same one after a pause that doubles.
A server that fails `attempts` times in a row is left out until it has taken new weights again: one that was restarted in
between answers with the weights it was started with, and nothing in its replies says so. Failures of calls that left before the
last pause began count as one, because they tell the same news.

No journal, unlike `starling.endpoint`: a reply belongs to weights that exist for one iteration only, costs no money, and is
drawn again from its seed when a killed run repeats its iteration.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starling.endpoint.transport import CONNECT_S
from starling.endpoint.wire import RETRY_STATUS, UNUSABLE_STATUS, error_message, retry_after
from starling.errors import EndpointError
from starling.policy.servers.facts import UNKNOWN, Facts

log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSE_S = 0.5
"""Seconds of the first pause after a failure."""
LONGEST_PAUSE_S = 30.0
MOST_BYTES = 64_000_000
"""A body larger than this is not read: 16,000 tokens with log-probs are below 1 MB, a server's own description below 5 MB."""


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, in their order; when one fails the others are cancelled and its error is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Trouble(Exception):
    """An attempt that failed and may be tried again: no connection, no reply in time, a status such as 503, an aborted reply."""

    def __init__(self, why: str, wait_s: float = 0.0) -> None:
        super().__init__(why)
        self.why = why
        self.wait_s = wait_s
        """What the server asks us to wait; 0 when it does not."""


class Refused(Exception):
    """The server answered with a status that trying again does not change."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


def pause_of(failures: int, wait_s: float) -> float:
    """Seconds after so many failures in a row; what the server asks for (Retry-After) is heard, within reason."""
    return min(LONGEST_PAUSE_S, max(wait_s, PAUSE_S * 2.0 ** (failures - 1)))


@dataclass(eq=False)
class Server:
    """One inference server and how it has been doing."""

    url: str
    busy: int = 0
    strikes: int = 0
    """Failures in a row."""
    paused_since: float = -math.inf
    paused_until: float = -math.inf
    out: str = ""
    """Why it is left out; empty while it takes part."""
    facts: Facts = UNKNOWN
    """What was found out about it at first contact."""

    def rest(self, why: str, left_at: float, wait_s: float, attempts: int) -> bool:
        """An attempt that left at `left_at` failed; True when the server is left out from now on."""
        if self.out or left_at < self.paused_since:
            return False
        self.strikes += 1
        now = time.monotonic()
        pause = pause_of(self.strikes, wait_s)
        self.paused_since, self.paused_until = now, now + pause
        if self.strikes >= attempts:
            self.out = why
            log.warning("the inference server %s is left out until the next weights: %s", self.url, why)
        else:
            log.warning("the inference server %s fails and is asked again in %.1f s: %s", self.url, pause, why)
        return bool(self.out)

    def did_well(self) -> None:
        """An attempt succeeded."""
        self.strikes = 0
        self.paused_until = -math.inf

    def take_in(self) -> None:
        """Let it take part (again)."""
        self.out = ""
        self.did_well()


class Connections:
    """HTTP with servers inside one event loop; use as an async context manager.

    Args:
        key: sent as a bearer token if there is one, and blanked out of whatever comes back.
        timeout: seconds for one answer.
    """

    def __init__(self, key: str | None, timeout: float) -> None:
        self._key = key
        self._timeout = timeout

    async def __aenter__(self) -> Connections:
        import aiohttp  # takes 0.2 s; a policy that samples itself does without

        self._aiohttp = aiohttp
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=min(CONNECT_S, self._timeout)),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._session.close()

    async def ask(self, server: Server, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One attempt: the JSON of the answer, None when it has no body.

        Raises:
            Trouble: it may be tried again.
            Refused: trying again is of no use.
        """
        try:
            async with self._session.request(method, server.url + path, json=body, allow_redirects=False) as answer:
                data = await answer.content.read(MOST_BYTES + 1)
                while len(data) <= MOST_BYTES and (part := await answer.content.read(MOST_BYTES + 1 - len(data))):
                    data += part
                status, wait_s = answer.status, retry_after(answer.headers.get("Retry-After", ""))
        except TimeoutError as error:
            raise Trouble(f"no answer within {self._timeout:g} s") from error
        except (self._aiohttp.ClientError, OSError) as error:
            raise Trouble(self._blank(f"{type(error).__name__}: {error}")) from error
        text = data.decode("utf-8", "replace")
        if status != 200:
            why = self._blank(f"HTTP {status}: {error_message(text)}")
            if status in (401, 403) or status not in RETRY_STATUS:
                raise Refused(status, f"{UNUSABLE_STATUS.get(status, 'refuses the call')}: {why}")
            raise Trouble(why, wait_s)
        if len(data) > MOST_BYTES:
            raise Refused(status, f"its answer is larger than {MOST_BYTES // 1_000_000} MB")
        return self._parsed(text, answer.content_type)

    def _parsed(self, text: str, kind: str) -> Any:
        if not text.strip():
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            if kind == "application/json":
                raise Refused(200, f"its answer is no JSON: {self._blank(text[:200])!r}") from None
            return text

    def _blank(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key and len(self._key) >= 8 else text


class Fleet:
    """The servers of a run.

    Args:
        urls: addresses; a trailing / or /v1 is dropped.
        in_flight: most calls at once per server.
        attempts: times that one call is tried, and failures in a row after which a server is left out.
    """

    def __init__(self, urls: Iterable[str], in_flight: int, attempts: int) -> None:
        self.servers = [Server(url.rstrip("/").removesuffix("/v1").rstrip("/")) for url in urls]
        self.in_flight = in_flight
        self.attempts = attempts
        self.counts: Counter[str] = Counter()
        """`calls`, `retries` and `left_out` since the run began."""

    @property
    def alive(self) -> list[Server]:
        """Those that are not left out."""
        return [s for s in self.servers if not s.out]

    async def share(self, calls: Iterable[Callable[[Server], Awaitable[T]]], prefer: Iterable[int]) -> list[T]:
        """Make all calls; the results are in their order.

        Args:
            calls: each is given a server, and given another one when it raised `Trouble`.
            prefer: number of the server that each would like best, modulo those alive.

        Raises:
            EndpointError: no server is left, or one call failed `attempts` times.
            whatever else a call raises; the others are cancelled.
        """
        freed = asyncio.Condition()
        todo = enumerate(zip(calls, prefer, strict=True))
        results: dict[int, T] = {}

        async def work() -> None:
            for number, (call, liked) in todo:
                results[number] = await self._until_done(call, liked, freed)

        # as many hands as there are places: thousands that wait for one would all wake when it is free
        await together(work() for _ in range(self.in_flight * len(self.servers)))
        return [results[number] for number in sorted(results)]

    async def insist(self, server: Server, call: Callable[[Server], Awaitable[T]]) -> T:
        """One call to one server, `attempts` times at most, with pauses that double.

        Raises:
            Trouble: the last one.
            whatever else the call raises.
        """
        for n in range(self.attempts):
            self.counts["calls"] += 1
            try:
                return await call(server)
            except Trouble as trouble:
                self.counts["retries"] += 1
                if n + 1 == self.attempts:
                    raise
                await asyncio.sleep(pause_of(n + 1, trouble.wait_s))
        raise AssertionError("attempts is at least 1")

    async def _until_done(self, call: Callable[[Server], Awaitable[T]], prefer: int, freed: asyncio.Condition) -> T:
        failures: list[str] = []
        failed: list[Server] = []
        while True:
            server = await self._free(prefer, failed, freed)
            left_at = time.monotonic()
            self.counts["calls"] += 1
            try:
                result = await call(server)
                server.did_well()
                return result
            except Trouble as trouble:
                failures.append(f"{server.url}: {trouble.why}")
                failed.append(server)
                self.counts["retries"] += 1
                self.counts["left_out"] += server.rest(trouble.why, left_at, trouble.wait_s, self.attempts)
                if len(failures) >= self.attempts and self.alive:
                    raise EndpointError(
                        f"One reply was asked for {len(failures)} times in vain",
                        where="; ".join(dict.fromkeys(failures)),
                        cure="look at the server's own log, raise policy.engine.timeout if it is slow, and start the run again",
                    ) from None
            finally:
                async with freed:
                    server.busy -= 1
                    freed.notify_all()

    async def _free(self, prefer: int, failed: Sequence[Server], freed: asyncio.Condition) -> Server:
        """A server with room, already counted busy: the preferred, else the least busy; none of `failed` while others live."""
        while True:
            async with freed:
                alive = self.alive
                if not alive:
                    raise EndpointError(
                        f"None of the {len(self.servers)} inference servers is left",
                        where="; ".join(f"{s.url}: {s.out}" for s in self.servers),
                        cure="look at their logs, start them again, and start the run again: it goes on from its last checkpoint",
                    )
                now = time.monotonic()
                alive = [s for s in alive if s not in failed] or alive
                ready = [s for s in alive if s.paused_until <= now and s.busy < self.in_flight]
                if ready:
                    wanted = alive[prefer % len(alive)]
                    server = wanted if wanted in ready else min(ready, key=lambda s: s.busy)
                    server.busy += 1
                    return server
                pauses = [s.paused_until - now for s in alive if s.paused_until > now]
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(pauses, default=None)):
                        await freed.wait()

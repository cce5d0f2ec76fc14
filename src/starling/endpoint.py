"""Models that answer chat requests, all behind one door: a server, a local engine, a script.

Every endpoint keeps law 1: a call is announced in the journal before it leaves, its raw reply is in the journal before it
is parsed, and an answered request is never asked again. Replies are always parsed from the journal's text, fresh or old,
so a resumed run sees what an undisturbed one saw.

`HttpEndpoint` speaks the OpenAI chat-completions format through aiohttp, because the CPU time of httpx's connection pool, on
which the openai client rests, grows with the square of the calls in flight. Retries are ours alone, one journal row each.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from starling.call import Reply, Request, compose_reply, error_message, failed_reply, parse_reply, payload_of, retry_after
from starling.config import OpenAIModel, secret
from starling.errors import EndpointError, StarlingError
from starling.journal import Answer, Entry, Intent, Journal, Rejection, StoredReply, Tokens
from starling.progress import SILENT, Progress
from starling.records import Finish, ModelRef

__all__ = ["BatchEndpoint", "Endpoint", "Engine", "HttpEndpoint", "Reply", "Request", "ScriptedEndpoint", "ask_together"]


class Endpoint(Protocol):
    """Anything that answers chat requests."""

    model: ModelRef

    def ask_all(self, requests: Collection[Request], progress: Progress = SILENT) -> Iterator[Reply]:
        """Ask everything that is not answered yet; when this returns all calls are over, and the replies can be read one by one,
        in the order of the requests, from the journal: nothing of the size of all replies is ever in memory.

        `requests` is gone through more than once and may make its members anew each time. `progress.advance` is called once per
        reply; `start` and `finish` are the caller's. A failed call is a Reply whose finish is error, never an exception.

        Raises:
            BudgetError: run.budget_calls is reached; everything in flight has been written to the journal.
            EndpointError: the server or engine cannot be used at all.
        """

    def complete_all(self, requests: Collection[Request], progress: Progress = SILENT) -> list[Reply]:
        """The replies of `ask_all` as a list, for a few requests."""


class Engine(Protocol):
    """A local model: answers a batch at once. Its answers may depend on the batch they are computed in."""

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in their order; call ids are filled in by the endpoint."""


def ask_together(asks: Sequence[tuple[Endpoint, Collection[Request]]], progress: Progress = SILENT) -> list[Iterator[Reply]]:
    """`ask_all` of several endpoints, those behind servers at the same time; the replies of each in the order of `asks`."""
    return [endpoint.ask_all(requests, progress) for endpoint, requests in asks]


class _Asked:
    """What the endpoints below have in common."""

    def ask_all(self, requests: Collection[Request], progress: Progress = SILENT) -> Iterator[Reply]:
        return iter(self.complete_all(requests, progress))

    def complete_all(self, requests: Collection[Request], progress: Progress = SILENT) -> list[Reply]:
        raise NotImplementedError


def _stored(reply: Reply) -> StoredReply:
    """A local reply as the journal keeps it; failures are no answers, so another run asks again."""
    if reply.finish is Finish.error:
        return StoredReply(status=500, error=reply.error or "failed without a reason")
    return StoredReply(status=200, body=compose_reply(reply))


def _interpret(key: str, stored: StoredReply) -> Reply:
    """The reply of a local model that was just stored."""
    reply = parse_reply(stored.body, key) if stored.answered else None
    return reply if reply is not None else failed_reply(key, stored.error)


def _replay(requests: Collection[Request], journal: Journal) -> dict[str, Reply]:
    """What the journal already has. Stored bodies that are no replies (the process died before parsing) are taken back."""
    known: dict[str, Reply] = {}
    broken: list[Entry] = []
    for key, stored in journal.get_many(dict.fromkeys(r.key for r in requests)).items():
        reply = parse_reply(stored.body, key)
        if reply is None:
            broken.append(Rejection(key=key, reason="not a chat completion"))
        else:
            known[key] = reply
    if broken:
        journal.write(broken)
    return known


# ── scripts and local engines ────────────────────────────────────────────────────────────────────────────────────────


class ScriptedEndpoint(_Asked):
    """A function in place of a model: tests, and the microworld's judge. It stands for a server, so its calls count as paid.

    Args:
        model: who is answering; everything that changes the function's answers belongs into it.
        answer: returns the text, or a whole Reply to play failures and cuts.
        journal: the run's journal.
    """

    CHUNK = 64
    """Calls per journal transaction."""

    def __init__(self, model: ModelRef, answer: Callable[[Request], str | Reply], journal: Journal) -> None:
        self.model = model
        self._answer = answer
        self._journal = journal

    def complete_all(self, requests: Collection[Request], progress: Progress = SILENT) -> list[Reply]:
        known = _replay(requests, self._journal)
        copies = Counter(r.key for r in requests)
        progress.advance(sum(copies[k] for k in known), f"{len(known)} from the journal" if known else "")
        pending = list({r.key: r for r in requests if r.key not in known}.values())
        for start in range(0, len(pending), self.CHUNK):
            chunk = [r for r in pending[start : start + self.CHUNK] if self._journal.reserve()]
            self._journal.write([Intent(key=r.key, attempt=1, request=r.as_dict()) for r in chunk])
            stored = {r.key: _stored(self._reply(r)) for r in chunk}
            late = self._journal.write([Answer(key=key, attempt=1, reply=reply) for key, reply in stored.items()])
            stored |= self._journal.get_many(late)
            for key, reply in stored.items():
                known[key] = _interpret(key, reply)
                progress.advance(copies[key])
            if len(chunk) < len(pending[start : start + self.CHUNK]):
                raise self._journal.budget_error()
        return [known[r.key] for r in requests]

    def _reply(self, request: Request) -> Reply:
        said = self._answer(request)
        return said if isinstance(said, Reply) else Reply(said, Finish.stop, request.key)


class BatchEndpoint(_Asked):
    """A local engine that answers in batches. Batches are cut from the full list of requests, and one with any reply missing is
    computed whole: what a model says may depend on the batch in its last bits, so it must not depend on where a run stopped.

    Args:
        model: who is answering, with the fingerprint of the weights as its revision.
        engine: the model.
        journal: the run's journal; local calls do not count against the budget.
        batch: requests per call of the engine.
    """

    def __init__(self, model: ModelRef, engine: Engine, journal: Journal, batch: int) -> None:
        self.model = model
        self._engine = engine
        self._journal = journal
        self._batch = batch

    def complete_all(self, requests: Collection[Request], progress: Progress = SILENT) -> list[Reply]:
        known = _replay(requests, self._journal)
        listed = list(requests)
        for start in range(0, len(listed), self._batch):
            chunk = listed[start : start + self._batch]
            missing = {r.key: r for r in chunk if r.key not in known}
            if missing:
                known |= self._compute(chunk, missing)
            progress.advance(len(chunk))
        return [known[r.key] for r in requests]

    def _compute(self, chunk: Sequence[Request], missing: dict[str, Request]) -> dict[str, Reply]:
        self._journal.write([Intent(key=k, attempt=1, request=r.as_dict(), paid=False) for k, r in missing.items()])
        began = time.monotonic()
        replies = self._engine.answer(chunk)
        if len(replies) != len(chunk):
            raise EndpointError(
                f"The local model gave {len(replies)} replies to {len(chunk)} requests", where=self.model.name,
                cure="this is a defect of the engine: one reply per request, in their order",
            )  # fmt: skip
        latency = (time.monotonic() - began) / len(chunk)
        fresh: dict[str, Reply] = {}
        for request, reply in zip(chunk, replies, strict=True):
            if request.key in missing:
                fresh.setdefault(request.key, reply)
        stored = {k: _stored(r) for k, r in fresh.items()}
        entries: list[Entry] = []
        for key, reply in fresh.items():
            timed = StoredReply(status=stored[key].status, body=stored[key].body, error=stored[key].error, latency_s=latency)
            entries.append(Answer(key=key, attempt=1, reply=timed))
            entries.append(Tokens(key=key, attempt=1, prompt=reply.prompt_tokens, completion=reply.completion_tokens))
        stored |= self._journal.get_many(self._journal.write(entries))
        return {key: _interpret(key, reply) for key, reply in stored.items()}


# ── servers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

COMMIT_S = 0.01
"""Journal entries wait at most this long for others to share a transaction with."""
RETRY_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
"""Worth another attempt. Other statuses of the 4xx kind mean that the request itself is wrong."""
UNUSABLE_STATUS = {401: "refuses the key", 402: "asks for payment", 404: "does not know this address or model"}
"""Never the fault of one request: the run stops instead of failing a million times."""
LONGEST_WAIT_S = 900.0
"""A server that asks for more patience than this is not waited for."""
DEAD_AFTER = 50
"""So many calls given up in a row, with no answer in between, mean that the server is gone."""


class HttpEndpoint(_Asked):
    """A model behind an OpenAI-compatible chat server.

    Its address is no part of a call's identity, so that a moved server does not ask everything again; two different models
    must have different names. The key is read from the environment when the first call leaves and is stored nowhere.

    Args:
        name: label of the model in the pool, for messages.
        settings: address, limits and sampling.
        journal: the run's journal.
    """

    def __init__(self, name: str, settings: OpenAIModel, journal: Journal) -> None:
        self.name = name
        self.model = ModelRef(provider="openai", name=settings.name, sampling=settings.sampling)
        self._settings = settings
        self._journal = journal

    def complete_all(self, requests: Collection[Request], progress: Progress = SILENT) -> list[Reply]:
        known = _replay(requests, self._journal)
        copies = Counter(r.key for r in requests)
        progress.advance(sum(copies[k] for k in known), f"{len(known)} from the journal" if known else "")
        pending = list({r.key: r for r in requests if r.key not in known}.values())
        if pending:
            calls = _Calls(self.name, self._settings, self._journal, progress, copies, alive=bool(known))
            known |= _run(calls.run(pending))
        return [known[r.key] for r in requests]


def _run(work: Coroutine[Any, Any, dict[str, Reply]]) -> dict[str, Reply]:
    """Run to the end from ordinary code; in a notebook, where a loop is running already, in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


class _Writer:
    """Groups journal entries of many calls into few transactions, in a thread: the event loop never waits for the disk."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._entries: list[tuple[Entry, asyncio.Future[bool]]] = []
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "journal")

    def add(self, entry: Entry) -> asyncio.Future[bool]:
        """Await the result to know that the entry is on disk; True means another process's answer came first."""
        future = asyncio.get_running_loop().create_future()
        self._entries.append((entry, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write())
        return future

    async def _write(self) -> None:
        while self._entries:
            await asyncio.sleep(COMMIT_S)
            batch, self._entries = self._entries, []
            try:
                late = await asyncio.get_running_loop().run_in_executor(self._thread, self._journal.write, [e for e, _ in batch])
            except StarlingError as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                        future.exception()  # marks it as seen: some entries are not awaited
                continue
            for entry, future in batch:
                if not future.done():
                    future.set_result(isinstance(entry, Answer) and entry.key in late)

    async def close(self) -> None:
        while self._task is not None and not self._task.done():
            await asyncio.wait({self._task})
        self._thread.shutdown()


class _Calls:
    """The calls of one `complete_all`: a fixed number of workers draw requests from one iterator."""

    def __init__(
        self, name: str, settings: OpenAIModel, journal: Journal, progress: Progress, copies: Counter[str], *, alive: bool
    ) -> None:
        self._settings = settings
        self._where = f"model {name} at {settings.base_url}"
        self._journal = journal
        self._progress = progress
        self._copies = copies
        self._alive = alive
        self._key = secret(settings.api_key_env)
        self._slots = asyncio.Semaphore(settings.in_flight)
        self._stopped = asyncio.Event()
        self._stop_error: StarlingError | None = None
        self._limit_name = "max_tokens"
        self._failed = 0
        self._failed_in_row = 0
        self._replies: dict[str, Reply] = {}

    async def run(self, pending: Sequence[Request]) -> dict[str, Reply]:
        import aiohttp  # takes 0.2 s; commands that call no server do without

        self._aiohttp = aiohttp
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        # While a call waits for the journal before and after its flight, another one may fly: hence a quarter more workers.
        count = min(len(pending), self._settings.in_flight + self._settings.in_flight // 4 + 8)
        self._writer = _Writer(self._journal)
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers=headers, cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout_s),
        )  # fmt: skip
        feed = iter(pending)
        workers = [asyncio.create_task(self._work(feed)) for _ in range(count)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self._http.close()
            await self._writer.close()
        if self._stop_error is not None:
            raise self._stop_error
        return self._replies

    async def _work(self, feed: Iterator[Request]) -> None:
        for request in feed:
            reply = await self._call(request)
            if reply is None:
                return
            self._replies[request.key] = reply
            failed = reply.finish is Finish.error
            self._failed += failed
            self._progress.advance(self._copies[request.key], f"{self._failed} failed" if failed else "")

    def _stop(self, error: StarlingError) -> None:
        """No further calls; those in flight are finished and written."""
        self._stop_error = self._stop_error or error
        self._stopped.set()

    async def _call(self, request: Request) -> Reply | None:
        """One request to its answer or its last attempt; None when the run was stopped before that."""
        error = ""
        for attempt in range(1, self._settings.attempts + 1):
            if self._stopped.is_set():
                return None
            if not self._journal.reserve():
                self._stop(self._journal.budget_error())
                return None
            await self._writer.add(Intent(key=request.key, attempt=attempt, request=request.as_dict()))
            limit_name = self._limit_name
            async with self._slots:
                stored, wait_s = await self._send(request, limit_name)
            if await self._writer.add(Answer(key=request.key, attempt=attempt, reply=stored)):
                stored = self._journal.get(request.key) or stored
            if stored.answered:
                reply = parse_reply(stored.body, request.key)
                if reply is not None:
                    self._alive, self._failed_in_row = True, 0
                    self._writer.add(
                        Tokens(key=request.key, attempt=attempt, prompt=reply.prompt_tokens, completion=reply.completion_tokens)
                    )
                    return reply
                error = "the server's reply is no chat completion"
                await self._writer.add(Rejection(key=request.key, reason=error))
            else:
                error = stored.error
            if not self._worth_retrying(stored, limit_name) or wait_s > LONGEST_WAIT_S:
                break
            if attempt < self._settings.attempts:
                await self._pause(attempt, wait_s)
        self._note_failure(stored, error)
        return failed_reply(request.key, error)

    def _worth_retrying(self, stored: StoredReply, limit_name: str) -> bool:
        if stored.status == 400 and limit_name == "max_tokens" and "max_completion_tokens" in stored.body:
            self._limit_name = "max_completion_tokens"  # OpenAI's newer models refuse the old name of this limit
            return True
        return stored.status in RETRY_STATUS or stored.status in (0, 200)

    async def _pause(self, attempt: int, wait_s: float) -> None:
        """Back off: what the server asked for plus a little, else 0.5 s doubling up to a minute, half of it random."""
        backoff = min(60.0, 0.5 * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
        delay = wait_s + min(0.2 * wait_s, 5.0) * random.random() if wait_s > 0 else backoff
        try:
            await asyncio.wait_for(self._stopped.wait(), delay)
        except TimeoutError:
            return

    def _note_failure(self, stored: StoredReply, error: str) -> None:
        """Stop the run when the failure is not about this request: a refused key, a dead server."""
        self._failed_in_row += 1
        unusable = UNUSABLE_STATUS.get(stored.status)
        if stored.status == 429 and "insufficient_quota" in stored.body:
            unusable = "says that the credit is used up"
        # Once the server has answered anything, a row of requests that it finds wrong is no sign of its death.
        server_fault = stored.status in RETRY_STATUS or stored.status in (0, 200)
        if unusable is None and self._failed_in_row >= DEAD_AFTER and (server_fault or not self._alive):
            unusable = f"failed {self._failed_in_row} calls in a row"
        if unusable is not None:
            self._stop(
                EndpointError(
                    f"The server {unusable} ({error})", where=self._where,
                    cure="check base_url, name, api_key_env and the account, then start again: answered calls are not repeated",
                )
            )  # fmt: skip

    async def _send(self, request: Request, limit_name: str) -> tuple[StoredReply, float]:
        """One attempt over the wire: the raw reply, and the seconds the server asks us to wait (0 when it does not)."""
        began = time.monotonic()

        def failed(text: str, sent: bool = True) -> tuple[StoredReply, float]:
            return StoredReply(status=0, error=self._clean(text), latency_s=time.monotonic() - began, sent=sent), 0.0

        try:
            url = self._settings.base_url.rstrip("/") + "/chat/completions"
            async with self._http.post(url, data=payload_of(request, limit_name), allow_redirects=False) as answer:
                body = (await answer.read()).decode("utf-8", "replace")
                status, wait_s = answer.status, retry_after(answer.headers.get("Retry-After", ""))
        except TimeoutError:
            return failed(f"no reply within {self._settings.timeout_s:g} s")
        except self._aiohttp.ClientConnectorError as error:
            return failed(f"no connection: {error}", sent=False)
        except (self._aiohttp.ClientError, OSError, ValueError) as error:
            return failed(f"{type(error).__name__}: {error}")
        error_text = "" if status == 200 else f"HTTP {status}: {error_message(body)}"
        # Short keys are placeholders such as "EMPTY", which may well occur in a reply.
        body = self._clean(body) if status != 200 or len(self._key or "") >= 8 else body
        latency = time.monotonic() - began
        return StoredReply(status=status, body=body, error=self._clean(error_text), latency_s=latency), wait_s

    def _clean(self, text: str) -> str:
        """Servers quote keys in their errors; ours goes nowhere."""
        return text.replace(self._key, "[key]") if self._key else text

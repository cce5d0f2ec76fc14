"""`BatchApiEndpoint`: a model that is asked through its provider's batch API.

One pass over the requests fills file after file and starts a batch with each; then all are waited for; what failed and may go
better another time makes up the next pass. A pass leaves out what is answered, what waits in a batch (also one that an earlier
process started) and what has failed for good, so it needs to remember nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection, Iterator
from pathlib import Path

from starling.call import Failure, Reply, Request, failed_reply
from starling.config import AnthropicModel, ServerModel, secret
from starling.endpoint.asking import Asked
from starling.endpoint.batches.lifecycle import Clock, Lifecycle, QueueFull, is_queue_full
from starling.endpoint.batches.results import Outcome, Results
from starling.endpoint.batches.shards import CHUNK, Feed, Limits, Shards, chunks
from starling.endpoint.batches.wire import AnthropicBatches, BatchApi, Http, NoReply, OpenAIBatches, Refusal, View
from starling.endpoint.limits import Ratio
from starling.endpoint.server import run_loop
from starling.endpoint.wire import UNUSABLE_STATUS, failure_of, headers, model_ref, path, payload, spend, wants_new_limit
from starling.errors import EndpointError, InputError
from starling.journal import Batch, Journal, Spend, StoredReply
from starling.progress import SILENT, Progress

FIRST_POLL_S = 5.0
"""The first look at a new batch; small ones end within a minute."""
PATIENCE_S = 3600.0
"""A server that gives no usable answer for so long is given up; its batches run on."""
FEWEST_REQUESTS = 100
"""Files are not made smaller than this because the provider's queue is small."""


RETRIED = frozenset({Failure.server_error, Failure.rate_limited, Failure.timeout, Failure.connection, Failure.not_a_reply})
"""Failures of a line that another batch may cure."""


class BatchApiEndpoint(Asked):
    """A model behind a provider's batch API: half the price, answers within a day.

    The identity of its calls is that of the same model behind `HttpEndpoint`, so answers from one serve the other. Interrupting
    it leaves the batches running; asking the same requests again collects them.

    Args:
        name: label of the model in the pool, for messages.
        settings: address, key, sampling and, in `batch`, the limits of a file.
        journal: the run's journal.
        clock: time; another one in tests.
    """

    def __init__(self, name: str, settings: ServerModel, journal: Journal, clock: Clock | None = None) -> None:
        self.name = name
        self.model = model_ref(settings)
        self.settings = settings
        self.clock = clock or Clock()
        self.limit_name = "max_tokens"
        self.ratio = Ratio()
        self._journal = journal

    @property
    def journal(self) -> Journal:
        """The run's journal."""
        return self._journal

    def _ask(self, requests: Collection[Request], progress: Progress) -> dict[str, Reply]:
        return run_loop(self.make_calls(requests, progress))

    async def make_calls(self, requests: Collection[Request], progress: Progress = SILENT) -> dict[str, Reply]:
        """Have everything answered that is not yet, which may take a day; returns the failed ones.

        Raises:
            BudgetError: the budget allows no further file; what was sent before has been collected.
            EndpointError: the provider refuses a batch, or cannot be reached.
        """
        work = _Work(self, requests, progress)
        await work.run()
        return await asyncio.to_thread(work.failures)


def failure_kind(status: int, error: str) -> Failure:
    """What kind of failure a line of a batch is; status 0 are lines that were not worked on, or are missing."""
    if status == 0:
        return Failure.timeout if "expired" in error else Failure.server_error
    return Failure.not_a_reply if status == 200 else failure_of(status, error)


class _Work:
    """One round of calls of one endpoint."""

    def __init__(self, endpoint: BatchApiEndpoint, requests: Collection[Request], progress: Progress) -> None:
        settings, self._journal, self._clock = endpoint.settings, endpoint.journal, endpoint.clock
        assert settings.batch is not None
        self._endpoint = endpoint
        self._settings = settings
        self._batch = settings.batch
        self._requests = requests
        self._progress = progress
        self._table = self._journal.batches
        self._secret = secret(settings.api_key_env[0]) if settings.api_key_env else None
        self._server = settings.base_url[0].rstrip("/")
        self._where = f"model {endpoint.name} at {self._server}"
        given = {name: value for name, value in headers(settings, self._secret).items() if name != "Content-Type"}
        self._http = Http(self._server, given, settings.timeout_s, self._clean)
        self._api: BatchApi = (
            AnthropicBatches(self._http)
            if isinstance(settings, AnthropicModel)
            else OpenAIBatches(self._http, f"/v1{path(settings)}")
        )
        self._shards = Shards(self._journal, self._api, settings.name, self._server, self._payload, self._most)
        self._results = Results(self._journal, self._read, self._spent)
        self._life = Lifecycle(self._journal, self._api, self._shards, settings.attempts, self._where, self._clock)
        self._running: dict[int, Batch] = {}
        self._finished: dict[int, int] = {}
        """Requests that have come to an end, by running batch."""
        self._queued: list[Batch] = []
        """Batches that the provider's queue has no room for."""
        self._retry_at = 0.0
        """When one of them is tried again, unless a batch ends before."""
        self._unwritable: dict[str, Reply] = {}
        """Requests that this API has no words for; they are in no file."""
        self._before = self._table.newest()
        """Batches after this row belong to this asking."""
        self._most_requests = self._batch.requests
        self._collected = 0
        self._contact = self._clock.steady()
        self._pause_s = FIRST_POLL_S
        self._last = ""
        self._shown = 0

    async def run(self) -> None:
        """Ask everything; when this returns, nothing is under way."""
        async with self._http:
            await self._take_over()
            while await self._send_all() or self._running or self._queued:
                while self._running or self._queued:
                    await self._wait()
        self._shards.tidy()
        self._progress.advance(len(self._requests) - self._shown, self._last)

    def failures(self) -> dict[str, Reply]:
        """The requests without an answer, after the run."""
        failed = dict(self._unwritable)
        for part in chunks(self._requests):
            for key, past in self._table.tried([request.key for request in part], self._before).items():
                failed[key] = failed_reply(key, past.error, failure_kind(past.status, past.error))
        return failed

    # ── the dialect of the model, the one place that knows it ────────────────────────────────────────────────────────

    def _payload(self, request: Request) -> bytes:
        return payload(self._settings, request, self._endpoint.limit_name)

    def _most(self, request: Request) -> Spend:
        return spend(self._settings, self._endpoint.ratio.tokens(request.chars), request.model.sampling.max_tokens)

    def _spent(self, reply: Reply) -> Spend | None:
        """None when the reply does not tell its tokens."""
        if reply.prompt_tokens is None or reply.completion_tokens is None:
            return None
        return spend(self._settings, reply.prompt_tokens, reply.completion_tokens)

    def _read(self, line: bytes) -> tuple[str, StoredReply] | None:
        if len(self._secret or "") >= 8:  # short keys are placeholders such as "EMPTY", which may well occur in a reply
            line = line.replace((self._secret or "").encode(), b"[key]")
        found = self._api.read(line)
        if found is not None and wants_new_limit(found[1].status, found[1].body):
            self._endpoint.limit_name = "max_completion_tokens"
        return found

    def _worth_retrying(self, status: int, error: str) -> bool:
        return failure_kind(status, error) in RETRIED or wants_new_limit(status, error)

    def _clean(self, text: str) -> str:
        """Servers quote keys in their errors; ours goes nowhere."""
        return text.replace(self._secret, "[key]") if self._secret and len(self._secret) >= 8 else text

    # ── what earlier processes left ──────────────────────────────────────────────────────────────────────────────────

    async def _take_over(self) -> None:
        """Find the unfinished batches that hold any of the requests, and bring each to where it runs."""
        found = await asyncio.to_thread(self._open_batches)
        self._report()
        for draft in self._table.drafts(self._settings.name, self._server):
            self._drop(draft, "its file was not finished")
        batches = [b for b in map(self._table.get, sorted(found)) if b.state != "withdrawn"]
        self._before = min([self._before, *(b.id - 1 for b in batches)])
        for batch in batches:
            if batch.server != self._server:
                raise EndpointError(
                    f"Some of these requests wait in a batch at {batch.server}",
                    where=f"{self._where}, row {batch.id} of batches in {self._journal.path}",
                    cure="set base_url back to collect it first. " + self._life.surrender(batch),
                )  # fmt: skip
            if batch.state == "lost":
                await asyncio.to_thread(self._results.give_up, batch)
                self._table.update(batch, state="closed", note="given up")
            elif batch.state == "running":
                self._running[batch.id] = batch
            elif batch.state == "creating" or self._life.can_start(batch):
                await self._start(batch)
            else:
                self._drop(batch, "its file is gone")

    def _open_batches(self) -> set[int]:
        """Rows of unfinished batches that hold any of the requests; counts the answered requests on the way."""
        found: set[int] = set()
        for part in chunks(self._requests):
            keys = [request.key for request in part]
            answered = self._journal.answered(keys)
            self._collected += sum(key in answered for key in keys)
            found |= self._table.open_batches(keys)
        return found

    # ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _pending(self) -> Iterator[tuple[Request, int]]:
        """Requests that are to be asked now, each with the number of its attempt."""
        given: deque[str] = deque(maxlen=2 * CHUNK)  # the last ones given out: fewer than CHUNK are not in the journal yet
        for part in chunks(self._requests):
            requests = {request.key: request for request in part}
            busy = self._journal.answered(requests) | self._table.waiting(requests) | set(given)
            tried = self._table.tried(requests, self._before)
            for key, request in requests.items():
                past = tried.get(key)
                if key in busy or (past and past.count >= self._settings.attempts):
                    continue
                if (past is None or self._worth_retrying(past.status, past.error)) and self._is_writable(request):
                    given.append(key)
                    yield request, past.count + 1 if past else 1

    def _is_writable(self, request: Request) -> bool:
        try:
            self._payload(request)
        except InputError as error:
            words = f"not sent: {error.what} ({error.where})"
            self._unwritable[request.key] = failed_reply(request.key, words, Failure.bad_request)
            return False
        return True

    async def _send_all(self) -> bool:
        """One pass over the requests; returns whether any was sent."""
        feed, sent = Feed(self._pending()), False
        while True:
            while self._queued:
                await self._wait()
            limits = Limits(self._most_requests, self._batch.bytes)
            batch = await asyncio.to_thread(self._shards.cut, feed, limits)
            if batch is not None:
                sent = True
                await self._start(batch)
                self._pause_s = FIRST_POLL_S
            elif not self._shards.refused:
                return sent
            elif self._running:
                await self._wait()  # what comes back sets free what was set aside for the longest replies
            else:
                raise self._journal.budget_error()

    async def _start(self, batch: Batch) -> None:
        try:
            self._running[batch.id] = await self._life.start(batch)
        except QueueFull:
            self._hold(self._table.get(batch.id))
        self._contact = self._clock.steady()

    def _hold(self, batch: Batch) -> None:
        """The provider's queue is full. When nothing of ours fills it, the file may be too large for it: make smaller ones."""
        if self._running or batch.requests <= FEWEST_REQUESTS:
            self._queued.append(batch)
            return
        self._most_requests = max(FEWEST_REQUESTS, batch.requests // 2)
        for large in [batch, *(b for b in self._queued if b.requests > self._most_requests)]:
            self._drop(large, f"too large for the provider's queue: {batch.note}")
        self._queued = [b for b in self._queued if b.requests <= self._most_requests]
        self._last = f"files of {self._most_requests} requests from now on: the provider's queue is small"

    def _drop(self, batch: Batch, why: str) -> None:
        """Its requests are asked in another file."""
        self._table.withdraw(batch, why)
        self._shards.remove(batch)

    # ── back ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _wait(self) -> None:
        """Until a batch has ended, or none waits in our queue any more.

        A queued batch is tried again when another one has ended, else once per longest pause: a provider may take it at first and
        refuse it at the next look.
        """
        while self._running or self._queued:
            ended = False
            for batch in list(self._running.values()):
                ended |= await self._look(batch)
            self._report()
            if self._queued and (ended or self._clock.steady() >= self._retry_at):
                self._retry_at = self._clock.steady() + self._batch.poll_s
                await self._start(self._queued.pop(0))
                ended |= not self._queued
            if ended:
                return
            if self._clock.steady() - self._contact > PATIENCE_S:
                raise EndpointError(
                    f"The server has given no usable answer about its batches for an hour ({self._last})", where=self._where,
                    cure="start again later: the batches run on and are collected then",
                )  # fmt: skip
            await self._clock.sleep(self._pause_s)
            self._pause_s = min(self._batch.poll_s, 1.5 * self._pause_s)

    async def _look(self, batch: Batch) -> bool:
        """Look at a running batch; returns whether it has ended."""
        try:
            view = await self._api.get(batch.batch_id)
            if view.phase == "ended" and not view.results and view.succeeded:
                raise NoReply(f"{batch.batch_id} is {view.status} and shows no results")
        except NoReply as lost:
            self._last = str(lost)
            return False
        except Refusal as refusal:
            if refusal.status in (409, 425, 429):
                self._last = str(refusal)
                return False
            raise self._life.unknown(batch, refusal) from None
        self._contact = self._clock.steady()
        self._finished[batch.id] = view.finished
        if view.phase == "running":
            return False
        del self._running[batch.id]
        self._finished.pop(batch.id, None)
        if view.phase == "refused":
            return await self._refused(batch, view)
        await self._collect(batch, view)
        return True

    async def _refused(self, batch: Batch, view: View) -> bool:
        """The file was refused as a whole, which is free; returns whether for good."""
        if is_queue_full(0, view.complaints):
            self._hold(self._life.queue_full(batch, view))
            return False
        words = "; ".join(f"{c.code}: {c.message}" for c in view.complaints[:3]) or view.status
        if not await asyncio.to_thread(self._results.refuse, batch, view.complaints):
            self._life.refused(batch, words)
        self._table.update(batch, state="refused", note=words)
        return True

    async def _collect(self, batch: Batch, view: View) -> None:
        """Fetch the results and store them; done twice it changes nothing."""
        file = self._shards.results(batch)
        file.unlink(missing_ok=True)
        for address in view.results:
            await self._fetch(batch, address, file)
        if not batch.sure and not (file.exists() and self._results.is_of(batch, file)):
            file.unlink(missing_ok=True)
            await self._start(self._life.mistaken(batch))
            return
        outcome = await asyncio.to_thread(self._results.store, batch, view, file if file.exists() else None)
        self._collected += outcome.answered
        self._last = f"batch {batch.id} {view.status}: {outcome}"
        self._table.update(batch, state="done", sure=1, note=f"{view.status}: {outcome}")
        file.unlink(missing_ok=True)
        self._shards.remove(batch)
        self._check_usable(outcome)

    async def _fetch(self, batch: Batch, address: str, file: Path) -> None:
        try:
            await self._life.patiently(lambda: self._http.fetch(address, file))
        except Refusal as refusal:
            raise self._life.unknown(batch, refusal) from None

    def _check_usable(self, outcome: Outcome) -> None:
        """When every line failed for a reason that is no line's own, going on would fail everything."""
        if outcome.failed and not outcome.answered and set(outcome.statuses) <= set(UNUSABLE_STATUS):
            status = next(iter(outcome.statuses))
            raise EndpointError(
                f"The server {UNUSABLE_STATUS[status]}: all {outcome.failed} requests of a batch failed with HTTP {status}",
                where=self._where, cure="check name, api_key_env and the account, then start again; the failures cost nothing",
            )  # fmt: skip

    def _report(self) -> None:
        """Tell the progress; it never goes back, though some of what has finished may have failed and be asked again."""
        done = min(len(self._requests), self._collected + sum(self._finished.values()))
        under_way = [b for b in self._running.values() if b.sent]
        parts = [self._last] if self._last else []
        if under_way:
            since = time.strftime("%d %b %H:%M", time.localtime(min(b.sent for b in under_way)))
            count = f"{len(under_way)} batches" if len(under_way) > 1 else "1 batch"
            parts.append(f"{count} under way, sent from {since} on; when stopped, the same command collects them")
        if self._queued:
            parts.append(f"{len(self._queued)} wait for room in the provider's queue")
        self._progress.advance(max(0, done - self._shown), "; ".join(parts))
        self._shown = max(self._shown, done)

"""Models that answer chat requests, all behind one door: a server, a local engine, a script.

Every endpoint keeps law 1: a call is announced in the journal before it leaves, its raw reply is in the journal before it
is parsed, and an answered request is never asked again. Replies are always parsed from the journal's text, fresh or old,
so a resumed run sees what an undisturbed one saw.

`HttpEndpoint` is in `starling.endpoint.server`; scripts and local engines are here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Protocol

from starling.call import Failure, Reply, Request
from starling.endpoint.asking import Asked, batched, stored, told
from starling.endpoint.batches import BatchApiEndpoint
from starling.endpoint.server import HttpEndpoint, KeyRing, calls_to, run_loop
from starling.errors import EndpointError
from starling.journal import Answer, Entry, Intent, Journal, Tokens
from starling.progress import SILENT, Progress
from starling.records import Finish, ModelRef

__all__ = [
    "BatchEndpoint", "Endpoint", "Engine", "Failure", "HttpEndpoint", "KeyRing", "Reply", "Request", "ScriptedEndpoint",
    "ask_together",
]  # fmt: skip


class Endpoint(Protocol):
    """Anything that answers chat requests."""

    model: ModelRef

    def ask_all(self, requests: Collection[Request], progress: Progress = SILENT) -> Iterator[Reply]:
        """Ask everything that is not answered yet; when this returns all calls are over, and the replies can be read one by one,
        in the order of the requests, from the journal: nothing of the size of all replies is ever in memory.

        `requests` is gone through more than once and may make its members anew each time. `progress.advance` is called once per
        reply; `start` and `finish` are the caller's. A failed call is a Reply whose finish is error, never an exception.

        Raises:
            BudgetError: the run's budget is used up; everything in flight has been written to the journal.
            EndpointError: the server or engine cannot be used at all.
        """

    def complete_all(self, requests: Collection[Request], progress: Progress = SILENT) -> list[Reply]:
        """The replies of `ask_all` as a list, for a few requests."""

    def seconds(self, keys: Iterable[str]) -> float:
        """How long the calls with these keys took from question to answer, summed; those without an answer are left out."""


class Engine(Protocol):
    """A local model: answers a batch at once. Its answers may depend on the batch they are computed in."""

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply per request, in their order; call ids are filled in by the endpoint."""


def ask_together(asks: Sequence[tuple[Endpoint, Collection[Request]]], progress: Progress = SILENT) -> list[Iterator[Reply]]:
    """`ask_all` of several endpoints: those behind servers and batch APIs at the same time, then the others one by one. The
    replies of each stand in the order of `asks`.

    Raises:
        BudgetError, EndpointError: as `ask_all`; the first model that cannot go on stops the others, too.
    """
    servers = [(endpoint, requests) for endpoint, requests in asks if isinstance(endpoint, HttpEndpoint)]
    batches = [(endpoint, requests) for endpoint, requests in asks if isinstance(endpoint, BatchApiEndpoint)]
    answered, collected = run_loop(_servers_and_batches(servers, batches, progress)) if servers or batches else ([], [])
    failed, missed = iter(answered), iter(collected)
    replies = []
    for endpoint, requests in asks:
        if isinstance(endpoint, HttpEndpoint):
            replies.append(endpoint.replies(requests, next(failed)))
        elif isinstance(endpoint, BatchApiEndpoint):
            replies.append(endpoint.replies(requests, next(missed)))
        else:
            replies.append(endpoint.ask_all(requests, progress))
    return replies


Failed = dict[str, Reply]


async def _servers_and_batches(
    servers: Sequence[tuple[HttpEndpoint, Collection[Request]]],
    batches: Sequence[tuple[BatchApiEndpoint, Collection[Request]]],
    progress: Progress,
) -> tuple[list[Failed], list[Failed]]:
    """One that cannot go on does not stop the others: whatever is under way at a provider is collected first."""
    answered, *collected = await asyncio.gather(
        calls_to(servers, progress), *(endpoint.make_calls(requests, progress) for endpoint, requests in batches),
        return_exceptions=True,
    )  # fmt: skip
    for outcome in (answered, *collected):
        if isinstance(outcome, BaseException):
            raise outcome
    return answered, collected  # type: ignore[return-value]


# ── scripts and local engines ────────────────────────────────────────────────────────────────────────────────────────


class ScriptedEndpoint(Asked):
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

    def _ask(self, requests: Collection[Request], progress: Progress) -> dict[str, Reply]:
        failed: dict[str, Reply] = {}
        for chunk in batched(requests, self.CHUNK):
            known = self._journal.answered([r.key for r in chunk])
            pending = list({r.key: r for r in chunk if r.key not in known and r.key not in failed}.values())
            affordable = [r for r in pending if self._journal.reserve()]
            self._journal.write([Intent(key=r.key, attempt=1, request=r.as_dict()) for r in affordable])
            replies = {r.key: self._reply(r) for r in affordable}
            self._journal.write([Answer(key=key, attempt=1, reply=stored(reply)) for key, reply in replies.items()])
            failed |= {key: told(reply, key) for key, reply in replies.items() if reply.finish is Finish.error}
            if len(affordable) < len(pending):
                raise self._journal.budget_error()
            progress.advance(len(chunk), f"{len(failed)} failed" if failed else "")
        return failed

    def _reply(self, request: Request) -> Reply:
        said = self._answer(request)
        return said if isinstance(said, Reply) else Reply(said, Finish.stop, request.key)


class BatchEndpoint(Asked):
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

    def _ask(self, requests: Collection[Request], progress: Progress) -> dict[str, Reply]:
        failed: dict[str, Reply] = {}
        for chunk in batched(requests, self._batch):
            known = self._journal.answered([r.key for r in chunk])
            missing = {r.key: r for r in chunk if r.key not in known and r.key not in failed}
            if missing:
                failed |= self._compute(chunk, missing)
            progress.advance(len(chunk), f"{len(failed)} failed" if failed else "")
        return failed

    def _compute(self, chunk: Sequence[Request], missing: dict[str, Request]) -> dict[str, Reply]:
        """Answer a batch and store those replies that are missing; returns the failed ones."""
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
        entries: list[Entry] = []
        for key, reply in fresh.items():
            entries.append(Answer(key=key, attempt=1, reply=stored(reply, latency)))
            entries.append(Tokens(key=key, attempt=1, prompt=reply.prompt_tokens, completion=reply.completion_tokens))
        self._journal.write(entries)
        return {key: told(reply, key) for key, reply in fresh.items() if reply.finish is Finish.error}

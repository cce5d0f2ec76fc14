"""A file's way through a batch API, every step in the journal before it is taken.

    intended ── upload ──> uploaded ── create ──> running ── ends ──> done
                               │    (creating)       └── refused as a whole, or the queue is full: uploaded again
                               └── died in between: ask the provider's list, adopt what is ours, else create

Whether a batch was created is in doubt when the request for it got no answer, or its process died. Then the list of the provider
decides, and because a request may still be on its way, no earlier than a minute after it left. With tags (OpenAI) it decides for
certain. Without (Anthropic), a batch that is newer than the newest one before ours and has as many requests is taken for ours
until its results show other keys.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from starling.endpoint.batches.shards import Shards
from starling.endpoint.batches.wire import BatchApi, Complaint, NoReply, Refusal, View
from starling.errors import EndpointError
from starling.journal import Batch, Journal

SETTLE_S = 60.0
"""A batch that was created appears in the provider's list within this time."""
LONGEST_WAIT_S = 60.0
"""Between two tries of one request."""
NO_CREDIT = ("insufficient_quota", "billing_hard_limit", "billing hard limit", "credit balance is too low")
"""OpenAI's codes and Anthropic's words for an account without money: waiting does not help."""

T = TypeVar("T")


@dataclass(frozen=True)
class Clock:
    """Time as the batches see it; another one in tests."""

    now: Callable[[], float] = time.time
    """Compared with what other processes wrote down; it may jump."""
    steady: Callable[[], float] = time.monotonic
    """For everything that this process measures itself."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class QueueFull(Exception):
    """The provider has enough of our requests for the moment; the batch was not started."""


def is_queue_full(status: int, complaints: tuple[Complaint, ...]) -> bool:
    """OpenAI: code token_limit_exceeded, "Enqueued token limit reached for …"; others: status 429."""
    said = " ".join(f"{c.code} {c.message}" for c in complaints).lower()
    return "token_limit_exceeded" in said or "enqueued token limit" in said or (status == 429 and not is_without_credit(said))


def is_without_credit(said: str) -> bool:
    """Whether a refusal means that the account has no money left."""
    return any(words in said.lower() for words in NO_CREDIT)


class Lifecycle:
    """Moves one batch at a time from state to state.

    Args:
        journal: the run's journal.
        api: the provider.
        shards: where the files are.
        attempts: tries of a request to the provider that gets no answer.
        where: the model and its address, for messages.
        clock: time.
    """

    def __init__(self, journal: Journal, api: BatchApi, shards: Shards, attempts: int, where: str, clock: Clock) -> None:
        self._table = journal.batches
        self._journal = journal
        self._api = api
        self._shards = shards
        self._attempts = attempts
        self._where = where
        self._clock = clock

    async def start(self, batch: Batch) -> Batch:
        """From wherever it stands to running.

        Raises:
            QueueFull: the provider does not want it now; it stays ready.
            EndpointError: the provider refuses it or cannot be reached.
        """
        if batch.state == "intended" and self._api.uploads:
            try:
                file_id = await self.patiently(lambda: self._api.upload(self._shards.path(batch)))
            except Refusal as refusal:
                self.refused(batch, str(refusal))
            batch = self._table.update(batch, state="uploaded", file_id=file_id)
        return await self._create(batch)

    async def _create(self, batch: Batch) -> Batch:
        in_doubt = batch.state == "creating"
        for attempt in range(1, self._attempts + 1):
            if in_doubt and (found := await self._find(batch)) is not None:
                return self._running(batch, found.id, sure=self._api.tagged)
            if batch.state != "creating":
                newest = await self._newest()
                batch = self._table.update(batch, state="creating", newest=newest)
            batch = self._table.update(batch, sent=self._clock.now())
            try:
                view = await self._api.create(self._shards.path(batch), batch.file_id, _tags(batch))
            except NoReply as lost:
                in_doubt = in_doubt or lost.sent
                error = lost
                if attempt < self._attempts:
                    await self._clock.sleep(_pause(attempt))
            except Refusal as refusal:
                self._not_created(batch, refusal, in_doubt)
            else:
                return self._running(batch, view.id, sure=True)
        raise self._unreachable(error)

    def _not_created(self, batch: Batch, refusal: Refusal, in_doubt: bool) -> NoReturn:
        if is_queue_full(refusal.status, (Complaint(None, "", refusal.message),)):
            self._ready(batch, refusal.message)
            raise QueueFull(refusal.message)
        if in_doubt:  # whether an earlier request for it was carried out cannot be told: the row stays as it is
            raise EndpointError(
                f"The server refuses to start a batch ({refusal}), and whether an earlier try started it is not known",
                where=f"{self._where}, row {batch.id} of batches in {self._journal.path}",
                cure="use the address and key of the earlier try, then start again. " + self.surrender(batch),
            )
        self.refused(batch, str(refusal))

    def _running(self, batch: Batch, batch_id: str, *, sure: bool) -> Batch:
        batch = self._table.update(batch, state="running", batch_id=batch_id, sure=int(sure), note="")
        if sure:
            self._shards.remove(batch)
        return batch

    def _ready(self, batch: Batch, note: str) -> Batch:
        """Back to where nothing was started."""
        return self._table.update(batch, state="uploaded" if batch.file_id else "intended", batch_id="", sure=1, note=note)

    def queue_full(self, batch: Batch, view: View) -> Batch:
        """A batch was refused after it was created, because the queue is full; it can be started again."""
        return self._ready(batch, "; ".join(c.message for c in view.complaints))

    def can_start(self, batch: Batch) -> bool:
        """Whether what its next step needs is still there."""
        return bool(batch.file_id) or self._shards.intact(batch)

    def mistaken(self, batch: Batch) -> Batch:
        """The batch that was taken for ours is another one; it is in doubt again."""
        others = f"{batch.others} {batch.batch_id}".strip()
        return self._table.update(batch, state="creating", batch_id="", sure=1, others=others)

    async def _newest(self) -> str:
        """The newest batch at a provider without tags: ours will be newer."""
        if self._api.tagged:
            return ""
        views, _ = await self.patiently(lambda: self._api.page("", 1))
        return views[0].id if views else ""

    async def _find(self, batch: Batch) -> View | None:
        """The batch at the provider that is this one, once it is certain that it would be listed."""
        left = min(SETTLE_S, batch.sent + SETTLE_S - self._clock.now())  # clocks jump: never longer than that
        found = await self._listed(batch)
        if found is None and left > 0:
            await self._clock.sleep(left)
            found = await self._listed(batch)
        return found

    async def _listed(self, batch: Batch) -> View | None:
        known = self._table.known_ids(batch.server) | set(batch.others.split())
        after, found, tags = "", None, _tags(batch)
        while True:
            views, after = await self.patiently(lambda after=after: self._api.page(after))  # type: ignore[misc]
            for view in views:
                if self._api.tagged:
                    if view.phase != "refused" and tags.items() <= view.tags.items():
                        return view
                elif view.id == batch.newest:
                    return found
                elif view.total == batch.requests and view.id not in known:
                    found = view  # the oldest of them: it came right after `newest`
            if not after:
                return found

    def refused(self, batch: Batch, why: str) -> NoReturn:
        """The provider will not have this file, now or ever; nothing was paid."""
        self._table.withdraw(batch, why, "refused")
        self._shards.remove(batch)
        cure = "check base_url, name, api_key_env and batch of the model"
        if is_without_credit(why):
            cure = "add credit to the account"
        raise EndpointError(
            f"The server refuses a batch: {why}", where=self._where,
            cure=f"{cure}, then start again; batches under way are collected then",
        )  # fmt: skip

    def unknown(self, batch: Batch, refusal: Refusal) -> EndpointError:
        """The provider does not give out a batch that it once took."""
        return EndpointError(
            f"The server does not give out the batch {batch.batch_id}: {refusal}",
            where=f"{self._where}, row {batch.id} of batches in {self._journal.path}",
            cure="use the address and key it was sent with, then start again. " + self.surrender(batch),
        )

    def surrender(self, batch: Batch) -> str:
        """How to give a batch up, for messages."""
        return (
            "If it is gone for good, have its requests asked, and perhaps paid, again: sqlite3 "
            f"{self._journal.path} \"UPDATE batches SET state = 'lost' WHERE id = {batch.id}\""
        )

    def _unreachable(self, error: Exception) -> EndpointError:
        return EndpointError(
            f"The server's batch API gives no answer: {error}", where=self._where,
            cure="check base_url and the network, then start again: batches under way are collected then, nothing is sent twice",
        )  # fmt: skip

    async def patiently(self, request: Callable[[], Awaitable[T]]) -> T:
        """A request that may be repeated, until it is answered.

        Raises:
            Refusal: the server says no, and not because of its load.
            EndpointError: no answer after all attempts.
        """
        error: Exception = NoReply("never tried")
        for attempt in range(1, self._attempts + 1):
            pause = _pause(attempt)
            try:
                return await request()
            except NoReply as lost:
                error = lost
            except Refusal as refusal:
                if refusal.status not in (409, 425, 429) or is_without_credit(refusal.message):
                    raise
                error, pause = refusal, max(pause, min(refusal.wait_s, 15 * LONGEST_WAIT_S))
            if attempt < self._attempts:
                await self._clock.sleep(pause)
        raise self._unreachable(error)


def _tags(batch: Batch) -> dict[str, str]:
    """What the provider keeps with the batch."""
    return {"starling": batch.token, "shard": batch.shard}


def _pause(attempt: int) -> float:
    return min(LONGEST_WAIT_S, 2.0**attempt)

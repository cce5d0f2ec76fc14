"""Requests into files for a batch API: at most so many lines and bytes each, one model, every call announced in the journal.

A file lies beside the journal, in `journal.sqlite.batches`, until the provider has it. Memory holds the keys of one file and a
few hundred requests, however many there are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from starling.call import Request
from starling.endpoint.batches.wire import BatchApi
from starling.errors import EndpointError
from starling.journal import Batch, Intent, Journal, Spend
from starling.rundir import remove_empty

CHUNK = 500
"""Calls per journal transaction."""

T = TypeVar("T")


def chunks(source: Iterable[T]) -> Iterator[list[T]]:
    """Lists of up to CHUNK members, in their order."""
    iterator = iter(source)
    while part := list(islice(iterator, CHUNK)):
        yield part


class Feed:
    """An iterator whose next member can be looked at: requests that are still to be asked, with the number of the attempt."""

    def __init__(self, source: Iterator[tuple[Request, int]]) -> None:
        self._source = source
        self._next: tuple[Request, int] | None = None

    def peek(self) -> tuple[Request, int] | None:
        """The next member; None at the end."""
        if self._next is None:
            self._next = next(self._source, None)
        return self._next

    def drop(self) -> None:
        """Go past the next member."""
        self._next = None


@dataclass(frozen=True)
class Limits:
    """What fits into one file."""

    requests: int
    bytes: int


class Shards:
    """The files of one endpoint.

    Args:
        journal: the run's journal.
        api: says what a line looks like.
        model: name of the model; a file is for one.
        server: the provider's base URL.
        payload: the JSON that asks a request.
        most: the most that a request can cost, at the price of the batch API.
    """

    def __init__(
        self, journal: Journal, api: BatchApi, model: str, server: str,
        payload: Callable[[Request], bytes], most: Callable[[Request], Spend],
    ) -> None:  # fmt: skip
        self._journal = journal
        self._api = api
        self._model = model
        self._server = server
        self._payload = payload
        self._most = most
        self.folder = Path(f"{journal.path}.batches")
        self.refused = False
        """Whether the budget did not allow the request that was to come next."""

    def path(self, batch: Batch) -> Path:
        """Where the file of a batch lies; its name at the provider too."""
        return self.folder / f"starling-{batch.token}.jsonl"

    def cut(self, feed: Feed, limits: Limits) -> Batch | None:
        """Fill one file from the feed and announce its calls; None when nothing is left or the budget allows nothing.

        Raises:
            EndpointError: a request is for another model.
        """
        first = feed.peek()
        self.refused = first is not None and not self._journal.reserve(self._most(first[0]))
        if first is None or self.refused:
            return None
        batch = self._journal.batches.open(self._model, self._server)
        self.folder.mkdir(exist_ok=True)
        seen: set[str] = set()
        digest, size = hashlib.sha256(), 0
        intents: list[Intent] = []
        with self.path(batch).open("wb") as file:
            while (item := feed.peek()) is not None:
                request, attempt = item
                if request.key not in seen:
                    line = (self._api.between if seen else self._api.head) + self._line(request)
                    if seen and (len(seen) == limits.requests or size + len(line) + len(self._api.tail) > limits.bytes):
                        break
                    if seen and not self._journal.reserve(self._most(request)):
                        self.refused = True
                        break
                    file.write(line)
                    digest.update(line)
                    size += len(line)
                    seen.add(request.key)
                    intents.append(self._intent(request, attempt, batch))
                feed.drop()
                if len(intents) == CHUNK:
                    self._journal.write(intents)
                    intents = []
            file.write(self._api.tail)
            digest.update(self._api.tail)
            file.flush()
            os.fsync(file.fileno())
        self._journal.write(intents)
        return self._journal.batches.update(
            batch, state="intended", shard=digest.hexdigest(), requests=len(seen), bytes=size + len(self._api.tail)
        )

    def _line(self, request: Request) -> bytes:
        if request.model.name != self._model:
            raise EndpointError(
                f"A request for the model '{request.model.name}' cannot go into a batch of '{self._model}'",
                where=f"request {request.key[:16]}", cure="this is a defect of the calling code: one endpoint, one model",
            )  # fmt: skip
        return self._api.line(request.key, self._payload(request))

    def _intent(self, request: Request, attempt: int, batch: Batch) -> Intent:
        return Intent(key=request.key, attempt=attempt, request=request.as_dict(), most=self._most(request), batch=batch.id)

    def intact(self, batch: Batch) -> bool:
        """Whether the file of a batch is there as it was written."""
        path = self.path(batch)
        if not path.is_file() or path.stat().st_size != batch.bytes:
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == batch.shard

    def remove(self, batch: Batch) -> None:
        """The file is not needed any more."""
        self.path(batch).unlink(missing_ok=True)

    def results(self, batch: Batch) -> Path:
        """Where the results of a batch lie while they are read."""
        self.folder.mkdir(exist_ok=True)
        return self.folder / f"starling-{batch.token}.results"

    def tidy(self) -> None:
        """Remove what processes that died have left, and the folder when nothing is in it."""
        found = list(self.folder.glob("starling-*"))  # before the rows are read: whose file is there has a row
        needed = self._journal.batches.open_tokens()
        for path in found:
            if path.stem.removeprefix("starling-") not in needed:
                path.unlink(missing_ok=True)
        if not needed:  # else another model may be about to write there
            remove_empty([self.folder])

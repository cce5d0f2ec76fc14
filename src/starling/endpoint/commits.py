"""Journal entries of many calls in few transactions, written by a thread of its own.

The event loop never waits for the disk, and a reply that was read is on disk within milliseconds even while the loop is busy
reading others: the thread wakes by itself.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from starling.journal import Entry, Journal

COMMIT_S = 0.01
"""Entries wait this long for others to share a transaction with."""

Then = Callable[..., None]


class Writer:
    """Writes what it is given, in order. Made and used inside one event loop; `close` it.

    Args:
        journal: where to.
        written: called in the loop after every transaction and the calls of `then` that belong to it.
        failed: called in the loop with the error when a transaction could not be written, or a call of `then` failed; the
            entries of that transaction are lost.
    """

    def __init__(self, journal: Journal, written: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        self.pending = 0
        """Entries given and not reported yet."""
        self._journal = journal
        self._written = written
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._entries: deque[tuple[Entry, Then | None, tuple[Any, ...]]] = deque()
        self._awake = threading.Event()
        self._closing = False
        self._idle: asyncio.Future[None] | None = None
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def add(self, entry: Entry, then: Then | None = None, *what: Any) -> None:
        """Write it soon; once it is on disk, `then(*what, late)` is called in the loop. `late` is True when it is an answer and
        another process's answer was there first."""
        self.pending += 1
        self._entries.append((entry, then, what))
        if not self._awake.is_set():
            self._awake.set()

    async def close(self) -> None:
        """Return when everything is written and reported, and what that gave rise to, too."""
        while self.pending:
            self._idle = self._loop.create_future()
            await self._idle
        self._closing = True
        self._awake.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._awake.wait()
            if self._closing:
                return
            time.sleep(COMMIT_S)
            self._awake.clear()  # before taking the entries: one that comes now wakes this thread again
            batch = [self._entries.popleft() for _ in range(len(self._entries))]
            late: set[str] = set()
            error: Exception | None = None
            try:
                late = self._journal.write([entry for entry, _, _ in batch])
            except Exception as caught:
                error = caught
            self._loop.call_soon_threadsafe(self._report, batch, late, error)

    def _report(
        self, batch: list[tuple[Entry, Then | None, tuple[Any, ...]]], late: set[str], error: Exception | None
    ) -> None:
        try:
            if error is not None:
                raise error
            for entry, then, what in batch:
                if then is not None:
                    then(*what, entry.key in late)
        except Exception as caught:  # else whoever waits for these entries would wait for ever
            self._failed(caught)
        self.pending -= len(batch)
        self._written()
        if not self.pending and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

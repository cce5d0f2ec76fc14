"""Files of calls at a provider's batch API, as the journal remembers them: one row each, written before every step.

    draft      the calls are being written to the file; nothing has left
    intended   the file is complete: its hash, its lines and bytes are in the row
    uploaded   the provider has the file, `file_id` (OpenAI)
    creating   the request that starts the batch is about to leave, or has left and nobody knows what became of it
    running    the provider has the batch, `batch_id`
    done       every line has its answer or its failure in the journal
    withdrawn  nothing was ever started: its attempts are taken back
    refused    the provider refused the file as a whole, which costs nothing
    lost       set by hand, when the provider no longer has a batch; its attempts are then closed as possibly paid, state `closed`

The calls of a batch are attempts like others, with its row in `attempts.batch`, and in the order of the lines of the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

from starling.errors import JournalError
from starling.journal.database import Database

OPEN = ("draft", "intended", "uploaded", "creating", "running", "lost")
"""States in which something is still to be done."""

BYSTANDER = "the batch was refused because of other lines"
"""The error of an attempt that was none: nobody looked at its line."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One row, e.g. Batch(id=3, model="gpt-4o", server="https://api.openai.com/v1", state="running", batch_id="batch_1", …)."""

    id: int
    model: str
    server: str
    """The base URL: ids mean something only there."""
    token: str
    """Random; goes into the provider's metadata, so that a batch whose id was lost is recognised."""
    state: str
    shard: str
    """SHA-256 of the file."""
    requests: int
    bytes: int
    file_id: str
    newest: str
    """The newest batch at the provider before this one was created: a lost one is newer."""
    batch_id: str
    sure: bool
    """False when the batch was recognised by its size and age alone; its results tell."""
    others: str
    """Ids, separated by spaces, that looked like this batch and turned out to be others."""
    sent: float
    """When the request that starts it left last, in seconds of the epoch."""
    note: str
    """What became of it, for people."""


_COLUMNS = ", ".join(f.name for f in fields(Batch))


@dataclass(frozen=True)
class Tried:
    """What earlier attempts at a key came to, e.g. Tried(2, 429, "HTTP 429: slow down")."""

    count: int
    status: int
    """Of the newest."""
    error: str


class BatchTable:
    """The table `batches`; `Journal.batches`.

    Args:
        database: the journal's file.
        release: gives paid attempts, tokens and microdollars back to the budget.
    """

    def __init__(self, database: Database, release: Callable[[tuple[int, int, int]], None]) -> None:
        self._db = database
        self._release = release
        self._opened: set[int] = set()
        """Rows made here."""

    # ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def open(self, model: str, server: str) -> Batch:
        """A new draft."""
        with self._db.transaction():
            made = self._db.execute(
                "INSERT INTO batches (model, server, token, state) VALUES (?, ?, ?, 'draft')",
                [model, server, os.urandom(8).hex()],
            ).lastrowid
        assert made is not None
        self._opened.add(made)
        return self.get(made)

    def get(self, number: int) -> Batch:
        """The row with this id."""
        return self._rows("WHERE id = ?", [number])[0]

    def update(self, batch: Batch, **changes: Any) -> Batch:
        """Change columns; when this returns, the change survives the death of the process.

        Raises:
            JournalError: the row is not in the state of `batch` any more.
        """
        assigned = ", ".join(f"{name} = ?" for name in changes)
        with self._db.transaction():
            query = f"UPDATE batches SET {assigned} WHERE id = ? AND state = ?"
            if self._db.execute(query, [*changes.values(), batch.id, batch.state]).rowcount == 0:
                raise self._taken(batch)
        return self.get(batch.id)

    def under_way(self, model: str) -> list[Batch]:
        """Batches of a model that may have been paid for and have not been collected."""
        return self._rows("WHERE model = ? AND state IN ('creating', 'running') ORDER BY id", [model])

    def drafts(self, model: str, server: str) -> list[Batch]:
        """Files that another process did not finish; one of ours may be in the hands of another endpoint."""
        found = self._rows("WHERE model = ? AND server = ? AND state = 'draft'", [model, server])
        return [batch for batch in found if batch.id not in self._opened]

    def open_tokens(self) -> set[str]:
        """Tokens of the batches with which something is still to be done."""
        return {row[0] for row in self._db.all(f"SELECT token FROM batches WHERE state IN {OPEN}")}

    def known_ids(self, server: str) -> set[str]:
        """Ids of the provider that surely belong to a row."""
        return {r[0] for r in self._db.all("SELECT batch_id FROM batches WHERE server = ? AND sure AND batch_id != ''", [server])}

    def newest(self) -> int:
        """The id of the newest row; 0 when there is none."""
        return int(self._db.all("SELECT coalesce(max(id), 0) FROM batches")[0][0])

    def _rows(self, condition: str, values: list[Any]) -> list[Batch]:
        found = self._db.all(f"SELECT {_COLUMNS} FROM batches {condition}", values)
        rows = [dict(zip(_COLUMNS.split(", "), row, strict=True)) for row in found]
        return [Batch(**row | {"sure": bool(row["sure"])}) for row in rows]

    # ── their calls ──────────────────────────────────────────────────────────────────────────────────────────────────

    def open_batches(self, keys: Iterable[str]) -> set[int]:
        """Rows, not yet finished, that any of `keys` was sent with."""
        query = (
            "SELECT DISTINCT b.id FROM calls c JOIN attempts a ON a.call = c.id JOIN batches b ON b.id = a.batch "
            f"WHERE b.state IN {OPEN} AND c.key IN ({{}})"
        )
        return {row[0] for row in self._db.among(query, keys)}

    def waiting(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that wait in a batch for their answer."""
        query = (
            "SELECT c.key FROM calls c JOIN attempts a ON a.call = c.id JOIN batches b ON b.id = a.batch "
            f"WHERE a.ended IS NULL AND b.state IN {OPEN} AND c.key IN ({{}})"
        )
        return {row[0] for row in self._db.among(query, keys)}

    def tried(self, keys: Iterable[str], since: int) -> dict[str, Tried]:
        """The ended attempts at those of `keys` that have no answer, in batches after row `since`; bystanders do not count."""
        query = (
            "SELECT c.key, count(*), a.status, a.error, max(a.id) FROM calls c JOIN attempts a ON a.call = c.id "
            f"WHERE c.answer IS NULL AND a.ended IS NOT NULL AND +a.batch > {int(since)} "
            f"AND a.error != '{BYSTANDER}' AND c.key IN ({{}}) GROUP BY c.key"
        )  # with max(), SQLite takes the bare columns from the row that has the maximum
        return {key: Tried(count, status, error) for key, count, status, error, _ in self._db.among(query, keys)}

    def members(self, batch: int, keys: Iterable[str]) -> dict[str, bool]:
        """Those of `keys` that were sent with a batch, and whether they still wait for their answer."""
        query = (
            "SELECT c.key, a.ended IS NULL FROM calls c JOIN attempts a ON a.call = c.id "
            f"WHERE +a.batch = {int(batch)} AND c.key IN ({{}})"
        )  # the + keeps SQLite from going through the whole batch for every key
        return {key: bool(waits) for key, waits in self._db.among(query, keys)}

    def unanswered(self, batch: int, limit: int) -> list[str]:
        """The first keys of a batch that still wait."""
        query = (
            "SELECT c.key FROM attempts a JOIN calls c ON c.id = a.call WHERE a.batch = ? AND a.ended IS NULL "
            "ORDER BY a.id LIMIT ?"
        )
        return [row[0] for row in self._db.all(query, [batch, limit])]

    def key_at(self, batch: int, line: int) -> str | None:
        """The key in a line of the file, counted from 1."""
        query = "SELECT c.key FROM attempts a JOIN calls c ON c.id = a.call WHERE a.batch = ? ORDER BY a.id LIMIT 1 OFFSET ?"
        rows = self._db.all(query, [batch, line - 1]) if line > 0 else []
        return rows[0][0] if rows else None

    def withdraw(self, batch: Batch, note: str, state: str = "withdrawn") -> None:
        """Take the attempts of a batch back as if they had never been: it is certain that none was worked on.

        Raises:
            JournalError: the row is not in the state of `batch` any more.
        """
        with self._db.transaction():
            query = "UPDATE batches SET state = ?, note = ? WHERE id = ? AND state = ?"
            if self._db.execute(query, [state, note, batch.id, batch.state]).rowcount == 0:
                raise self._taken(batch)
            sums = "count(*), coalesce(sum(tokens), 0), coalesce(sum(microdollars), 0)"
            amounts = self._db.execute(f"SELECT {sums} FROM attempts WHERE batch = ? AND paid", [batch.id]).fetchone()
            self._db.execute("DELETE FROM attempts WHERE batch = ?", [batch.id])
        self._release(amounts)

    def _taken(self, batch: Batch) -> JournalError:
        return JournalError(
            f"Another process has moved a batch on that was {batch.state} here",
            where=f"row {batch.id} of batches in {self._db.path}",
            cure="let one process at a time ask from this journal, and start again",
        )  # fmt: skip

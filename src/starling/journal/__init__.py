"""The journal: every model call of a run, once, keyed by its content, in one SQLite file.

Tables: `calls` (one row per key, and which attempt answered it; the first answer stays), `attempts` (one row per try, written
before the call leaves and completed before anybody parses the reply), and their texts apart in `questions` and `replies`, so that
counting a million calls reads no texts. The view `readable` is for people with an SQL shell; there,
`sqlar_uncompress(text, bytes)` of Debian's and sqlite.org's `sqlite3` shows a text. `batches` has a row for each file that went
to a provider's batch API (`starling.journal.batches`).

An attempt without an end is a call that was in flight when a process died: the only calls that can be paid twice. It keeps
counting against the budget with the most that it can have cost.

Texts are zlib-compressed. No header and no key is ever stored. Timestamps and latencies are stored, which is why a journal is
never part of a fingerprint.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from starling.errors import BudgetError, JournalError
from starling.journal.batches import Batch, BatchTable
from starling.journal.database import Database
from starling.journal.entries import (
    NOTHING,
    UNLIMITED,
    Answer,
    Budget,
    Entry,
    Intent,
    Rejection,
    Spend,
    StoredReply,
    Tokens,
    Usage,
)  # fmt: skip
from starling.records import canonical_json

__all__ = [
    "NOTHING", "UNLIMITED", "Answer", "Batch", "Budget", "Entry", "Intent", "Journal", "Rejection", "Spend", "StoredReply",
    "Tokens", "Usage",
]  # fmt: skip


@dataclass(frozen=True)
class _Open:
    """An attempt of this process that has no end yet."""

    attempt: int
    call: int
    paid: bool
    most: Spend


class Journal:
    """One run's journal. Thread-safe; use it as a context manager or call `close`.

    Args:
        path: the SQLite file; made, with its folder, when missing.
        budget: the most that this journal may come to. A process sees what others paid for in the same file up to the moment it
            opened it.

    Raises:
        JournalError: the file is not a journal, was written by a newer version, is locked for long or cannot be written.
    """

    def __init__(self, path: Path, budget: Budget = UNLIMITED) -> None:
        self.path = path
        self._budget = budget
        self._session = os.urandom(6).hex()
        self._open_attempts: dict[tuple[str, int], _Open] = {}
        self._db = Database(path)
        self._lock = self._db.lock
        self._spent = self._spent_before() if budget != UNLIMITED else (0, 0, 0)
        self.batches = BatchTable(self._db, self._release)

    def _spent_before(self) -> tuple[int, int, int]:
        """Paid attempts, their tokens and microdollars."""
        query = "SELECT count(*), coalesce(sum(tokens), 0), coalesce(sum(microdollars), 0) FROM attempts WHERE paid = 1"
        calls, tokens, microdollars = self._db.all(query)[0]
        return calls, tokens, microdollars

    def _release(self, amounts: tuple[int, int, int]) -> None:
        """Give paid attempts, tokens and microdollars back to the budget."""
        with self._lock:
            calls, tokens, microdollars = (s - r for s, r in zip(self._spent, amounts, strict=True))
            self._spent = (calls, tokens, microdollars)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; harmless when closed already."""
        self._db.close()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, key: str) -> StoredReply | None:
        """The answer to `key`, or None when there is none yet; failed attempts are no answers."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, StoredReply]:
        """The answers to those of `keys` that have one."""
        query = (
            "SELECT c.key, a.status, r.text, a.error, a.latency_s FROM calls c JOIN attempts a ON a.id = c.answer "
            "LEFT JOIN replies r ON r.attempt = a.id WHERE c.key IN ({})"
        )
        with self._db.errors():
            return {
                key: StoredReply(status=status, body=_unpack(text), error=error, latency_s=latency)
                for key, status, text, error, latency in self._db.among(query, keys)
            }

    def answered(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that have an answer; no text is read."""
        return {row[0] for row in self._db.among("SELECT key FROM calls WHERE answer IS NOT NULL AND key IN ({})", keys)}

    def seconds(self, keys: Iterable[str]) -> float:
        """From question to answer, summed over those of `keys` that have an answer, each key once; no text is read."""
        query = "SELECT a.latency_s FROM calls c JOIN attempts a ON a.id = c.answer WHERE c.key IN ({})"
        return sum(row[0] or 0.0 for row in self._db.among(query, dict.fromkeys(keys)))

    def request(self, key: str) -> dict[str, Any] | None:
        """What was asked under `key`."""
        rows = self._db.all("SELECT q.text FROM questions q JOIN calls c ON c.id = q.call WHERE c.key = ?", [key])
        with self._db.errors():
            return dict(json.loads(_unpack(rows[0][0]))) if rows else None

    def attempts(self, key: str) -> list[StoredReply | None]:
        """Every attempt at `key`, oldest first; None for one that has no end."""
        rows = self._db.all(
            "SELECT a.status, r.text, a.error, a.latency_s, a.ended FROM attempts a JOIN calls c ON c.id = a.call "
            "LEFT JOIN replies r ON r.attempt = a.id WHERE c.key = ? ORDER BY a.id",
            [key],
        )
        with self._db.errors():
            return [
                None if ended is None else StoredReply(status=status, body=_unpack(text), error=error, latency_s=latency)
                for status, text, error, latency, ended in rows
            ]

    def listing(self, state: str | None, limit: int) -> list[dict[str, Any]]:
        """The newest calls as plain rows for people, each with question and raw replies.

        Args:
            state: answered, failed (every attempt ended, none answered), unfinished (an attempt has no end: it was in flight when
                a process died, or is now), or None for all.
            limit: most rows.
        """
        wanted = {
            None: "1",
            "answered": "answer IS NOT NULL",
            "failed": "answer IS NULL AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.call = c.id AND a.ended IS NULL)",
            "unfinished": "EXISTS (SELECT 1 FROM attempts a WHERE a.call = c.id AND a.ended IS NULL)",
        }
        found = self._db.all(f"SELECT key, model, purpose FROM calls c WHERE {wanted[state]} ORDER BY id DESC LIMIT ?", [limit])
        columns = "attempt, is_answer, status, error, started, latency_s, paid, prompt_tokens, completion_tokens, dollars"
        rows = []
        for key, model, purpose in found:
            tries = self._db.all(f"SELECT {columns} FROM readable WHERE key = ? ORDER BY attempt_id", [key])
            told = [dict(zip(columns.split(", "), one, strict=True)) for one in tries]
            for one, stored in zip(told, self.attempts(key), strict=True):
                one["reply"] = stored.body if stored is not None else None
            rows.append({"key": key, "model": model, "purpose": purpose, "request": self.request(key), "attempts": told})
        return rows

    def count(self) -> int:
        """How many keys have an answer."""
        return int(self._db.all("SELECT count(answer) FROM calls")[0][0])

    def is_empty(self) -> bool:
        """Whether nothing was ever asked."""
        return not self._db.all("SELECT 1 FROM calls LIMIT 1")

    def usage(self, *, model: str | None = None, purpose: str | None = None) -> Usage:
        """Totals over the whole journal, or over the calls of one model name or purpose."""
        answered = "a.id = c.answer"
        query = (
            f"SELECT count(CASE WHEN {answered} THEN 1 END), count(*), coalesce(sum(a.paid), 0), "
            f"count(a.ended) - count(CASE WHEN {answered} THEN 1 END), count(*) - count(a.ended), "
            "coalesce(sum(a.prompt_tokens), 0), coalesce(sum(a.completion_tokens), 0), coalesce(sum(a.paid * a.tokens), 0), "
            f"coalesce(sum(a.paid * a.microdollars), 0), coalesce(sum(CASE WHEN {answered} THEN a.latency_s END), 0.0) "
            "FROM attempts a JOIN calls c ON c.id = a.call WHERE (?1 IS NULL OR c.model = ?1) AND (?2 IS NULL OR c.purpose = ?2)"
        )
        row = self._db.all(query, [model, purpose])[0]
        return Usage(
            answered=row[0], attempts=row[1], paid=row[2], failed=row[3], unfinished=row[4], prompt_tokens=row[5],
            completion_tokens=row[6], tokens=row[7], dollars=row[8] / 1e6, latency_s=row[9],
        )  # fmt: skip

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def reserve(self, most: Spend = NOTHING) -> bool:
        """Take one paid attempt, and the most that it can cost, out of the budget; False when that much is not left."""
        with self._lock:
            calls, tokens, microdollars = self._spent
            after = (calls + 1, tokens + most.tokens, microdollars + most.microdollars)
            limits = (self._budget.calls, self._budget.tokens, _microdollars(self._budget.dollars))
            if any(limit is not None and amount > limit for amount, limit in zip(after, limits, strict=True)):
                return False
            self._spent = after
            return True

    def intend(self, key: str, attempt: int, request: dict[str, Any], *, paid: bool = True, most: Spend = NOTHING) -> None:
        """Write down that a call is about to leave.

        Raises:
            BudgetError: the budget does not allow another paid attempt.
        """
        if paid and not self.reserve(most):
            raise self.budget_error()
        self.write([Intent(key=key, attempt=attempt, request=request, paid=paid, most=most)])

    def put(self, key: str, attempt: int, reply: StoredReply) -> None:
        """Store what came back from an intended attempt. When `key` has an answer already, that one stays the answer."""
        self.write([Answer(key=key, attempt=attempt, reply=reply)])

    def write(self, entries: Sequence[Entry]) -> set[str]:
        """Write entries in their order in one transaction; when this returns, they survive the death of the process.

        Returns:
            Keys whose answer came too late, because another process had answered them: that answer stays, read it with `get`.
        """
        packed = [(entry, *_texts(entry)) for entry in entries]  # outside the transaction: others may write meanwhile
        refunds, late = [], set()
        opened: dict[tuple[str, int], _Open] = {}
        closed: list[tuple[str, int]] = []
        with self._db.transaction():
            for entry, size, text in packed:
                if isinstance(entry, Intent):
                    made = self._write_intent(entry, size, text)
                    if entry.batch is None:
                        opened[entry.key, entry.attempt] = made
                elif isinstance(entry, Answer):
                    place = (entry.key, entry.attempt)
                    attempt = opened.get(place) or self._open_attempts.get(place)
                    if entry.batch is not None:
                        attempt = self._open_in_batch(entry.key, entry.batch)
                    refund, first = self._write_answer(entry, attempt, size, text)
                    refunds.append(refund)
                    closed.append(place)
                    if not first:
                        late.add(entry.key)
                elif isinstance(entry, Rejection):
                    self._db.execute(
                        "UPDATE attempts SET error = ? WHERE id = (SELECT answer FROM calls WHERE key = ?)",
                        [entry.reason, entry.key],
                    )
                    self._db.execute("UPDATE calls SET answer = NULL WHERE key = ?", [entry.key])
                else:
                    refunds.append(self._write_tokens(entry))
        with self._lock:
            self._open_attempts |= opened
            for place in closed:
                self._open_attempts.pop(place, None)
            for amounts in refunds:
                self._release(amounts)
        return late

    def budget_error(self) -> BudgetError:
        """The error of a run whose budget is used up."""
        with self._lock:
            calls, tokens, microdollars = self._spent
        budget = self._budget
        limits = [
            (f"budget_calls = {budget.calls} ({calls} made)", calls, budget.calls),
            (f"budget_tokens = {budget.tokens} ({tokens} spent or reserved)", tokens, budget.tokens),
            (
                f"budget_dollars = {budget.dollars} ({microdollars / 1e6:.2f} spent or reserved)",
                microdollars / 1e6,
                budget.dollars,
            ),
        ]
        scarcest_first = sorted((-used / limit, said) for said, used, limit in limits if limit is not None)
        return BudgetError(
            "The budget of the run does not allow another model call",
            where=f"run.{', run.'.join(said for _, said in scarcest_first)}, counted in {self.path}",
            cure="raise it and start again: every call made so far is in the journal and is not repeated",
        )

    def _write_intent(self, entry: Intent, size: int, text: bytes) -> _Open:
        model, purpose = entry.request.get("model"), str(entry.request.get("purpose", ""))
        name = str(model.get("name", "")) if isinstance(model, dict) else str(model or "")
        execute = self._db.execute
        made = execute("INSERT OR IGNORE INTO calls (key, model, purpose) VALUES (?, ?, ?)", [entry.key, name, purpose])
        if made.rowcount == 1:
            call = made.lastrowid
            execute("INSERT INTO questions VALUES (?, ?, ?)", [call, size, text])
        else:
            call = self._db.one("SELECT id FROM calls WHERE key = ?", [entry.key])
        attempt = execute(
            "INSERT INTO attempts (call, session, number, paid, started, tokens, microdollars, batch) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [call, self._session, entry.attempt, int(entry.paid), time.time(), entry.most.tokens, entry.most.microdollars,
             entry.batch],
        ).lastrowid  # fmt: skip
        assert attempt is not None
        assert call is not None
        return _Open(attempt, call, entry.paid, entry.most)

    def _open_in_batch(self, key: str, batch: int) -> _Open | None:
        """The unfinished attempt at `key` that was sent with a batch, by whatever process."""
        row = self._db.execute(
            "SELECT a.id, a.call, a.paid, a.tokens, a.microdollars FROM attempts a JOIN calls c ON c.id = a.call "
            "WHERE c.key = ? AND +a.batch = ? AND a.ended IS NULL",
            [key, batch],
        ).fetchone()
        return _Open(row[0], row[1], bool(row[2]), Spend(row[3], row[4])) if row is not None else None

    def _write_answer(self, entry: Answer, opened: _Open | None, size: int, text: bytes) -> tuple[tuple[int, int, int], bool]:
        """Returns (what the budget gets back, False when another answer was there first).

        A server that answers with an error status bills nothing; a lost connection may have been billed.
        """
        if opened is None:
            raise JournalError(
                "A reply was stored for a call that was never announced",
                where=f"call {entry.key[:16]}, attempt {entry.attempt}",
                cure="this is a defect of the calling code: intend before put",
            )
        reply = entry.reply
        free = opened.paid and (reply.status not in (0, 200) or not reply.sent)
        self._db.execute(
            "UPDATE attempts SET ended = ?, status = ?, latency_s = ?, error = ?, paid = ? WHERE id = ?",
            [time.time(), reply.status, reply.latency_s, reply.error, int(opened.paid and not free), opened.attempt],
        )
        if reply.body:
            self._db.execute("INSERT INTO replies VALUES (?, ?, ?)", [opened.attempt, size, text])
        refund = (1, opened.most.tokens, opened.most.microdollars) if free else (0, 0, 0)
        if not reply.answered:
            return refund, True
        query = "UPDATE calls SET answer = ? WHERE id = ? AND answer IS NULL"
        return refund, self._db.execute(query, [opened.attempt, opened.call]).rowcount == 1

    def _write_tokens(self, entry: Tokens) -> tuple[int, int, int]:
        """Returns what the budget gets back."""
        query = (
            "SELECT id, paid, tokens, microdollars FROM attempts WHERE call = (SELECT id FROM calls WHERE key = ?1) "
            "AND CASE WHEN ?2 IS NULL THEN session = ?3 AND number = ?4 ELSE batch = ?2 END ORDER BY id DESC LIMIT 1"
        )
        row = self._db.execute(query, [entry.key, entry.batch, self._session, entry.attempt]).fetchone()
        if row is None:
            return (0, 0, 0)
        number, paid, tokens, microdollars = row
        spent = entry.spent
        self._db.execute(
            "UPDATE attempts SET prompt_tokens = ?, completion_tokens = ?, tokens = ?, microdollars = ? WHERE id = ?",
            [entry.prompt, entry.completion, spent.tokens, spent.microdollars, number],
        )
        return (0, tokens - spent.tokens, microdollars - spent.microdollars) if paid else (0, 0, 0)


def _microdollars(dollars: float | None) -> int | None:
    return None if dollars is None else round(dollars * 1e6)


def _texts(entry: Entry) -> tuple[int, bytes]:
    """Size and packed form of the text that an entry brings."""
    if isinstance(entry, Intent):
        return _pack(canonical_json(entry.request))
    return _pack(entry.reply.body) if isinstance(entry, Answer) and entry.reply.body else (0, b"")


def _pack(text: str) -> tuple[int, bytes]:
    """UTF-8 size and zlib form."""
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw), zlib.compress(raw, 1)


def _unpack(blob: bytes | None) -> str:
    return zlib.decompress(blob).decode("utf-8", "surrogatepass") if blob else ""

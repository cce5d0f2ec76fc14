"""The journal: every model call of a run, once, keyed by its content, in one SQLite file.

Three tables: `requests` (what was asked, once per key), `attempts` (one row per try, written before the call leaves and
completed with the raw reply before anybody parses it) and `answers` (which attempt answered a key; the first one stays).
An attempt without an end is a call that was in flight when a process died: the only calls that can be paid twice.

Facts relied on (sqlite.org/wal.html): in WAL mode with synchronous=NORMAL a commit survives the death of the process at any
instant, and a power failure can lose the last commits but not corrupt the file. Several processes may share the file:
writers wait for each other.

Bodies and requests are zlib-compressed. No header and no key is ever stored. Timestamps and latencies are stored, which is
why a journal is never part of a fingerprint.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from starling.errors import BudgetError, JournalError
from starling.records import canonical_json

WAIT_S = 60.0
"""How long a writer waits for another process that is writing."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE requests (
            key TEXT PRIMARY KEY, model TEXT NOT NULL, purpose TEXT NOT NULL, request BLOB NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE attempts (
            id INTEGER PRIMARY KEY, key TEXT NOT NULL, session TEXT NOT NULL, attempt INTEGER NOT NULL, paid INTEGER NOT NULL,
            started REAL NOT NULL, ended REAL, status INTEGER, latency_s REAL, error TEXT NOT NULL DEFAULT '',
            prompt_tokens INTEGER, completion_tokens INTEGER, body BLOB)""",
        "CREATE INDEX attempts_key ON attempts (key)",
        "CREATE INDEX attempts_paid ON attempts (paid) WHERE paid = 1",
        "CREATE TABLE answers (key TEXT PRIMARY KEY, attempt_id INTEGER NOT NULL REFERENCES attempts (id)) WITHOUT ROWID",
    ),
)
"""Statements that lead from schema version i to i + 1; `PRAGMA user_version` counts those applied. Only ever appended to."""


@dataclass(frozen=True, kw_only=True)
class StoredReply:
    """What came back from one attempt, uninterpreted.

    Example: StoredReply(status=200, body='{"choices": [...]}', latency_s=0.8).
    """

    status: int
    """HTTP status; 200 also for local models; 0 when nothing came back (timeout, lost connection)."""
    body: str = ""
    """The reply as received, with keys already blanked out."""
    error: str = ""
    """Why it is no answer; empty for an answer."""
    latency_s: float = 0.0
    sent: bool = True
    """False when the call never left, e.g. because nobody listened: it cannot have been paid for."""

    @property
    def answered(self) -> bool:
        return self.status == 200 and not self.error


@dataclass(frozen=True, kw_only=True)
class Intent:
    """A call is about to leave."""

    key: str
    attempt: int
    request: dict[str, Any]
    """At least "model" (a ModelRef as a dict) and "purpose"; never a header."""
    paid: bool = True
    """False for local models: they do not count against the budget."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An attempt came to its end. The same key and attempt as in its Intent, written by the same Journal object."""

    key: str
    attempt: int
    reply: StoredReply


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The token counts of an attempt, read from its reply after it was stored."""

    key: str
    attempt: int
    prompt: int | None
    completion: int | None


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """The answer to a key turned out to be no reply at all: it is taken back; the attempt and its body stay."""

    key: str
    reason: str


Entry = Intent | Answer | Tokens | Rejection


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What the calls in a journal came to."""

    answered: int
    """Keys with an answer."""
    attempts: int
    paid: int
    """Attempts that were or may have been paid for: answered, timed out, or in flight when a process died."""
    failed: int
    """Attempts that ended without an answer."""
    unfinished: int
    """Attempts without an end: in flight now, or when a process died."""
    prompt_tokens: int
    completion_tokens: int
    latency_s: float
    """Seconds from question to answer, summed over the answered keys."""


class Journal:
    """One run's journal. Thread-safe; use it as a context manager or call `close`.

    Args:
        path: the SQLite file; made, with its folder, when missing.
        budget_calls: most paid attempts in this journal, earlier runs included; None means no limit. A process sees the calls
            that others paid for in the same file up to the moment it opened it.

    Raises:
        JournalError: the file is not a journal, was written by a newer version, is locked for long or cannot be written.
    """

    def __init__(self, path: Path, budget_calls: int | None = None) -> None:
        self.path = path
        self._budget = budget_calls
        self._lock = threading.RLock()
        self._session = os.urandom(6).hex()
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
            try:
                self._open()
                self._paid = int(self._one("SELECT count(*) FROM attempts WHERE paid = 1")) if budget_calls is not None else 0
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; harmless when closed already."""
        with self._lock:
            self._db.close()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def get(self, key: str) -> StoredReply | None:
        """The answer to `key`, or None when there is none yet; failed attempts are no answers."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, StoredReply]:
        """The answers to those of `keys` that have one."""
        found: dict[str, StoredReply] = {}
        wanted = list(keys)
        for start in range(0, len(wanted), 500):
            part = wanted[start : start + 500]
            marks = ",".join("?" * len(part))
            rows = self._all(
                "SELECT w.key, a.status, a.body, a.error, a.latency_s FROM answers w JOIN attempts a ON a.id = w.attempt_id "
                f"WHERE w.key IN ({marks})",
                part,
            )
            with self._errors():
                for key, status, body, error, latency in rows:
                    found[key] = StoredReply(status=status, body=_unpack(body), error=error, latency_s=latency)
        return found

    def request(self, key: str) -> dict[str, Any] | None:
        """What was asked under `key`."""
        rows = self._all("SELECT request FROM requests WHERE key = ?", [key])
        with self._errors():
            return dict(json.loads(_unpack(rows[0][0]))) if rows else None

    def attempts(self, key: str) -> list[StoredReply | None]:
        """Every attempt at `key`, oldest first; None for one that has no end."""
        rows = self._all("SELECT status, body, error, latency_s, ended FROM attempts WHERE key = ? ORDER BY id", [key])
        with self._errors():
            return [
                None if ended is None else StoredReply(status=status, body=_unpack(body), error=error, latency_s=latency)
                for status, body, error, latency, ended in rows
            ]

    def count(self) -> int:
        """How many keys have an answer."""
        with self._errors(), self._lock:
            return int(self._one("SELECT count(*) FROM answers"))

    def usage(self, *, model: str | None = None, purpose: str | None = None) -> Usage:
        """Totals over the whole journal, or over the calls of one model name or purpose."""
        query = (
            "SELECT count(w.key), count(*), coalesce(sum(a.paid), 0), count(a.ended) - count(w.key), count(*) - count(a.ended), "
            "coalesce(sum(a.prompt_tokens), 0), coalesce(sum(a.completion_tokens), 0), "
            "coalesce(sum(CASE WHEN w.key IS NOT NULL THEN a.latency_s END), 0.0) "
            "FROM attempts a JOIN requests r ON r.key = a.key LEFT JOIN answers w ON w.attempt_id = a.id AND w.key = a.key "
            "WHERE (?1 IS NULL OR r.model = ?1) AND (?2 IS NULL OR r.purpose = ?2)"
        )
        answered, attempts, paid, failed, unfinished, prompt, completion, latency = self._all(query, [model, purpose])[0]
        return Usage(
            answered=answered, attempts=attempts, paid=paid, failed=failed, unfinished=unfinished,
            prompt_tokens=prompt, completion_tokens=completion, latency_s=latency,
        )  # fmt: skip

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def reserve(self) -> bool:
        """Take one paid attempt out of the budget; False when none is left."""
        with self._lock:
            if self._budget is not None and self._paid >= self._budget:
                return False
            self._paid += 1
            return True

    def intend(self, key: str, attempt: int, request: dict[str, Any], *, paid: bool = True) -> None:
        """Write down that a call is about to leave.

        Raises:
            BudgetError: the budget does not allow another paid attempt.
        """
        if paid and not self.reserve():
            raise self.budget_error()
        self.write([Intent(key=key, attempt=attempt, request=request, paid=paid)])

    def put(self, key: str, attempt: int, reply: StoredReply) -> None:
        """Store what came back from an intended attempt. When `key` has an answer already, that one stays the answer."""
        self.write([Answer(key=key, attempt=attempt, reply=reply)])

    def write(self, entries: Sequence[Entry]) -> set[str]:
        """Write entries in their order in one transaction; when this returns, they survive the death of the process.

        Returns:
            Keys whose answer came too late, because another process had answered them: that answer stays, read it with `get`.
        """
        packed = [(e, _pack(canonical_json(e.request))) if isinstance(e, Intent) else (e, b"") for e in entries]
        refunds, late = 0, set()
        with self._transaction():
            for entry, request in packed:
                if isinstance(entry, Intent):
                    self._write_intent(entry, request)
                elif isinstance(entry, Answer):
                    free, first = self._write_answer(entry)
                    refunds += free
                    if not first:
                        late.add(entry.key)
                elif isinstance(entry, Rejection):
                    attempt = "SELECT attempt_id FROM answers WHERE key = ?"
                    self._db.execute(f"UPDATE attempts SET error = ? WHERE id = ({attempt})", [entry.reason, entry.key])
                    self._db.execute("DELETE FROM answers WHERE key = ?", [entry.key])
                else:
                    self._db.execute(
                        "UPDATE attempts SET prompt_tokens = ?, completion_tokens = ? WHERE id = ?",
                        [entry.prompt, entry.completion, self._attempt(entry.key, entry.attempt)[0]],
                    )
        with self._lock:
            self._paid -= refunds
        return late

    def budget_error(self) -> BudgetError:
        """The error of a run whose budget is used up."""
        return BudgetError(
            f"The budget of {self._budget} paid model calls is used up",
            where=f"run.budget_calls, counted in {self.path}",
            cure="raise run.budget_calls and start again: every call made so far is in the journal and is not repeated",
        )

    def _write_intent(self, entry: Intent, request: bytes) -> None:
        model, purpose = entry.request.get("model"), str(entry.request.get("purpose", ""))
        name = str(model.get("name", "")) if isinstance(model, dict) else str(model or "")
        self._db.execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?, ?)", [entry.key, name, purpose, request])
        self._db.execute(
            "INSERT INTO attempts (key, session, attempt, paid, started) VALUES (?, ?, ?, ?, ?)",
            [entry.key, self._session, entry.attempt, int(entry.paid), time.time()],
        )

    def _write_answer(self, entry: Answer) -> tuple[int, bool]:
        """Returns (1 when a paid attempt turned out to be free, False when another answer was there first).

        A server that answers with an error status bills nothing; a lost connection may have been billed.
        """
        reply = entry.reply
        number, paid = self._attempt(entry.key, entry.attempt)
        free = paid == 1 and (reply.status not in (0, 200) or not reply.sent)
        self._db.execute(
            "UPDATE attempts SET ended = ?, status = ?, latency_s = ?, error = ?, body = ?, paid = ? WHERE id = ?",
            [time.time(), reply.status, reply.latency_s, reply.error, _pack(reply.body), int(paid and not free), number],
        )
        if not reply.answered:
            return int(free), True
        cursor = self._db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", [entry.key, number])
        return int(free), cursor.rowcount == 1

    def _attempt(self, key: str, attempt: int) -> tuple[int, int]:
        """Row number and paid mark of this process's newest attempt of that number."""
        query = "SELECT id, paid FROM attempts WHERE key = ? AND session = ? AND attempt = ? ORDER BY id DESC LIMIT 1"
        row = self._db.execute(query, [key, self._session, attempt]).fetchone()
        if row is None:
            raise JournalError(
                "A reply was stored for a call that was never announced",
                where=f"call {key[:16]}, attempt {attempt}",
                cure="this is a defect of the calling code: intend before put",
            )
        return int(row[0]), int(row[1])

    # ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _open(self) -> None:
        self._switch_to_wal()
        self._db.execute("PRAGMA synchronous = NORMAL")
        with self._transaction():
            version = int(self._one("PRAGMA user_version"))
            if version > len(MIGRATIONS):
                raise JournalError(
                    f"The journal has schema version {version}, this Starling knows up to {len(MIGRATIONS)}",
                    where=str(self.path),
                    cure="use the newer Starling that wrote it, or another run.dir",
                )
            if version == 0 and self._one("SELECT count(*) FROM sqlite_master"):
                raise JournalError(
                    "The file is an SQLite database but no journal of Starling",
                    where=str(self.path),
                    cure="give another run.dir or move the file",
                )
            for statements in MIGRATIONS[version:]:
                for statement in statements:
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _switch_to_wal(self) -> None:
        """WAL mode stays with the file; SQLite does not wait for a lock here, so wait ourselves."""
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors(), self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, zlib.error) as error:
            cure = "free disk space, check the permissions and that no other program holds the file"
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                cure = "if it is no journal move it away; if it is damaged, `sqlite3 FILE .recover` rescues what was paid for"
            raise JournalError(f"The journal cannot be used: {error}", where=str(self.path), cure=cure) from error

    def _one(self, query: str) -> Any:
        return self._db.execute(query).fetchone()[0]

    def _all(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._errors(), self._lock:
            return self._db.execute(query, values).fetchall()


def _pack(text: str) -> bytes:
    return zlib.compress(text.encode("utf-8", "surrogatepass"), 1)


def _unpack(blob: bytes | None) -> str:
    return zlib.decompress(blob).decode("utf-8", "surrogatepass") if blob else ""

"""The journal's SQLite file: its schema and migrations, one connection that writes and one that reads, errors in words.

Facts relied on (sqlite.org/wal.html): in WAL mode with synchronous=NORMAL a commit survives the death of the process at any
instant, and a power failure can lose the last commits but not corrupt the file. Several processes may share the file:
writers wait for each other, readers wait for nobody.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from starling.errors import JournalError

WAIT_S = 60.0
"""How long a writer waits for another process that is writing."""
CACHE_KIB = 32_768
"""Pages kept in memory: keys are hashes, so every new one lands somewhere else in the index."""

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
    (
        "ALTER TABLE attempts RENAME TO old_attempts",
        "DROP INDEX attempts_key",
        "DROP INDEX attempts_paid",
        """CREATE TABLE calls (
            id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, model TEXT NOT NULL, purpose TEXT NOT NULL, answer INTEGER)""",
        "CREATE TABLE questions (call INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, text BLOB NOT NULL)",
        """CREATE TABLE attempts (
            id INTEGER PRIMARY KEY, call INTEGER NOT NULL, session TEXT NOT NULL, number INTEGER NOT NULL, paid INTEGER NOT NULL,
            started REAL NOT NULL, ended REAL, status INTEGER, latency_s REAL, error TEXT NOT NULL DEFAULT '',
            prompt_tokens INTEGER, completion_tokens INTEGER, tokens INTEGER NOT NULL, microdollars INTEGER NOT NULL)""",
        "CREATE TABLE replies (attempt INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, text BLOB NOT NULL)",
        """INSERT INTO calls (key, model, purpose, answer) SELECT key, model, purpose,
            (SELECT attempt_id FROM answers WHERE answers.key = requests.key) FROM requests""",
        """INSERT INTO questions SELECT calls.id, unpacked_bytes(request), request
            FROM requests JOIN calls ON calls.key = requests.key""",
        """INSERT INTO attempts SELECT old.id, calls.id, session, attempt, paid, started, ended, status, latency_s, error,
            prompt_tokens, completion_tokens, coalesce(prompt_tokens, 0) + coalesce(completion_tokens, 0), 0
            FROM old_attempts old JOIN calls ON calls.key = old.key""",
        "INSERT INTO replies SELECT id, unpacked_bytes(body), body FROM old_attempts WHERE body IS NOT NULL",
        "DROP TABLE old_attempts",
        "DROP TABLE answers",
        "DROP TABLE requests",
        "CREATE INDEX attempts_call ON attempts (call)",
        """CREATE VIEW readable AS SELECT calls.key, model, purpose, number AS attempt, attempts.id = calls.answer AS is_answer,
            status, error, datetime(started, 'unixepoch') AS started, latency_s, paid, prompt_tokens, completion_tokens,
            microdollars / 1e6 AS dollars, attempts.id AS attempt_id, calls.id AS call_id
            FROM attempts JOIN calls ON calls.id = attempts.call""",
    ),
    (
        """CREATE TABLE batches (
            id INTEGER PRIMARY KEY, model TEXT NOT NULL, server TEXT NOT NULL, token TEXT NOT NULL, state TEXT NOT NULL,
            shard TEXT NOT NULL DEFAULT '', requests INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0,
            file_id TEXT NOT NULL DEFAULT '', newest TEXT NOT NULL DEFAULT '', batch_id TEXT NOT NULL DEFAULT '',
            sure INTEGER NOT NULL DEFAULT 1, others TEXT NOT NULL DEFAULT '', sent REAL NOT NULL DEFAULT 0,
            note TEXT NOT NULL DEFAULT '')""",
        "ALTER TABLE attempts ADD COLUMN batch INTEGER",
        "CREATE INDEX attempts_batch ON attempts (batch) WHERE batch IS NOT NULL",
    ),
)
"""Statements that lead from schema version i to i + 1; `PRAGMA user_version` counts those applied. Only ever appended to."""


class Database:
    """The open file. `lock` guards the writing connection; whoever writes holds a `transaction`.

    Raises:
        JournalError: the file is not a journal, was written by a newer version, is locked for long or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._reading = threading.Lock()
        with self.errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._connect()
            try:
                self._prepare()
                self._reader = self._connect()
            except BaseException:
                self._writer.close()
                raise

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)

    def close(self) -> None:
        """Close the file; harmless when closed already."""
        with self.lock, self._reading:
            self._reader.close()  # first: the connection that closes last folds the write-ahead log into the file
            self._writer.close()

    # ── reading and writing ──────────────────────────────────────────────────────────────────────────────────────────

    def all(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows that are committed; does not wait for a transaction that is being written."""
        with self.errors(), self._reading:
            return self._reader.execute(query, values).fetchall()

    def among(self, query: str, keys: Iterable[str]) -> Iterator[tuple[Any, ...]]:
        """Rows of a query about some keys, `{}` in it standing for their list; asked in parts."""
        source = iter(keys)
        while part := list(islice(source, 500)):
            yield from self.all(query.format(",".join("?" * len(part))), part)

    def execute(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """A statement inside a `transaction`."""
        return self._writer.execute(query, values)

    def one(self, query: str, values: Sequence[Any] = ()) -> Any:
        """The first value of the first row, as the transaction sees it."""
        return self._writer.execute(query, values).fetchone()[0]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; when the block has ended, it survives the death of the process."""
        with self.errors(), self.lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def errors(self) -> Iterator[None]:
        """What SQLite, zlib and the operating system complain of, as a JournalError."""
        try:
            yield
        except (sqlite3.Error, OSError, zlib.error) as error:
            cure = "free disk space, check the permissions and that no other program holds the file"
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                cure = "if it is no journal move it away; if it is damaged, `sqlite3 FILE .recover` rescues what was paid for"
            raise JournalError(f"The journal cannot be used: {error}", where=str(self.path), cure=cure) from error

    # ── the file ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _prepare(self) -> None:
        self._switch_to_wal()
        self._writer.execute("PRAGMA synchronous = NORMAL")
        self._writer.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._writer.create_function("unpacked_bytes", 1, lambda blob: len(zlib.decompress(blob)), deterministic=True)
        with self.transaction():
            version = int(self.one("PRAGMA user_version"))
            if version > len(MIGRATIONS):
                raise JournalError(
                    f"The journal has schema version {version}, this Starling knows up to {len(MIGRATIONS)}",
                    where=str(self.path),
                    cure="use the newer Starling that wrote it, or another run.dir",
                )
            if version == 0 and self.one("SELECT count(*) FROM sqlite_master"):
                raise JournalError(
                    "The file is an SQLite database but no journal of Starling",
                    where=str(self.path),
                    cure="give another run.dir or move the file",
                )
            for statements in MIGRATIONS[version:]:
                for statement in statements:
                    self._writer.execute(statement)
            self._writer.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _switch_to_wal(self) -> None:
        """WAL mode stays with the file; SQLite does not wait for a lock here, so wait ourselves."""
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                self._writer.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

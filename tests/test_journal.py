"""The journal: what is in it stays, whatever dies; the first answer counts; budgets; files that are no journal."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest

from starling.errors import BudgetError, JournalError
from starling.journal import Answer, Budget, Intent, Journal, Rejection, Spend, StoredReply, Tokens, Usage
from starling.journal import database as module

ASKED = {"model": {"name": "m"}, "purpose": "judge", "messages": [["user", "hé \ud800"]]}


MOST = Spend(tokens=100, microdollars=500)


def ok(body: str) -> StoredReply:
    return StoredReply(status=200, body=body, latency_s=0.5)


def test_an_answer_is_kept_with_its_question(tmp_path: Path) -> None:
    with Journal(tmp_path / "new" / "journal.sqlite") as journal:
        assert journal.get("k") is None
        journal.intend("k", 1, ASKED)
        assert journal.get("k") is None
        journal.put("k", 1, ok("ré\ud800"))
        assert journal.get("k") == ok("ré\ud800")
    with Journal(tmp_path / "new" / "journal.sqlite") as again:
        assert again.get("k") == ok("ré\ud800")
        assert again.request("k") == ASKED
        assert again.request("other") is None
        assert again.count() == 1


def test_failed_attempts_are_kept_and_are_no_answers(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.intend("k", 1, ASKED)
        journal.put("k", 1, StoredReply(status=500, body="oops", error="HTTP 500"))
        journal.intend("k", 2, ASKED)
        assert journal.get("k") is None
        assert journal.attempts("k") == [StoredReply(status=500, body="oops", error="HTTP 500"), None]
        journal.put("k", 2, ok("fine"))
        assert journal.get("k") == ok("fine")


def test_many_keys_at_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        for i in range(1203):
            journal.write([Intent(key=f"k{i}", attempt=1, request=ASKED), Answer(key=f"k{i}", attempt=1, reply=ok(str(i)))])
        found = journal.get_many([f"k{i}" for i in range(1400)])
        assert {k: r.body for k, r in found.items()} == {f"k{i}": str(i) for i in range(1203)}


def test_how_long_answers_took(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        for i in range(600):
            journal.write([Intent(key=f"k{i}", attempt=1, request=ASKED), Answer(key=f"k{i}", attempt=1, reply=ok("x"))])
        journal.intend("failed", 1, ASKED)
        journal.put("failed", 1, StoredReply(status=500, latency_s=9.0))
        asked = [f"k{i}" for i in range(600)]
        assert journal.seconds([*asked, *asked, "failed", "other"]) == 300.0  # each once, half a second; failures are no answers
        assert journal.seconds([]) == 0.0


def test_the_first_answer_stays(tmp_path: Path) -> None:
    """Two processes asked the same question; whoever stores second learns it and reads the other's answer."""
    with Journal(tmp_path / "j") as one, Journal(tmp_path / "j") as two:
        two.intend("k", 1, ASKED)
        one.intend("k", 1, ASKED)
        assert one.write([Answer(key="k", attempt=1, reply=ok("one"))]) == set()
        assert two.write([Answer(key="k", attempt=1, reply=ok("two"))]) == {"k"}
        assert one.get("k") == two.get("k") == ok("one")
        assert [r and r.body for r in one.attempts("k")] == ["two", "one"]


def test_an_answer_that_is_none_can_be_taken_back(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.intend("k", 1, ASKED)
        journal.put("k", 1, ok("<html>"))
        journal.write([Rejection(key="k", reason="no chat completion")])
        assert journal.get("k") is None
        assert journal.attempts("k") == [StoredReply(status=200, body="<html>", error="no chat completion", latency_s=0.5)]
        journal.intend("k", 1, ASKED)  # the same number again, as another call of the same process would
        journal.put("k", 1, ok("real"))
        assert journal.get("k") == ok("real")
        assert len(journal.attempts("k")) == 2


def test_usage_by_hand(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", Budget(calls=100)) as journal:
        for key, reply in {
            "a": ok("x"),
            "b": StoredReply(status=429, error="slow"),
            "c": StoredReply(status=0, error="timeout"),
        }.items():
            journal.intend(key, 1, ASKED, most=MOST)
            journal.put(key, 1, reply)
        journal.intend("d", 1, ASKED, most=MOST)
        journal.intend("e", 1, {"model": {"name": "local"}, "purpose": "respond"}, paid=False)
        journal.put("e", 1, ok("y"))
        spent = Spend(tokens=9, microdollars=40)
        told = [Tokens(key="a", attempt=1, prompt=7, completion=2, spent=spent)]
        journal.write([*told, Tokens(key="e", attempt=1, prompt=1, completion=None)])
        # paid: a (answered), c (perhaps answered), d (in flight); a rejected call costs nothing, a local one neither.
        # tokens: 9 of a, and what c and d can have come to at most, 100 and 100.
        assert journal.usage() == Usage(
            answered=2, attempts=5, paid=3, failed=2, unfinished=1, prompt_tokens=8, completion_tokens=2,
            tokens=209, dollars=0.001040, latency_s=1.0,
        )  # fmt: skip
        assert journal.usage(model="local").attempts == 1
        assert journal.usage(purpose="judge").answered == 1
        assert journal.usage(purpose="judge", model="local").attempts == 0


def test_budget_counts_what_may_have_been_paid_and_survives_a_restart(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", Budget(calls=3)) as journal:
        journal.intend("a", 1, ASKED)
        journal.put("a", 1, StoredReply(status=429, error="slow"))  # given back
        journal.intend("b", 1, ASKED)
        journal.put("b", 1, StoredReply(status=0, error="no connection", sent=False))  # given back
        journal.intend("c", 1, ASKED)
        journal.put("c", 1, ok("x"))
        journal.intend("d", 1, ASKED)
    with Journal(tmp_path / "j", Budget(calls=3)) as journal:
        journal.intend("free", 1, ASKED, paid=False)
        journal.intend("e", 1, ASKED)
        with pytest.raises(BudgetError, match=r"budget_calls = 3 \(3 made\)") as caught:
            journal.intend("f", 1, ASKED)
        assert "run.budget_calls" in str(caught.value)
        assert journal.request("f") is None


@pytest.mark.parametrize("budget", [Budget(tokens=300), Budget(dollars=0.0015), Budget(calls=9, tokens=300, dollars=1)])
def test_tokens_and_dollars_are_set_aside_at_most_and_given_back(tmp_path: Path, budget: Budget) -> None:
    with Journal(tmp_path / "j", budget) as journal:
        for key in "abc":
            journal.intend(key, 1, ASKED, most=MOST)
        assert not journal.reserve(MOST), "three times the most is all there is"
        journal.put("a", 1, ok("x"))
        assert not journal.reserve(MOST), "what it cost is not known yet"
        journal.write([Tokens(key="a", attempt=1, prompt=30, completion=10, spent=Spend(tokens=40, microdollars=200))])
        assert journal.reserve(Spend(tokens=60, microdollars=300))
        assert not journal.reserve(Spend(tokens=1, microdollars=1))
        journal.put("b", 1, StoredReply(status=503, error="busy"))
        assert journal.reserve(MOST), "an error is free"
        journal.put("c", 1, StoredReply(status=0, error="timeout"))
        assert not journal.reserve(Spend(tokens=1, microdollars=1)), "it may have been paid for"
    with Journal(tmp_path / "j", budget) as journal:  # reservations that were never announced died with the process
        assert journal.reserve(Spend(tokens=160, microdollars=800)), "40 of a and 100 of c are spent"
        with pytest.raises(BudgetError, match=r"run\.budget_") as caught:
            journal.intend("d", 1, ASKED, most=Spend(tokens=1, microdollars=1))
        assert "raise it" in str(caught.value)


def test_which_keys_are_answered(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        for i in range(1203):
            journal.write([Intent(key=f"k{i}", attempt=1, request=ASKED)])
        journal.write([Answer(key=f"k{i}", attempt=1, reply=ok("")) for i in range(0, 1203, 2)])
        assert journal.answered(f"k{i}" for i in range(1400)) == {f"k{i}" for i in range(0, 1203, 2)}
        assert not journal.is_empty()


def test_readers_do_not_wait_for_a_transaction(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal, Journal(tmp_path / "j") as other:
        journal.intend("k", 1, ASKED)
        journal.put("k", 1, ok("x"))
        with other._db.transaction():
            assert journal.get("k") == ok("x")


def test_people_see_questions_replies_and_failures(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        for key in ("answered", "failed", "unfinished"):
            journal.intend(key, 1, {"model": {"name": key[0]}, "purpose": "judge"})
        journal.put("answered", 1, ok("yes"))
        journal.put("failed", 1, StoredReply(status=400, body="{}", error="HTTP 400"))
        assert [row["key"] for row in journal.listing(None, 2)] == ["unfinished", "failed"]
        for state in ("answered", "failed", "unfinished"):
            (row,) = journal.listing(state, 5)
            assert (row["key"], row["model"], row["request"]["purpose"]) == (state, state[0], "judge")
        (attempt,) = journal.listing("failed", 1)[0]["attempts"]
        assert (attempt["status"], attempt["error"], attempt["reply"]) == (400, "HTTP 400", "{}")
        assert journal.listing("unfinished", 1)[0]["attempts"][0]["reply"] is None


def test_plain_sql_can_read_it(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.intend("k", 1, ASKED, most=MOST)
        journal.put("k", 1, ok("body"))
    db = sqlite3.connect(tmp_path / "j")
    query = "SELECT key, model, purpose, attempt, is_answer, status, dollars FROM readable"
    assert db.execute(query).fetchall() == [("k", "m", "judge", 1, 1, 200, 0.0005)]
    size, text = db.execute("SELECT bytes, text FROM replies").fetchone()
    assert (size, zlib.decompress(text)) == (4, b"body"), "what sqlar_uncompress(text, bytes) does"


def test_a_full_disk_loses_nothing_and_the_journal_goes_on(tmp_path: Path) -> None:
    """SQLite reports a full disk and a file at its largest permitted size in the same way."""
    with Journal(tmp_path / "j") as journal:
        journal.intend("a", 1, ASKED)
        journal.put("a", 1, ok("kept"))
        pages = journal._db.one("PRAGMA page_count")
        journal._db.one(f"PRAGMA max_page_count = {pages + 2}")
        journal.intend("b", 1, ASKED)
        with pytest.raises(JournalError, match="full") as caught:
            journal.put("b", 1, ok(os.urandom(100_000).hex()))
        assert "free disk space" in caught.value.cure
        assert journal.get("a") == ok("kept")
        assert journal.attempts("b") == [None]
        journal._db.one(f"PRAGMA max_page_count = {pages + 1000}")
        journal.put("b", 1, ok("now"))
        assert journal.get("b") == ok("now")
    assert sqlite3.connect(tmp_path / "j").execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_threads_may_share_it(tmp_path: Path) -> None:
    def work(name: str) -> None:
        for i in range(50):
            journal.intend(f"{name}{i}", 1, ASKED)
            journal.put(f"{name}{i}", 1, ok(name))

    with Journal(tmp_path / "j", Budget(calls=400)) as journal:
        threads = [threading.Thread(target=work, args=(n,)) for n in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert journal.count() == 200


WRITER = """
import sys
from pathlib import Path
from starling.journal import Journal, StoredReply
with Journal(Path(sys.argv[1])) as journal:
    for i in range(100_000):
        key = f"{sys.argv[2]}{i}"
        journal.intend(key, 1, {"model": "m"})
        journal.put(key, 1, StoredReply(status=200, body=key * 50))
        print(i, flush=True)
"""


def test_what_was_stored_survives_sigkill_of_two_writers(tmp_path: Path) -> None:
    """Two processes write into one file and are killed in the middle: every reply that was reported as stored is there."""
    writers = {
        name: subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "j"), name], stdout=subprocess.PIPE, text=True)
        for name in "ab"
    }
    said: dict[str, list[str]] = {name: [] for name in writers}
    readers = [
        threading.Thread(target=lambda n=name, w=w: said[n].extend(w.stdout))
        for name, w in writers.items()  # type: ignore[misc]
    ]
    for reader in readers:
        reader.start()
    deadline = time.monotonic() + 60
    while min(len(lines) for lines in said.values()) < 60 and time.monotonic() < deadline:
        time.sleep(0.01)
    for writer in writers.values():
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    for reader in readers:
        reader.join()
    with Journal(tmp_path / "j") as journal:
        for name, lines in said.items():
            whole = [line for line in lines if line.endswith("\n")]
            assert len(whole) >= 60
            assert all(
                journal.get(f"{name}{int(line)}") == StoredReply(status=200, body=f"{name}{int(line)}" * 50) for line in whole
            )
        assert journal.usage().unfinished <= 2
    assert sqlite3.connect(tmp_path / "j").execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("content", [b"no database at all" * 200, b"SQLite format 3\x00" + b"\xff" * 3000])
def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(JournalError, match="move it away"):
        Journal(tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == content


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "j") as other:
        other.execute("CREATE TABLE songs (title TEXT)")
    with pytest.raises(JournalError, match="no journal of Starling"):
        Journal(tmp_path / "j")
    names = sqlite3.connect(tmp_path / "j").execute("SELECT name FROM sqlite_master").fetchall()
    assert names == [("songs",)]


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "j").close()
    sqlite3.connect(tmp_path / "j").execute("PRAGMA user_version = 99")
    with pytest.raises(JournalError, match="version 99") as caught:
        Journal(tmp_path / "j")
    assert "newer Starling" in caught.value.cure


def test_an_older_journal_is_migrated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.intend("k", 1, ASKED)
        journal.put("k", 1, ok("x"))
    monkeypatch.setattr(module, "MIGRATIONS", (*module.MIGRATIONS, ("ALTER TABLE calls ADD COLUMN note TEXT",)))
    for _ in range(2):
        with Journal(tmp_path / "j") as journal:
            assert journal.get("k") == ok("x")
    columns = sqlite3.connect(tmp_path / "j").execute("PRAGMA table_info(calls)").fetchall()
    assert "note" in [c[1] for c in columns]


def test_the_first_schema_is_carried_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file as version 1 wrote it, by hand: an answered call with a failed attempt before it, and one without an end."""
    db = sqlite3.connect(tmp_path / "j")
    for statement in module.MIGRATIONS[0]:
        db.execute(statement)
    asked, said = zlib.compress(b'{"purpose":"judge"}'), zlib.compress(b"fine")
    db.executemany("INSERT INTO requests VALUES (?, 'm', 'judge', ?)", [("a", asked), ("b", asked)])
    attempts = [
        (1, "a", "s", 1, 0, 10.0, 11.0, 500, 1.0, "HTTP 500", None, None, None),
        (2, "a", "s", 2, 1, 12.0, 13.0, 200, 0.5, "", 7, 3, said),
        (3, "b", "s", 1, 1, 14.0, None, None, None, "", None, None, None),
    ]
    db.executemany("INSERT INTO attempts VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", attempts)
    db.execute("INSERT INTO answers VALUES ('a', 2)")
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    with Journal(tmp_path / "j", Budget(calls=3)) as journal:
        assert journal.get("a") == ok("fine")
        assert journal.attempts("a") == [StoredReply(status=500, error="HTTP 500", latency_s=1.0), ok("fine")]
        assert journal.attempts("b") == [None]
        assert journal.request("b") == {"purpose": "judge"}
        assert journal.usage(purpose="judge").prompt_tokens == 7
        assert journal.usage().tokens == 10
        journal.intend("c", 1, ASKED)
        assert not journal.reserve()
    row = sqlite3.connect(tmp_path / "j").execute("SELECT bytes FROM replies").fetchone()
    assert row == (4,)


def test_a_failing_migration_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal(tmp_path / "j").close()
    broken = (*module.MIGRATIONS, ("CREATE TABLE half (x)", "CREATE TABLE half (x)"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "MIGRATIONS", broken)
        with pytest.raises(JournalError):
            Journal(tmp_path / "j")
    with Journal(tmp_path / "j") as journal:
        assert journal.count() == 0


def test_a_half_written_transaction_is_undone(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        with pytest.raises(JournalError, match="never announced"):
            journal.write([Intent(key="a", attempt=1, request=ASKED), Answer(key="b", attempt=1, reply=ok("x"))])
        assert journal.usage().attempts == 0
        journal.intend("a", 1, ASKED)
        assert journal.usage().attempts == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(JournalError, match="cannot be used"):
        Journal(tmp_path / "file" / "j")

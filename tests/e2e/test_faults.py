"""A server that does everything wrong: nothing is lost, every failure has its name, nothing answered is paid twice.

STARLING_FAULT_RANKINGS=10000 makes the mixed run as large as one likes; the suite's own has a few hundred rankings.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from starling import cli
from starling.artifacts import RecordFile
from starling.config import OpenAIModel
from starling.endpoint import HttpEndpoint, Reply, Request, calling
from starling.errors import BudgetError, JournalError
from starling.journal import Budget, Journal
from starling.records import Finish, Judgment, Message, Outcome, Prompt, Response
from tests.e2e.collecting import asked_again_after_an_answer, sentence, write_settings
from tests.e2e.processes import STARLING, environment, starling
from tests.fakes.faults import JUDGE, Fault
from tests.fakes.process import ROOT, FakeServer
from tests.fakes.replies import content_key

RANKINGS = int(os.environ.get("STARLING_FAULT_RANKINGS", "300"))


@pytest.fixture(scope="module")
def running() -> Iterator[FakeServer]:
    with FakeServer(chars=300) as server:
        yield server


@pytest.fixture
def server(running: FakeServer) -> FakeServer:
    running.reset()
    return running


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as made:
        yield made


def endpoint(server: FakeServer, journal: Journal, **settings: Any) -> HttpEndpoint:
    given = {"type": "openai", "base_url": server.url, "name": "m", "in_flight": 32} | settings
    return HttpEndpoint("m", OpenAIModel.model_validate(given), journal)


def questions(model: HttpEndpoint, count: int) -> list[Request]:
    return [Request(model.model, (Message(role="user", content=f"Question {i}."),), purpose="test") for i in range(count)]


def said(server: FakeServer, number: int, stats: dict[str, Any]) -> dict[str, Any]:
    """What the server knows about a question of `questions`."""
    return dict(stats["keys"][content_key("m", [{"role": "user", "content": f"Question {number}."}])])


# ── everything at once ───────────────────────────────────────────────────────────────────────────────────────────────

CURED = (
    "rate_limited", "server_error", "bad_gateway", "unavailable", "overloaded", "reset_after", "hang", "cut_body",
    "truncated_json", "malformed_json", "not_json", "wrong_type", "wrong_shape",
)  # fmt: skip
"""A second attempt helps; without one, the call fails by its provider."""

LASTING = {
    **{kind: {Outcome.provider_error} for kind in (*CURED[1:], "bad_request", "unknown_finish")},
    "context_length": {Outcome.provider_error, Outcome.too_long},
    **{kind: {Outcome.unparsed} for kind in ("empty_text", "null_text", "huge", *JUDGE)},
    "finish_length": {Outcome.truncated},
    "content_filter": {Outcome.refused},
    **{kind: {Outcome.ranked} for kind in ("no_usage", "bad_usage", "drip")},
}
"""What a judgment comes to whose every call is met by the fault."""


def mixed_plan() -> tuple[list[Fault], list[str]]:
    """Faults by marker, and the markers: once at any call, for ever at the judge, for ever at one of the two speakers."""
    faults = []
    for kind in CURED:
        wait = "0.2" if kind in ("rate_limited", "unavailable") else ""
        faults.append(Fault(kind, marker=f"(once {kind})", times=1, retry_after=wait))
    faults += [Fault(kind, marker=f"(judge {kind})", judge=True, seconds=60.0 if kind == "hang" else 0.3) for kind in LASTING]
    faults += [Fault(k, marker=f"(speaker {k})", model="short") for k in ("bad_request", "server_error", "not_json")]
    return faults, [f.marker for f in faults]


def test_a_mix_of_all_faults_loses_nothing_and_explains_everything(server: FakeServer, tmp_path: Path) -> None:
    faults, markers = mixed_plan()
    # Rare enough that it does not by chance take both of the attempts that another fault has left to a call.
    server.reset([*faults, Fault("reset_before", every=97 if RANKINGS <= 1000 else 1997)])
    marked = [*markers, *([""] * (len(markers) // 2))]
    prompts = [f"{sentence(i)} {marked[i % len(marked)]}".strip() for i in range(RANKINGS)]
    settings = write_settings(tmp_path, server.url, prompts, timeout_s=1.5, attempts=3, in_flight=64)
    assert cli.call(["rank", str(settings)]) == 0
    stats = server.stats(keys=True)
    responses = list(RecordFile(tmp_path / "run" / "responses" / "responses.parquet", Response))
    judgments = list(RecordFile(tmp_path / "run" / "ranking" / "judgments.parquet", Judgment))

    # Responses: two per prompt; those that failed say why, and only those that were made to fail did.
    kept = [p.messages[-1].content for p in RecordFile(tmp_path / "run" / "prompts" / "prompts.parquet", Prompt)]
    assert len(kept) >= 0.99 * RANKINGS, "a few of many drawn prompts may resemble each other and be merged"
    lost = sum("(speaker " in text for text in kept)
    assert Counter(r.model for r in responses) == {"short": len(kept), "long": len(kept)}
    assert Counter(r.finish for r in responses) == {Finish.stop: 2 * len(kept) - lost, Finish.error: lost}
    failed = [r for r in responses if r.finish is Finish.error]
    assert all(r.text == "" and r.model == "short" and r.reason for r in failed)

    # Rankings: every prompt but those with one response has been judged; each outcome is the one that its fault leads to.
    assert len({j.prompt_id for j in judgments}) == len(kept) - lost
    assert not {j.prompt_id for j in judgments} & {r.prompt_id for r in failed}
    with Journal(tmp_path / "run" / "journal.sqlite") as journal:
        wrong = [w for j in judgments if (w := misjudged(j, journal, stats)) is not None]
    assert wrong == []
    assert {j.outcome for j in judgments} >= set(Outcome) - {Outcome.too_long}
    assert asked_again_after_an_answer(stats) == []
    assert set(stats["faults"]) >= {*CURED, *LASTING, "reset_before"}
    manifest = json.loads((tmp_path / "run" / "ranking" / "manifest.json").read_text("utf-8"))
    assert sum(n for name, n in manifest["outcomes"].items() if name in set(Outcome)) >= len(kept) - lost
    assert manifest["outcomes"]["response_error"] == manifest["outcomes"]["fewer_than_2_responses"] == lost


def misjudged(judgment: Judgment, journal: Journal, stats: dict[str, Any]) -> str | None:
    """How a judgment contradicts what the server did to its call, or None when it does not."""
    asked = journal.request(judgment.call_id)
    assert asked is not None
    seen = stats["keys"].get(content_key(asked["model"]["name"], asked["messages"]))
    # A call whose every attempt was reset before it was read left no content with the server.
    kind = seen["faults"][-1] if seen else "reset_after"
    allowed = LASTING.get(kind, {Outcome.ranked})
    if judgment.outcome not in allowed:
        return f"{kind}: {judgment.outcome} {judgment.reason}"
    if (judgment.outcome is Outcome.ranked) != (judgment.reason == ""):
        return f"{kind}: {judgment.outcome} with the reason {judgment.reason!r}"
    return None


# ── one thing at a time ──────────────────────────────────────────────────────────────────────────────────────────────


def test_one_bad_request_in_2000_is_one_named_row(server: FakeServer, journal: Journal) -> None:
    server.reset([Fault("bad_request", marker="Question 1234.")])
    model = endpoint(server, journal, in_flight=64)
    replies = model.complete_all(questions(model, 2000))
    assert [i for i, r in enumerate(replies) if r.finish is not Finish.stop] == [1234]
    assert replies[1234].finish is Finish.error
    assert "400" in replies[1234].error
    assert "invalid value" in replies[1234].error
    assert len({r.text for r in replies}) == 2000
    assert server.stats()["received"] == 2000, "what is wrong is not asked again"
    usage = journal.usage()
    assert (usage.answered, usage.failed, usage.unfinished) == (1999, 1, 0)


def test_retry_after_is_kept_while_the_others_keep_running(server: FakeServer, journal: Journal) -> None:
    server.reset([Fault("rate_limited", nth=(5,), retry_after="2")], latency=0.04)
    model = endpoint(server, journal, in_flight=8)
    replies = model.complete_all(questions(model, 700))
    assert {r.finish for r in replies} == {Finish.stop}
    stats = server.stats(keys=True)
    assert stats["received"] == 701
    refused, again = next(k["arrived"] for k in stats["keys"].values() if k["faults"] == ["rate_limited", ""])
    assert 2.0 <= again - (refused + 0.04) <= 2.5
    others = [t for k in stats["keys"].values() for t in k["arrived"] if refused < t < refused + 2]
    per_quarter = Counter(int((t - refused) / 0.25) for t in others)
    assert all(per_quarter[quarter] >= 5 for quarter in range(8)), per_quarter


@pytest.mark.timeout(60)
def test_a_request_that_is_rejected_for_ever_becomes_a_named_row(
    server: FakeServer, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenAI does with one that is larger than a minute's tokens: 429 every time, while all others are answered."""
    monkeypatch.setattr(calling, "MINUTE_S", 3.0)
    server.reset([Fault("rate_limited", marker="Question 77.")])
    model = endpoint(server, journal, attempts=3)
    replies = model.complete_all(questions(model, 200))
    assert [i for i, r in enumerate(replies) if r.finish is Finish.error] == [77]
    assert "429" in replies[77].error


@pytest.mark.parametrize("budget", [Budget(calls=60), Budget(tokens=60 * 80)], ids=["calls", "tokens"])
def test_a_budget_is_never_exceeded_by_more_than_is_in_flight(budget: Budget, server: FakeServer, tmp_path: Path) -> None:
    server.reset(latency=0.02)
    path, in_flight = tmp_path / "journal.sqlite", 8
    longest = {"sampling": {"max_tokens": 100}}
    with Journal(path, budget) as journal:
        model = endpoint(server, journal, in_flight=in_flight, **longest)
        asked = questions(model, 200)
        with pytest.raises(BudgetError, match="budget"):
            model.complete_all(asked)
        before = server.stats()
        usage = journal.usage()
    if budget.calls is not None:
        assert before["received"] == usage.paid == budget.calls
    else:
        price = 100 + 5  # the longest reply and its prompt
        spent = usage.prompt_tokens + usage.completion_tokens
        assert budget.tokens is not None
        assert budget.tokens - in_flight * price < spent <= budget.tokens + in_flight * price
    assert before["answered"] == usage.answered, "what was in flight was waited for and written"
    with Journal(path) as journal:
        model = endpoint(server, journal, in_flight=in_flight, **longest)
        assert {r.finish for r in model.complete_all(asked)} == {Finish.stop}
    after = server.stats(keys=True)
    assert after["received"] == 200
    assert asked_again_after_an_answer(after) == []


# ── two at once ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_process_on_the_same_run_is_refused_and_harms_nothing(server: FakeServer, tmp_path: Path) -> None:
    server.reset(latency=0.3)
    settings = write_settings(tmp_path, server.url, [sentence(i) for i in range(40)], in_flight=4)
    with subprocess.Popen([*STARLING, "rank", str(settings)], stderr=subprocess.DEVNULL, env=environment()) as first:
        while server.stats()["received"] < 3:
            assert first.poll() is None
            time.sleep(0.02)
        second = starling("rank", settings)
        server.change(latency=0.0)
        assert first.wait(60) == 0
    assert second.returncode == 2
    assert "Another starling process" in second.stderr
    assert server.stats()["received"] == 120


SHARING = """
    import json, sys
    from pathlib import Path
    from starling.config import OpenAIModel
    from starling.endpoint import HttpEndpoint, Request
    from starling.journal import Journal
    from starling.records import Message
    url, path, backwards = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "1"
    with Journal(path) as journal:
        model = HttpEndpoint("m", OpenAIModel(type="openai", base_url=url, name="m", in_flight=16), journal)
        asked = [Request(model.model, (Message(role="user", content=f"Question {i}."),)) for i in range(400)]
        replies = model.complete_all(asked[::-1] if backwards else asked)
        print(json.dumps([r.text for r in (replies[::-1] if backwards else replies)]))
"""


def test_two_processes_share_a_journal(server: FakeServer, tmp_path: Path) -> None:
    server.reset(latency=0.03)
    path = tmp_path / "journal.sqlite"
    command = [sys.executable, "-c", textwrap.dedent(SHARING), server.url, str(path)]
    both = [subprocess.Popen([*command, way], stdout=subprocess.PIPE, cwd=ROOT, env=environment()) for way in "01"]
    texts = [json.loads(process.communicate()[0]) for process in both]
    assert [p.returncode for p in both] == [0, 0]
    assert texts[0] == texts[1]
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with Journal(path) as journal:
        usage = journal.usage()
    assert (usage.answered, usage.unfinished) == (400, 0)
    assert usage.attempts == server.stats()["received"] <= 800


# ── the machine ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB, 19 of them taken by the file `ballast`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"needs the right to mount a small file system: {done.stderr.strip()}")
    (folder / "ballast").write_bytes(b"0" * (19 << 20))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_space_lets_it_go_on(small_disk: Path, tmp_path: Path) -> None:
    path, in_flight = small_disk / "journal.sqlite", 16
    with FakeServer(chars=30_000) as server:  # about 10 kB each when packed
        with Journal(path) as journal:
            model = endpoint(server, journal, in_flight=in_flight)
            with pytest.raises(JournalError, match=r"disk is full.*free disk space"):
                model.complete_all(questions(model, 900))
        before = server.stats()
        assert 0 < before["received"] < 900, "the run stopped; it did not go on paying for what it cannot keep"
        (small_disk / "ballast").unlink()
        with Journal(path) as journal:
            kept = journal.count()
            model = endpoint(server, journal, in_flight=in_flight)
            replies = model.complete_all(questions(model, 900))
        after = server.stats(keys=True)
    assert {r.finish for r in replies} == {Finish.stop}
    assert len({r.text for r in replies}) == 900
    assert after["received"] - before["received"] == 900 - kept
    unkept = before["answered"] - kept
    assert unkept <= 4 * in_flight, "at most what was in flight, or waiting to be written together, had to be paid again"


def test_a_jump_of_the_clock_changes_nothing(server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = Fault("rate_limited", every=10, times=1, retry_after="0.1")
    prompts = [sentence(i) for i in range(30)]

    def collected(name: str, jump: float) -> dict[str, bytes]:
        """The artifacts of a run in whose middle the clock jumps: when the server has received 40 calls."""
        server.reset([Fault("hang", nth=(35,)), wait])
        real, began, jumped = time.time, time.monotonic(), [0]

        def jumping() -> float:
            jumped[0] += 1
            return real() + (jump if jumped[0] > 40 else 0.0)

        with monkeypatch.context() as patch:
            patch.setattr(time, "time", jumping)
            settings = write_settings(tmp_path / name, server.url, prompts, in_flight=4, timeout_s=1.0)
            assert cli.call(["rank", str(settings)]) == 0
        assert jumped[0] > 80 or jump == 0.0
        assert time.monotonic() - began < 60
        assert asked_again_after_an_answer(server.stats(keys=True)) == []
        return {p.name: p.read_bytes() for p in sorted((tmp_path / name / "run").glob("*/*.parquet"))}

    plain = collected("plain", 0.0)
    assert {"responses.parquet", "judgments.parquet"} <= set(plain)
    assert collected("forwards", 86_400.0) == plain
    assert collected("backwards", -86_400.0) == plain


def test_replies_stay_in_order(server: FakeServer, journal: Journal) -> None:
    """Answers that arrive in another order than they were asked for, with failures in between."""
    server.reset([Fault("bad_request", share=0.05), Fault("server_error", share=0.1, times=1)], jitter=0.1)
    model = endpoint(server, journal)
    asked = questions(model, 300)
    replies: list[Reply] = model.complete_all(asked)
    assert [r.call_id for r in replies] == [q.key for q in asked]
    for number, reply in enumerate(replies):
        text = content_key("m", [{"role": "user", "content": f"Question {number}."}])[:16]
        assert reply.text.startswith(text) or reply.finish is Finish.error

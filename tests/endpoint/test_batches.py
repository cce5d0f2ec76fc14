"""Batch APIs against a provider in this process: crashes at every step, lost answers, files that come back in every odd way.

The law behind most tests: whatever happens, every file starts one batch, and every request is answered once and paid once.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from starling.call import Failure, Reply, Request
from starling.config import AnthropicModel, Config, OpenAIModel
from starling.endpoint import ScriptedEndpoint, ask_together
from starling.endpoint.batches import BatchApiEndpoint, Clock, lifecycle, shards, wire
from starling.endpoint.batches import endpoint as module
from starling.errors import BudgetError, ConfigError, EndpointError, JournalError
from starling.journal import Budget, Intent, Journal
from starling.journal.batches import BatchTable
from starling.progress import Silent
from starling.records import Finish, Message, ModelRef, Sampling
from starling.serving import Endpoints

KEY = "sk-very-secret-0123456789"


# ── a provider ───────────────────────────────────────────────────────────────────────────────────────────────────────


def completion(text: str) -> dict[str, Any]:
    choice = {"message": {"content": f"re {text}"}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def asked(row: dict[str, Any]) -> str:
    question = row.get("body", row.get("params"))
    return str(question["prompt"] if "prompt" in question else question["messages"][-1]["content"])


def out(row: dict[str, Any], status: int = 200, body: Any = None) -> dict[str, Any]:
    """A line of OpenAI's output or error file."""
    response = {"status_code": status, "request_id": "r", "body": completion(asked(row)) if body is None else body}
    return {"id": "batch_req_1", "custom_id": row["custom_id"], "response": response, "error": None}


def expired(row: dict[str, Any]) -> dict[str, Any]:
    error = {"code": "batch_expired", "message": "This request could not be executed before the window expired."}
    return {"id": "batch_req_1", "custom_id": row["custom_id"], "response": None, "error": error}


class Provider:
    """OpenAI's files and batches. `finish` decides what a batch comes to: its status, output lines and error lines."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.worked: Counter[str] = Counter()
        """How often each text was answered: what is paid."""
        self.finish: Callable[[list[dict[str, Any]]], tuple[str, list[Any], list[Any]]] = self.complete
        self.polls = 1
        """A batch is over at this look at it."""
        self.lose: Counter[str] = Counter()
        """So many answers to "upload" or "create" get lost after the work was done."""
        self.hidden = 0
        """So many listings do not show the newest batch yet."""
        self.refuse: Callable[[str], tuple[int, dict[str, Any]] | None] = lambda what: None
        self.complain: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda rows: []
        self.seen: list[str] = []
        self.headers: list[str] = []
        self.most_running = 0

    def complete(self, rows: list[dict[str, Any]]) -> tuple[str, list[Any], list[Any]]:
        return "completed", [out(row) for row in rows], []

    def keep(self, content: bytes, name: str = "") -> str:
        ident = f"file-{len(self.files) + 1}"
        self.files[ident], self.names[ident] = content, name
        return ident

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(request.headers.get("Authorization", ""))
        parts = request.path.strip("/").split("/")[1:]
        what = {"POST/files": "upload", "POST/batches": "create"}.get(f"{request.method}/{parts[0]}", parts[0])
        self.seen.append(what if what in ("upload", "create") else "/".join(parts))
        refused = self.refuse(what)
        if refused is not None:
            return web.json_response(refused[1], status=refused[0])
        if what == "upload":
            form = await request.post()
            assert form["purpose"] == "batch"
            upload = form["file"]
            assert isinstance(upload, web.FileField)
            return self.answer(request, what, {"id": self.keep(upload.file.read(), upload.filename), "object": "file"})
        if what == "create":
            return self.answer(request, what, self.create(await request.json()))
        if parts[0] == "files":
            found = self.files.get(parts[1])
            return web.Response(body=found) if found is not None else web.json_response({"error": "no such file"}, status=404)
        if len(parts) == 1:
            return web.json_response(self.page(request.query))
        if parts[1] not in self.batches:
            return web.json_response({"error": {"message": f"no batch {parts[1]}"}}, status=404)
        return web.json_response(self.look(self.batches[parts[1]]))

    def answer(self, request: web.Request, what: str, data: dict[str, Any]) -> web.StreamResponse:
        if self.lose[what] > 0:
            self.lose[what] -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(data)

    def rows(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]

    def create(self, wanted: dict[str, Any]) -> dict[str, Any]:
        assert wanted["endpoint"] == "/v1/chat/completions"
        assert wanted["completion_window"] == "24h"
        batch = {
            "id": f"batch_{len(self.batches) + 1}", "object": "batch", "status": "validating", "looks": 0, "errors": None,
            "output_file_id": None, "error_file_id": None, "metadata": wanted["metadata"], "created_at": 1,
            "input_file_id": wanted["input_file_id"], "request_counts": {"total": 0, "completed": 0, "failed": 0},
        }  # fmt: skip
        complaints = self.complain(self.rows(batch))
        if complaints:
            batch |= {"status": "failed", "errors": {"object": "list", "data": complaints}}
        self.batches[batch["id"]] = batch
        running = sum(b["status"] in ("validating", "in_progress") for b in self.batches.values())
        self.most_running = max(self.most_running, running)
        return batch

    def look(self, batch: dict[str, Any]) -> dict[str, Any]:
        if batch["status"] not in ("validating", "in_progress"):
            return batch
        batch["looks"] += 1
        rows = self.rows(batch)
        batch |= {"status": "in_progress", "request_counts": {"total": len(rows), "completed": len(rows) // 2, "failed": 0}}
        if batch["looks"] < self.polls:
            return batch
        status, good, bad = self.finish(rows)
        texts = {row["custom_id"]: asked(row) for row in rows}
        self.worked.update(texts.get(line["custom_id"], "?") for line in good if isinstance(line, dict))
        batch |= {"status": status, "request_counts": {"total": len(rows), "completed": len(good), "failed": len(bad)}}
        for name, lines in (("output_file_id", good), ("error_file_id", bad)):
            if lines:
                text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
                batch[name] = self.keep(text.encode())
        return batch

    def page(self, query: Any) -> dict[str, Any]:
        rows = list(self.batches.values())[::-1]
        if self.hidden > 0:
            self.hidden -= 1
            rows = rows[1:]
        if query.get("after"):
            rows = rows[[row["id"] for row in rows].index(query["after"]) + 1 :]
        most = min(2, int(query["limit"]))  # pages as small as they can be
        return {"object": "list", "data": rows[:most], "has_more": len(rows) > most}


class Serving:
    """A provider in a thread."""

    def __init__(self, provider: Any) -> None:
        self.loop = asyncio.new_event_loop()
        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", "/v1/{rest:.*}", self._handle)
        self.provider = provider
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        self.loop.run_until_complete(self.runner.setup())
        self.loop.run_until_complete(web.TCPSite(self.runner, "127.0.0.1", 0).start())
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}/v1"
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        found: web.StreamResponse = await self.provider.handle(request)
        return found

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    monkeypatch.setenv("TEST_KEY", KEY)
    made = Serving(Provider())
    yield made
    made.stop()


@pytest.fixture
def provider(serving: Serving) -> Provider:
    made: Provider = serving.provider
    return made


class Time:
    """A clock that does not wait."""

    def __init__(self) -> None:
        self.at = 1_000_000.0
        self.slept: list[float] = []
        self.jumped = 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds
        await asyncio.sleep(0)

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.at + self.jumped, lambda: self.at, self.sleep)


def made(serving: Serving, journal: Journal, time: Time | None = None, **settings: Any) -> BatchApiEndpoint:
    batch = settings.pop("batch", {})
    given = {"type": "openai", "base_url": serving.url, "name": "m", "api_key_env": "TEST_KEY", "attempts": 3, "batch": batch}
    return BatchApiEndpoint("label", OpenAIModel.model_validate(given | settings), journal, (time or Time()).clock)


MODEL = ModelRef(provider="openai", name="m")


def ask(*texts: str) -> list[Request]:
    return [Request(MODEL, (Message(role="user", content=text),), 0, "test") for text in texts]


def rows_of(journal: Journal) -> list[tuple[Any, ...]]:
    return journal._db.all("SELECT state, batch_id, requests FROM batches ORDER BY id")


# ── out and in ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_files_out_and_in(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    requests = ask("a", "b", "a", "c")
    with Journal(tmp_path / "j") as journal:
        endpoint = made(serving, journal)
        replies = endpoint.complete_all(requests)
        assert replies == [Reply(f"re {t}", Finish.stop, r.key, "", 3, 2) for t, r in zip("abac", requests, strict=True)]
        assert [json.loads(line) for line in provider.files["file-1"].splitlines()] == [
            {
                "custom_id": r.key, "method": "POST", "url": "/v1/chat/completions",
                "body": {"model": "m", "messages": [{"role": "user", "content": t}], "temperature": 1.0, "max_tokens": 512},
            }
            for t, r in zip("abc", (requests[0], requests[1], requests[3]), strict=True)
        ]  # fmt: skip
        row = journal.batches.get(1)
        assert provider.batches["batch_1"]["metadata"] == {"starling": row.token, "shard": row.shard}
        assert provider.names["file-1"] == f"starling-{row.token}.jsonl"
        assert (row.state, row.batch_id, row.requests, row.bytes) == ("done", "batch_1", 3, len(provider.files["file-1"]))
        assert row.note == "completed: 3 answered"
        usage = journal.usage()
        assert (usage.answered, usage.paid, usage.unfinished, usage.prompt_tokens, usage.tokens) == (3, 3, 0, 9, 15)
        before = len(provider.seen)
        assert made(serving, journal).complete_all(requests) == replies
        assert len(provider.seen) == before, "everything is answered: the provider is not asked"
    assert not (tmp_path / "j.batches").exists()
    assert set(provider.headers) == {f"Bearer {KEY}"}


def test_shards_are_cut_by_requests_and_by_bytes(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    requests = ask(*"abcdefg")
    with Journal(tmp_path / "j") as journal:
        assert [r.text for r in made(serving, journal, batch={"requests": 3}).ask_all(requests)] == [f"re {t}" for t in "abcdefg"]
        assert [r for *_, r in rows_of(journal)] == [3, 3, 1]
        assert provider.most_running == 3, "all files are sent before any is waited for"
    line = journal.batches and len(provider.files["file-1"].split(b"\n")[0])
    with Journal(tmp_path / "k") as journal:
        made(serving, journal, batch={"bytes": 2 * line + 2}).complete_all(requests)  # each line and its end
        assert [(r, journal.batches.get(i + 1).bytes) for i, (*_, r) in enumerate(rows_of(journal))] == [
            (2, 2 * line + 2), (2, 2 * line + 2), (2, 2 * line + 2), (1, line + 1),
        ]  # fmt: skip
    with Journal(tmp_path / "m") as journal:
        made(serving, journal, batch={"bytes": 3 * line + 2}).complete_all(requests)
        assert [r for *_, r in rows_of(journal)] == [2, 2, 2, 1]
    with Journal(tmp_path / "l") as journal:  # a line that is larger than a file goes alone
        made(serving, journal, batch={"bytes": line - 1}).complete_all(requests[:2])
        assert [r for *_, r in rows_of(journal)] == [1, 1]


def test_order_and_odd_endings_of_the_file_change_nothing(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    requests = ask(*(f"q{i}" for i in range(40)))
    seen = []
    for number, order in enumerate((lambda x: x, lambda x: x[::-1], lambda x: x[1::2] + x[::2])):
        provider.finish = lambda rows, order=order: ("completed", order([*[out(r) for r in rows], ""]), [])  # type: ignore[misc]
        with Journal(tmp_path / str(number)) as journal:
            seen.append(made(serving, journal).complete_all(requests))
    assert seen[0] == seen[1] == seen[2]
    assert [r.text for r in seen[0]] == [f"re q{i}" for i in range(40)]


def test_requests_may_be_made_anew_and_copies_are_asked_once(
    serving: Serving, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "CHUNK", 7)  # so that copies lie in one chunk, in one file, and in different files

    class Lazy:
        def __iter__(self) -> Iterator[Request]:
            return (ask(f"q{i % 20}")[0] for i in range(50))

        def __len__(self) -> int:
            return 50

        def __contains__(self, request: object) -> bool:
            raise NotImplementedError

    with Journal(tmp_path / "j") as journal:
        replies = made(serving, journal, batch={"requests": 9}).complete_all(Lazy())
    assert [r.text for r in replies] == [f"re q{i % 20}" for i in range(50)]
    assert provider.worked == Counter(f"q{i}" for i in range(20))


def test_a_copy_that_is_met_before_the_first_is_on_disk_is_not_sent(
    serving: Serving, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answered requests among the first make the journal lag behind what was looked up."""
    monkeypatch.setattr(shards, "CHUNK", 4)
    with Journal(tmp_path / "j") as journal:
        made(serving, journal).complete_all(ask("a", "b", "c"))
        asked_for = ask("a", "b", "c", "x", "d", "e", "f", "x")  # the files are (x, d, e) and (f)
        replies = made(serving, journal, batch={"requests": 3}).complete_all(asked_for)
    assert [r.text for r in replies] == [f"re {text}" for text in "abcxdefx"]
    assert provider.worked == Counter("abcxdef")


def test_a_file_that_is_being_written_is_left_to_its_writer(
    serving: Serving, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One model stands twice in the pool, with different sampling: the second comes while the first writes its file."""
    hot = Sampling(temperature=0.3)
    asks = [Request(ModelRef(provider="openai", name="m", sampling=hot), r.messages, 0, "test") for r in ask("a", "b")]
    writing, goes_on = threading.Event(), threading.Event()
    line, drafts, look = wire.OpenAIBatches.line, BatchTable.drafts, module._Work._open_batches

    def slow(self: wire.OpenAIBatches, key: str, payload: bytes) -> bytes:
        if key == asks[0].key:
            writing.set()
            assert goes_on.wait(10)
        return line(self, key, payload)

    def later(self: module._Work) -> set[int]:
        assert next(iter(self._requests)).key == asks[0].key or writing.wait(10)
        return look(self)

    def between(self: BatchTable, model: str, server: str) -> list[Any]:
        found = drafts(self, model, server)
        if writing.is_set():
            goes_on.set()
        return found

    monkeypatch.setattr(wire.OpenAIBatches, "line", slow)
    monkeypatch.setattr(BatchTable, "drafts", between)
    monkeypatch.setattr(module._Work, "_open_batches", later)
    with Journal(tmp_path / "j") as journal:
        first = made(serving, journal, sampling={"temperature": 0.3})
        found = ask_together([(first, asks), (made(serving, journal), ask("c"))])
        assert [[r.text for r in replies] for replies in found] == [["re a", "re b"], ["re c"]]


def test_progress_follows_the_counts_and_ends_at_the_total(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    class Noted(Silent):
        def __init__(self) -> None:
            self.steps: list[tuple[int, str]] = []

        def advance(self, n: int = 1, note: str = "") -> None:
            self.steps.append((n, note))

    provider.polls = 3
    progress = Noted()
    with Journal(tmp_path / "j") as journal:
        made(serving, journal).ask_all([*ask("a", "b", "c", "d"), *ask("a")], progress)
    assert sum(n for n, _ in progress.steps) == 5
    assert min(n for n, _ in progress.steps) == 0
    assert (2, "2 answered") not in progress.steps
    first = next(note for n, note in progress.steps if n == 2)
    assert first.startswith("1 batch under way, sent from ")
    assert first.endswith("; when stopped, the same command collects them")


def test_polls_back_off(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    provider.polls = 8
    time = Time()
    with Journal(tmp_path / "j") as journal:
        made(serving, journal, time, batch={"poll_s": 20}).complete_all(ask("a"))
    assert time.slept == [5.0, 7.5, 11.25, 16.875, 20.0, 20.0, 20.0]


# ── crashes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Died(Exception):
    """The process ends here."""


STEPS: list[tuple[type, tuple[str, ...]]] = [
    (Journal, ("write",)), (BatchTable, ("open", "update", "withdraw")), (shards.Shards, ("remove",)), (wire.Http, ("fetch",)),
    (wire.OpenAIBatches, ("upload", "create", "get", "page")), (wire.AnthropicBatches, ("create", "get", "page")),
]  # fmt: skip


class Crashes:
    """Dies at the n-th of all moments before and after a step that changes anything here or there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        for kind, names in STEPS:
            for name in names:
                real = getattr(kind, name)
                monkeypatch.setattr(kind, name, self._wrap(real, asyncio.iscoroutinefunction(real)))

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Died

    def _wrap(self, real: Callable[..., Any], is_async: bool) -> Callable[..., Any]:
        def plain(*args: Any, **more: Any) -> Any:
            self.tick()
            value = real(*args, **more)
            self.tick()
            return value

        async def waiting(*args: Any, **more: Any) -> Any:
            self.tick()
            value = await real(*args, **more)
            self.tick()
            return value

        return waiting if is_async else plain


def crash_everywhere(
    run: Callable[[Journal], list[Reply]], crashes: Crashes, folder: Path, begin: Callable[[], None], check: Callable[[], None]
) -> list[list[Reply]]:
    """`run` with a crash at the first moment, the second, … until it gets through; after each crash once more, undisturbed."""
    seen = []
    for moment in range(1, 500):
        begin()
        crashes.left = moment
        died = False
        with Journal(folder / f"{moment}") as journal:
            try:
                seen.append(run(journal))
            except Died:
                died = True
        crashes.left = -1
        with Journal(folder / f"{moment}") as journal:
            seen.append(run(journal))
            assert journal.usage().unfinished == 0
            states = {state for state, *_ in rows_of(journal)}
            assert states <= {"done", "withdrawn"}
        assert not (folder / f"{moment}.batches").exists()
        check()
        if not died:
            assert moment > 60, "moments before and after every step were tried"
            return seen
    raise AssertionError("never got through")


def test_a_crash_at_any_moment_neither_pays_twice_nor_loses_anything(
    serving: Serving, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "CHUNK", 2)
    crashes = Crashes(monkeypatch)
    requests = ask(*"abcd")

    def begin() -> None:
        serving.provider = Provider()

    def check() -> None:
        files = Counter(json.dumps(b["metadata"]) for b in serving.provider.batches.values())
        assert set(files.values()) == {1}, "each file started one batch"
        assert serving.provider.worked == Counter("abcd"), "and each request was worked on once"

    seen = crash_everywhere(
        lambda journal: made(serving, journal, batch={"requests": 3}).complete_all(requests), crashes, tmp_path, begin, check
    )
    assert [r.text for r in seen[0]] == [f"re {t}" for t in "abcd"]
    assert all(replies == seen[0] for replies in seen)


CHILD = """
import os, signal, sys
from pathlib import Path
from starling.endpoint.batches import BatchApiEndpoint, wire
from starling.config import OpenAIModel
from starling.journal import Journal
from starling.records import Message, ModelRef
from starling.call import Request

async def die(self, *rest):
    if {after}:
        await real(self, *rest)
    os.kill(os.getpid(), signal.SIGKILL)

real, wire.OpenAIBatches.create = wire.OpenAIBatches.create, die
model = ModelRef(provider="openai", name="m")
settings = OpenAIModel.model_validate(dict(type="openai", base_url=sys.argv[1], name="m", api_key_env="TEST_KEY", batch={{}}))
with Journal(Path(sys.argv[2])) as journal:
    asked = [Request(model, (Message(role="user", content=t),), 0, "test") for t in "abc"]
    BatchApiEndpoint("label", settings, journal).complete_all(asked)
"""


@pytest.mark.parametrize("after", [False, True], ids=["before the batch is created", "after"])
def test_killed_between_upload_and_id(serving: Serving, provider: Provider, tmp_path: Path, after: bool) -> None:
    command = [sys.executable, "-c", CHILD.format(after=after), serving.url, str(tmp_path / "j")]
    assert subprocess.run(command, check=False, env=os.environ).returncode == -signal.SIGKILL
    assert (len(provider.files), len(provider.batches)) == (1, int(after))
    provider.hidden = 1  # and the batch is so young that the provider does not list it yet
    time = Time()
    with Journal(tmp_path / "j") as journal:
        assert rows_of(journal) == [("creating", "", 3)]
        time.at = journal.batches.get(1).sent + 1.5
        assert [r.text for r in made(serving, journal, time).ask_all(ask(*"abc"))] == ["re a", "re b", "re c"]
    assert time.slept[0] == pytest.approx(58.5)
    assert (len(provider.batches), provider.seen.count("upload")) == (1, 1)
    assert provider.worked == Counter("abc")


def test_a_lost_answer_to_create_is_looked_up(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    for _ in range(5):  # other people's batches, so that ours is on the second page
        provider.create({"input_file_id": provider.keep(b""), "endpoint": "/v1/chat/completions", "completion_window": "24h",
                         "metadata": None})  # fmt: skip
    provider.lose["create"] = provider.lose["upload"] = 1
    created = len(provider.batches)
    real = provider.create

    def create_and_more(wanted: dict[str, Any]) -> dict[str, Any]:
        found = real(wanted)
        for _ in range(3):
            real(wanted | {"metadata": {"starling": "other"}})
        return found

    provider.create = create_and_more  # type: ignore[method-assign]
    with Journal(tmp_path / "j") as journal:
        assert [r.text for r in made(serving, journal).ask_all(ask("a"))] == ["re a"]
        assert rows_of(journal) == [("done", "batch_6", 1)]
    assert len(provider.batches) == created + 4
    assert provider.seen.count("create") == 1


def test_a_clock_that_jumps_back_does_not_make_it_wait_for_hours(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    provider.lose["create"] = 1
    provider.hidden = 1
    time = Time()
    real = time.sleep

    async def jump(seconds: float) -> None:
        time.jumped -= 86_400.0
        await real(seconds)

    time.sleep = jump  # type: ignore[method-assign]
    with Journal(tmp_path / "j") as journal:
        assert [r.text for r in made(serving, journal, time).ask_all(ask("a"))] == ["re a"]
    assert max(time.slept) == lifecycle.SETTLE_S
    assert len(provider.batches) == 1


def test_the_file_is_checked_before_it_is_sent_after_a_crash(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    """Intended, and then the power went: the file may be short."""
    with Journal(tmp_path / "j") as journal:
        endpoint = made(serving, journal)
        provider.refuse = lambda what: (503, {"error": {"message": "down"}})
        with pytest.raises(EndpointError, match=r"gives no answer: HTTP 503: down.*nothing is sent twice"):
            endpoint.complete_all(ask("a", "b"))
        assert rows_of(journal) == [("intended", "", 2)]
        provider.refuse = lambda what: None
        file = next((tmp_path / "j.batches").iterdir())
        file.write_bytes(file.read_bytes()[:-5] + b"12345")
        assert [r.text for r in endpoint.ask_all(ask("a", "b"))] == ["re a", "re b"]
        assert [state for state, *_ in rows_of(journal)] == ["withdrawn", "done"]
        assert journal.usage().attempts == 2
    assert not (tmp_path / "j.batches").exists()


def test_interrupted_while_it_waits(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    provider.polls = 10**9
    time = Time()

    async def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    time.sleep = interrupt  # type: ignore[method-assign]
    with Journal(tmp_path / "j") as journal, pytest.raises(KeyboardInterrupt):
        made(serving, journal, time).complete_all(ask("a"))
    provider.polls = 1
    with Journal(tmp_path / "j") as journal:
        assert rows_of(journal) == [("running", "batch_1", 1)]
        assert [r.text for r in made(serving, journal).ask_all(ask("a", "b"))] == ["re a", "re b"]
        assert provider.worked == Counter("ab")


# ── what comes back ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_failed_lines_are_asked_again_and_the_hopeless_are_not(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    rounds: list[list[str]] = []

    def finish(rows: list[dict[str, Any]]) -> tuple[str, list[Any], list[Any]]:
        rounds.append(sorted(map(asked, rows)))
        good = [r for r in rows if asked(r) == "good" or (asked(r) == "busy" and len(rounds) == 2)]
        bad = [out(r, 400, {"error": {"message": "too long"}}) for r in rows if asked(r) == "wrong"]
        bad += [out(r, 503, {"error": {"message": "busy"}}) for r in rows if asked(r) in ("never", "busy") and r not in good]
        return "completed", [out(r) for r in good], bad

    provider.finish = finish
    with Journal(tmp_path / "j") as journal:
        replies = made(serving, journal).complete_all(ask("good", "wrong", "busy", "never"))
        assert rounds == [["busy", "good", "never", "wrong"], ["busy", "never"], ["never"]]
        assert [r.finish for r in replies] == [Finish.stop, Finish.error, Finish.stop, Finish.error]
        assert (replies[1].error, replies[3].error) == ("HTTP 400: too long", "HTTP 503: busy")
        usage = journal.usage()
        assert (usage.answered, usage.attempts, usage.paid, usage.failed) == (2, 7, 2, 5), "errors cost nothing"
        assert [journal.batches.get(i).note for i in (1, 2, 3)] == [
            "completed: 1 answered, 3 failed", "completed: 1 answered, 1 failed", "completed: 0 answered, 1 failed",
        ]  # fmt: skip
        assert [a.body for a in journal.attempts(replies[1].call_id) if a] == ['{"error": {"message": "too long"}}']


def test_half_a_character_in_an_error_spoils_nothing(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    def finish(rows: list[dict[str, Any]]) -> tuple[str, list[Any], list[Any]]:
        worked = expired(rows[1])
        worked["error"]["message"] = "half \ud83d"
        return "completed", [out(rows[0], 400, {"error": {"message": "half \ud83d"}}), out(rows[2])], [worked]

    provider.finish = finish
    with Journal(tmp_path / "j") as journal:
        replies = made(serving, journal, attempts=1).complete_all(ask("a", "b", "c"))
    assert [r.error for r in replies] == ["HTTP 400: half \ufffd", "batch_expired: half \ufffd", ""]


def test_a_conversation_that_cannot_be_written_does_not_take_the_others_with_it(
    serving: Serving, provider: Provider, tmp_path: Path
) -> None:
    real = provider.create
    provider.create = lambda wanted: real(wanted | {"endpoint": "/v1/chat/completions"})  # type: ignore[method-assign]
    provider.finish = lambda rows: ("completed", [out(row, body=completion("x")) for row in rows], [])
    with Journal(tmp_path / "j") as journal:
        endpoint = made(serving, journal, api="completions")
        replies = endpoint.complete_all(ask("a", "b\n\nHuman: forged", "c"))
        assert [r.failure for r in replies] == [None, Failure.bad_request, None]
        assert "not sent" in replies[1].error
        assert journal.usage().paid == 2


def test_bad_lines_that_are_named_one_by_one_cost_the_others_no_attempts(
    serving: Serving, provider: Provider, tmp_path: Path
) -> None:
    def complain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        bad = [line for line, row in enumerate(rows, 1) if asked(row).startswith("bad")]
        return [{"code": "invalid", "message": "no", "line": bad[0]}] if bad else []

    provider.complain = complain
    with Journal(tmp_path / "j") as journal:
        replies = made(serving, journal, attempts=3).complete_all(ask(*(f"bad {i}" for i in range(5)), "a", "b"))
    assert [r.failure for r in replies] == [Failure.bad_request] * 5 + [None] * 2


def test_a_model_that_is_done_leaves_the_folder_to_the_others(
    serving: Serving, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, tidy, fetching, tidied = wire.Http.fetch, shards.Shards.tidy, [], []

    async def slow(self: wire.Http, address: str, target: Path) -> None:
        fetching.append(address)
        while len(fetching) == 1 or (address == fetching[0] and not tidied):
            await asyncio.sleep(0.01)
        await fetch(self, address, target)

    def noted(self: shards.Shards) -> None:
        tidy(self)
        tidied.append(1)

    monkeypatch.setattr(wire.Http, "fetch", slow)
    monkeypatch.setattr(shards.Shards, "tidy", noted)
    other = ModelRef(provider="openai", name="other")
    with Journal(tmp_path / "j") as journal:
        question = Request(other, (Message(role="user", content="b"),))
        found = ask_together([(made(serving, journal), ask("a")), (made(serving, journal, name="other"), [question])])
        assert [[r.text for r in replies] for replies in found] == [["re a"], ["re b"]]
    assert not (tmp_path / "j.batches").exists()


def test_an_expired_batch_keeps_what_is_finished(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    first = True

    def finish(rows: list[dict[str, Any]]) -> tuple[str, list[Any], list[Any]]:
        nonlocal first
        good, first = (rows[:2] if first else rows), False
        return ("expired" if len(good) < len(rows) else "completed"), [out(r) for r in good], [expired(r) for r in rows[2:]]

    provider.finish = finish
    with Journal(tmp_path / "j") as journal:
        assert [r.text for r in made(serving, journal).ask_all(ask(*"abcd"))] == ["re a", "re b", "re c", "re d"]
        usage = journal.usage()
        assert (usage.attempts, usage.paid) == (6, 4)
    assert provider.worked == Counter("abcd")


def test_what_an_expired_batch_does_not_mention_was_not_paid(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    provider.finish = lambda rows: ("expired", [out(rows[0])], [])
    with Journal(tmp_path / "j") as journal:
        replies = made(serving, journal, attempts=1).complete_all(ask("a", "b"))
        assert (replies[1].error, replies[1].failure) == (
            "the batch ended as expired and has no line for this request", Failure.timeout,
        )  # fmt: skip
        assert journal.usage().paid == 1


def test_what_failed_is_asked_again_by_the_next_command(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    provider.finish = lambda rows: ("completed", [], [out(r, 400, {"error": {"message": "prompt is too long"}}) for r in rows])
    with Journal(tmp_path / "j") as journal:
        assert made(serving, journal).complete_all(ask("a"))[0].failure is Failure.context_length
        provider.finish = provider.complete
        assert made(serving, journal).complete_all(ask("a"))[0].text == "re a"


def test_every_line_failed_and_there_is_no_output_file(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    provider.finish = lambda rows: ("completed", [], [out(r, 500, {"error": {"message": "oops"}}) for r in rows])
    with Journal(tmp_path / "j") as journal:
        replies = made(serving, journal, attempts=2).complete_all(ask("a", "b"))
        assert [r.error for r in replies] == ["HTTP 500: oops"] * 2
        assert journal.usage().paid == 0
    provider.finish = lambda rows: ("completed", [], [])  # not even an error file
    with Journal(tmp_path / "k") as journal:
        replies = made(serving, journal, attempts=2).complete_all(ask("a"))
        assert replies[0].error == "the batch is complete and has no line for this request"
        assert journal.usage().paid == 2, "nobody knows: they count as paid"


def test_repeated_missing_unknown_and_broken_lines(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    requests = ask("a", "b", "c", "d")
    calls = 0

    def finish(rows: list[dict[str, Any]]) -> tuple[str, list[Any], list[Any]]:
        nonlocal calls
        calls += 1
        if calls > 1:
            return provider.complete(rows)
        a, b, c, _ = rows
        again = out(a, 200, completion("another a"))
        stranger = out(a | {"custom_id": "0" * 64})
        html = out(c, 200, "<html>")
        return "completed", [out(a), again, "{broken", '["list"]', '{"custom_id": 5}', stranger, out(b), html], []

    provider.finish = finish
    with Journal(tmp_path / "j") as journal:
        replies = made(serving, journal).complete_all(requests)
        assert [r.text for r in replies] == ["re a", "re b", "re c", "re d"]
        assert journal.batches.get(1).note == (
            "completed: 2 answered, 1 failed, 1 without a line, 4 unknown lines ignored, "
            f"1 answered twice, the first counts ({requests[0].key[:16]})"
        )
        assert [a.error for a in journal.attempts(requests[2].key) if a] == ["the server's reply is in no known format", ""]
        assert journal.usage().paid == 6, "a body that is no reply was paid for, a missing line may have been"


def test_a_reply_is_in_the_journal_before_it_is_parsed(
    serving: Serving, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starling.endpoint.batches import results

    real, stored = results.parse_reply, []
    with Journal(tmp_path / "j") as journal, Journal(tmp_path / "j") as other:

        def parse(body: str, key: str) -> Reply | None:
            found = other.get(key)
            stored.append(found is not None and found.body == body)
            return real(body, key)

        monkeypatch.setattr(results, "parse_reply", parse)
        made(serving, journal).complete_all(ask(*"abc"))
    assert stored == [True] * 3


def test_the_other_name_of_the_token_limit(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    def finish(rows: list[dict[str, Any]]) -> tuple[str, list[Any], list[Any]]:
        said = {"error": {"message": "Unsupported parameter: use 'max_completion_tokens' instead."}}
        bad = [r for r in rows if "max_tokens" in r["body"]]
        return "completed", [out(r) for r in rows if r not in bad], [out(r, 400, said) for r in bad]

    provider.finish = finish
    with Journal(tmp_path / "j") as journal:
        assert [r.text for r in made(serving, journal).ask_all(ask("a"))] == ["re a"]
    assert len(provider.batches) == 2


def test_results_that_come_late_are_waited_for(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    """Seen at OpenAI: completed, lines counted, and the output file follows a little later."""
    real, looks = provider.look, 0

    def look(batch: dict[str, Any]) -> dict[str, Any]:
        nonlocal looks
        looks += 1
        found = real(batch)
        return found | {"output_file_id": None} if looks < 4 else found

    provider.look = look  # type: ignore[method-assign]
    with Journal(tmp_path / "j") as journal:
        assert [r.text for r in made(serving, journal).ask_all(ask("a"))] == ["re a"]
    looks = -(10**9)
    with Journal(tmp_path / "k") as journal:
        with pytest.raises(EndpointError, match=r"no usable answer.*for an hour \(batch_2 is completed and shows no results\)"):
            made(serving, journal).complete_all(ask("a"))
        looks = 4
        assert [r.text for r in made(serving, journal).ask_all(ask("a"))] == ["re a"]
    assert len(provider.batches) == 2


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────────────────────────

QUEUE = {"code": "token_limit_exceeded", "line": None, "message": "Enqueued token limit reached for m. Limit: 90,000 tokens."}


def test_a_full_queue_is_waited_for(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    """The second and third batch fail at once, as OpenAI lets them, while the first is under way."""
    provider.polls = 4

    def complain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [QUEUE] if any(b["status"] in ("validating", "in_progress") for b in provider.batches.values()) else []

    provider.complain = complain
    with Journal(tmp_path / "j") as journal:
        replies = made(serving, journal, batch={"requests": 2}).complete_all(ask(*"abcdef"))
        assert [r.text for r in replies] == [f"re {t}" for t in "abcdef"]
        assert [state for state, *_ in rows_of(journal)] == ["done"] * 3
        assert journal.usage().attempts == 6
    assert provider.worked == Counter("abcdef")
    assert provider.seen.count("upload") == 3, "the file is there already"
    assert provider.most_running == 1


def test_a_queue_smaller_than_a_file_makes_files_smaller(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    texts = [f"q{i}" for i in range(420)]
    provider.complain = lambda rows: [QUEUE] if len(rows) > 130 else []
    with Journal(tmp_path / "j") as journal:
        replies = made(serving, journal).complete_all(ask(*texts))
        assert [r.text for r in replies] == [f"re {t}" for t in texts]
        assert [(s, n) for s, _, n in rows_of(journal)] == [
            ("withdrawn", 420), ("withdrawn", 210), ("withdrawn", 210), *[("done", 105)] * 4,
        ]  # fmt: skip
        assert (journal.usage().attempts, journal.usage().paid) == (420, 420)
    assert provider.worked == Counter(texts)


def test_refused_at_creation_because_the_queue_is_full(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    busy = iter([True, True, False])
    no = (429, {"error": {"message": "Too many batches", "code": "rate_limit_exceeded"}})
    provider.refuse = lambda what: no if what == "create" and next(busy, False) else None
    with Journal(tmp_path / "j") as journal:
        assert [r.text for r in made(serving, journal).ask_all(ask("a"))] == ["re a"]
        assert [state for state, *_ in rows_of(journal)] == ["done"]


def test_a_queue_that_is_full_for_hours(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    """Others fill it. That is an answer, and no reason to give the server up."""
    busy = iter([True] * 200)
    no = (429, {"error": {"message": "Too many batches"}})
    provider.refuse = lambda what: no if what == "create" and next(busy, False) else None
    time = Time()
    with Journal(tmp_path / "j") as journal:
        assert [r.text for r in made(serving, journal, time).ask_all(ask("a"))] == ["re a"]
    assert sum(time.slept) > 3 * module.PATIENCE_S
    assert len(provider.batches) == 1


@pytest.mark.parametrize("requests", [2, 3], ids=["two files", "one file"])
def test_a_full_queue_is_not_hammered(serving: Serving, provider: Provider, tmp_path: Path, requests: int) -> None:
    """Taken at first, refused at the next look, thirty times: at most one creation per longest pause."""
    provider.complain = lambda rows: [QUEUE] if len(provider.batches) < 30 else []
    time = Time()
    with Journal(tmp_path / "j") as journal:
        replies = made(serving, journal, time, batch={"requests": requests}).complete_all(ask("a", "b", "c"))
    assert [r.text for r in replies] == ["re a", "re b", "re c"]
    assert sum(time.slept) > 25 * 60.0


def test_a_refused_batch_is_not_taken_for_the_one_that_runs(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    """The queue was full once; then the answer to the second creation gets lost. The list shows both, newest first."""

    def complain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        provider.lose["create"] = len(provider.batches)
        return [] if provider.batches else [QUEUE]

    provider.complain = complain
    real = provider.page
    provider.page = lambda query: {"data": real({"limit": "2"})["data"][::-1], "has_more": False}  # type: ignore[method-assign]
    with Journal(tmp_path / "j") as journal:
        assert [r.text for r in made(serving, journal).ask_all(ask("a"))] == ["re a"]
        assert rows_of(journal) == [("done", "batch_2", 1)]
    assert len(provider.batches) == 2
    assert provider.worked == Counter("a")


def test_one_bad_line_does_not_take_the_file_with_it(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    def complain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        texts = list(map(asked, rows))
        found = {"code": "invalid_json_line", "message": "This line is wrong.", "param": None}
        return [found | {"line": texts.index("bad") + 1}] if "bad" in texts else []

    provider.complain = complain
    with Journal(tmp_path / "j") as journal:
        replies = made(serving, journal).complete_all(ask("a", "bad", "b"))
        assert [r.text for r in replies] == ["re a", "", "re b"]
        assert replies[1].error == "HTTP 400: refused in a batch, invalid_json_line: This line is wrong."
        assert [state for state, *_ in rows_of(journal)] == ["refused", "done"]
        assert journal.usage().paid == 2


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, "HTTP 401: Incorrect API key provided: [key]"),
        (429, {"error": {"message": "insufficient_quota: you exceeded your quota"}}, "add credit to the account"),
        (400, {"error": {"message": "billing_hard_limit_reached"}}, "add credit to the account"),
    ],
)
def test_refused_for_good(
    serving: Serving, provider: Provider, tmp_path: Path, status: int, body: dict[str, Any], says: str
) -> None:
    for step in ("upload", "create"):
        provider.refuse = lambda what, step=step: (status, body) if what == step else None  # type: ignore[misc]
        with Journal(tmp_path / step, Budget(calls=1)) as journal:
            with pytest.raises(EndpointError) as caught:
                made(serving, journal).complete_all(ask("a"))
            assert says in str(caught.value)
            assert KEY not in str(caught.value)
            assert journal.usage().attempts == 0
            provider.refuse = lambda what: None
            assert made(serving, journal).complete_all(ask("a"))[0].text == "re a", "the budget of one call is not used up"


def test_a_model_without_batches(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    complaint = {"code": "model_not_found", "message": "The provided model 'm' is not supported.", "line": None}
    provider.complain = lambda rows: [complaint]
    with Journal(tmp_path / "j") as journal:
        with pytest.raises(EndpointError, match=r"refuses a batch: model_not_found: The provided model 'm'"):
            made(serving, journal).complete_all(ask("a"))
        assert [state for state, *_ in rows_of(journal)] == ["refused"]


def test_lines_that_all_fail_for_the_account_stop_the_run(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    provider.finish = lambda rows: ("completed", [], [out(r, 404, {"error": {"message": "no such model"}}) for r in rows])
    with Journal(tmp_path / "j") as journal, pytest.raises(EndpointError, match="all 2 requests of a batch failed with HTTP 404"):
        made(serving, journal).complete_all(ask("a", "b"))


def test_another_account_does_not_pay_again(
    serving: Serving, provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is not there under this key: never silently asked again."""
    provider.polls = 10**9
    time = Time()

    async def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    time.sleep = interrupt  # type: ignore[method-assign]
    with Journal(tmp_path / "j") as journal:
        with pytest.raises(KeyboardInterrupt):
            made(serving, journal, time).complete_all(ask("a"))
        elsewhere, serving.provider = serving.provider, Provider()
        with pytest.raises(EndpointError) as caught:
            made(serving, journal).complete_all(ask("a"))
        assert "does not give out the batch batch_1: HTTP 404: no batch batch_1" in str(caught.value)
        sql = str(caught.value).split('"')[1]
        assert serving.provider.batches == {}
        with pytest.raises(EndpointError, match="wait in a batch at http"):
            made(serving, journal, base_url="http://127.0.0.1:9/v1").complete_all(ask("a"))
        journal.batches._db._writer.execute(sql)  # what the message says to do when it is gone for good
        assert made(serving, journal).complete_all(ask("a"))[0].text == "re a"
        assert [state for state, *_ in rows_of(journal)] == ["closed", "done"]
        assert journal.usage().paid == 2
    assert elsewhere.batches


# ── budget ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_budget_smaller_than_a_file(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    with Journal(tmp_path / "j", Budget(calls=3)) as journal:
        with pytest.raises(BudgetError, match="budget_calls = 3"):
            made(serving, journal).complete_all(ask(*"abcde"))
        assert rows_of(journal) == [("done", "batch_1", 3)]
        assert journal.count() == 3
    with Journal(tmp_path / "j", Budget(calls=5)) as journal:
        assert len(made(serving, journal).complete_all(ask(*"abcde"))) == 5
    assert provider.worked == Counter("abcde")


def test_what_was_set_aside_and_not_used_is_used(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    """Each request sets 1 + 512 tokens aside and uses 5: after the first file has come back there is room for the rest."""
    with Journal(tmp_path / "j", Budget(tokens=2 * 513 + 20)) as journal:
        replies = made(serving, journal).complete_all(ask(*"abcd"))
        assert [r.text for r in replies] == ["re a", "re b", "re c", "re d"]
        assert [n for *_, n in rows_of(journal)] == [2, 2]
        assert journal.usage().tokens == 20


def test_a_restart_counts_what_is_under_way(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    provider.polls = 10**9
    time = Time()

    async def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    time.sleep = interrupt  # type: ignore[method-assign]
    with Journal(tmp_path / "j", Budget(calls=2)) as journal, pytest.raises(KeyboardInterrupt):
        made(serving, journal, time).complete_all(ask("a", "b"))
    provider.polls = 1
    with Journal(tmp_path / "j", Budget(calls=2)) as journal:
        with pytest.raises(BudgetError):
            made(serving, journal).complete_all(ask("a", "b", "c"))
        assert journal.count() == 2, "and they are collected first"


# ── the rest of the program ──────────────────────────────────────────────────────────────────────────────────────────


def test_no_key_in_the_journal(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    import zlib

    provider.finish = lambda rows: (
        "completed", [out(rows[0], 200, completion(f"your key is {KEY}"))], [out(rows[1], 401, {"error": {"message": KEY}})]
    )  # fmt: skip
    with Journal(tmp_path / "j") as journal:
        replies = made(serving, journal, attempts=1).complete_all(ask("a", "b"))
        assert replies[0].text == "re your key is [key]"
        rows = journal._db.all("SELECT text FROM replies UNION ALL SELECT text FROM questions")
    raw = b"".join(p.read_bytes() for p in tmp_path.glob("j*")) + b"".join(zlib.decompress(text) for (text,) in rows)
    assert KEY.encode() not in raw


def settings(serving: Serving, folder: Path, **model: Any) -> Config:
    models = {name: {"type": "openai", "base_url": serving.url, "name": name} | model for name in ("m", "n")}
    return Config.model_validate({"run": {"dir": folder}, "models": models})


def test_the_settings_choose_it_and_protect_what_is_under_way(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    with Endpoints(settings(serving, tmp_path, batch={})) as endpoints:
        assert isinstance(endpoints.get("m"), BatchApiEndpoint)
    with Journal(tmp_path / "journal.sqlite") as journal:
        batch = journal.batches.open("m", serving.url)
        journal.batches.update(batch, state="running", batch_id="batch_9")
    with Endpoints(settings(serving, tmp_path)) as endpoints:
        assert not isinstance(endpoints.get("n"), BatchApiEndpoint)
        with pytest.raises(ConfigError, match=r"1 batches of the model 'm' are under way: asking one by one would pay"):
            endpoints.get("m")


def test_both_kinds_of_endpoint_share_answers(serving: Serving, tmp_path: Path) -> None:
    from starling.endpoint import HttpEndpoint

    with Journal(tmp_path / "j") as journal:
        batch = made(serving, journal)
        online = HttpEndpoint("label", batch.settings, journal)
        assert batch.model == online.model
        batch.complete_all(ask("a"))
        assert online.complete_all(ask("a"))[0].text == "re a"


def test_one_model_per_file(serving: Serving, tmp_path: Path) -> None:
    other = Request(ModelRef(provider="openai", name="other"), (Message(role="user", content="x"),))
    with Journal(tmp_path / "j") as journal, pytest.raises(EndpointError, match="one endpoint, one model"):
        made(serving, journal).complete_all([*ask("a"), other])


def test_attempts_of_a_batch_are_answered_by_any_process(tmp_path: Path) -> None:
    """The journal's side: `Answer.batch` finds the attempt of another session, and only an unfinished one."""
    from starling.journal import Answer, StoredReply, Tokens

    answer = Answer(key="k", attempt=0, reply=StoredReply(status=200, body="x"), batch=1)
    with Journal(tmp_path / "j") as journal:
        assert journal.batches.open("m", "s").id == 1
        journal.write([Intent(key="k", attempt=4, request={"model": {"name": "m"}}, batch=1)])
    with Journal(tmp_path / "j") as journal:
        assert (journal.batches.waiting(["k", "l"]), journal.batches.members(1, ["k", "l"])) == ({"k"}, {"k": True})
        journal.write([answer])
        journal.write([Tokens(key="k", attempt=0, prompt=1, completion=2, batch=1)])
        assert (journal.usage().answered, journal.usage().prompt_tokens) == (1, 1)
        assert journal.batches.members(1, ["k"]) == {"k": False}
        with pytest.raises(JournalError, match="never announced"):
            journal.write([answer])


# ── Anthropic ────────────────────────────────────────────────────────────────────────────────────────────────────────


def message(text: str) -> dict[str, Any]:
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "text", "text": f"re {text}"}],
        "stop_reason": "end_turn", "usage": {"input_tokens": 3, "output_tokens": 2},
    }  # fmt: skip


def failing(kind: str) -> dict[str, Any]:
    """What a line that failed has for a result."""
    return {"type": "errored", "error": {"type": "error", "error": {"type": kind, "message": f"it is a {kind}"}}}


def succeeded(row: dict[str, Any]) -> dict[str, Any]:
    return {"type": "succeeded", "message": message(asked(row))}


class AnthropicProvider:
    """Anthropic's message batches, which carry nothing of ours but the custom_ids in their results."""

    def __init__(self) -> None:
        self.batches: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.worked: Counter[str] = Counter()
        self.results: Callable[[dict[str, Any]], dict[str, Any]] = succeeded
        self.lose = 0
        self.foreign: list[int] = []
        """Sizes of other people's batches that appear just after each of ours."""
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.elsewhere = False

    def add(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        ident = f"msgbatch_{len(self.batches) + 1}"
        counts = {"processing": len(rows), "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        self.rows[ident] = rows
        self.batches[ident] = {
            "id": ident, "type": "message_batch", "processing_status": "in_progress", "request_counts": counts,
            "results_url": None,
        }  # fmt: skip
        return self.batches[ident]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        parts = request.path.strip("/").split("/")[3:]
        if request.method == "POST":
            self.bodies.append(await request.read())
            made_one = self.add(json.loads(self.bodies[-1])["requests"])
            for size in self.foreign:
                self.add([{"custom_id": f"other-{i}", "params": {"messages": [{"content": "-"}]}} for i in range(size)])
            if self.lose > 0:
                self.lose -= 1
                assert request.transport is not None
                request.transport.abort()
            return web.json_response(made_one)
        if not parts:
            rows = list(self.batches.values())[::-1]
            if "after_id" in request.query:
                rows = rows[[row["id"] for row in rows].index(request.query["after_id"]) + 1 :]
            most = min(2, int(request.query["limit"]))
            return web.json_response({"data": rows[:most], "has_more": len(rows) > most})
        if parts[-1] == "results":
            lines = [{"custom_id": r["custom_id"], "result": self.results(r)} for r in self.rows[parts[0]]]
            return web.Response(text="\n".join(json.dumps(line) for line in reversed(lines)))
        return web.json_response(self.look(parts[0], request.host))

    def look(self, ident: str, host: str) -> dict[str, Any]:
        batch = self.batches[ident]
        if batch["processing_status"] != "ended":
            kinds = Counter(self.results(row)["type"] for row in self.rows[ident])
            batch |= {"processing_status": "ended", "request_counts": {k: kinds[k] for k in batch["request_counts"]}}
            batch["results_url"] = f"http://{'elsewhere.invalid' if self.elsewhere else host}/v1/messages/batches/{ident}/results"
            self.worked.update(asked(row) for row in self.rows[ident] if self.results(row)["type"] == "succeeded")
        return batch


@pytest.fixture
def anthropic(serving: Serving) -> AnthropicProvider:
    serving.provider = AnthropicProvider()
    return serving.provider


CLAUDE = ModelRef(provider="anthropic", name="m")


def claude(serving: Serving, journal: Journal, time: Time | None = None, **settings: Any) -> BatchApiEndpoint:
    given = {"type": "anthropic", "base_url": serving.url, "name": "m", "api_key_env": "TEST_KEY", "attempts": 3, "batch": {}}
    return BatchApiEndpoint("label", AnthropicModel.model_validate(given | settings), journal, (time or Time()).clock)


def ask_claude(*texts: str) -> list[Request]:
    return [Request(CLAUDE, (Message(role="user", content=text),), 0, "test") for text in texts]


def test_message_batches(serving: Serving, anthropic: AnthropicProvider, tmp_path: Path) -> None:
    anthropic.elsewhere = True  # results are fetched from the server that has our key anyway
    requests = ask_claude("a", "b", "a")
    with Journal(tmp_path / "j") as journal:
        endpoint = claude(serving, journal)
        assert endpoint.model == CLAUDE
        replies = endpoint.complete_all(requests)
        assert replies == [Reply(f"re {t}", Finish.stop, r.key, "", 3, 2) for t, r in zip("aba", requests, strict=True)]
        row = journal.batches.get(1)
        assert (row.state, row.batch_id, row.bytes) == ("done", "msgbatch_1", len(anthropic.bodies[0]))
    assert json.loads(anthropic.bodies[0]) == {
        "requests": [
            {"custom_id": r.key, "params": {"model": "m", "messages": [{"role": "user", "content": t}], "max_tokens": 512}}
            for t, r in zip("ab", requests, strict=False)
        ]
    }
    assert {h["x-api-key"] for h in anthropic.headers} == {KEY}
    assert {h["anthropic-version"] for h in anthropic.headers} == {"2023-06-01"}


def test_what_becomes_of_messages(serving: Serving, anthropic: AnthropicProvider, tmp_path: Path) -> None:
    looks: Counter[str] = Counter()
    kinds = {"bad": failing("invalid_request_error"), "busy": failing("overloaded_error"), "odd": {"type": "new"},
             "old": {"type": "expired"}, "gone": {"type": "canceled"}}  # fmt: skip

    def results(row: dict[str, Any]) -> dict[str, Any]:
        looks[asked(row)] += 1  # twice per batch: for the counts, and for the file
        again = looks[asked(row)] > 3 and asked(row) != "busy"
        return kinds[asked(row)] if asked(row) in kinds and not again else succeeded(row)

    anthropic.results = results
    with Journal(tmp_path / "j") as journal:
        replies = claude(serving, journal, attempts=2).complete_all(ask_claude("a", *kinds))
        assert [(r.text, r.error, r.failure) for r in replies] == [
            ("re a", "", None),
            ("", "HTTP 400: it is a invalid_request_error", Failure.bad_request),
            ("", "HTTP 529: it is a overloaded_error", Failure.server_error),
            ("re odd", "", None), ("re old", "", None), ("re gone", "", None),
        ]  # fmt: skip
        assert journal.usage().paid == 1 + 3 + 1, "a result of an unknown kind may have been paid for; the others are free"


def test_message_batches_survive_a_crash_at_any_moment(
    serving: Serving, anthropic: AnthropicProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashes = Crashes(monkeypatch)
    requests = ask_claude(*"abc")

    def begin() -> None:
        serving.provider = AnthropicProvider()
        serving.provider.add([])
        serving.provider.foreign = [3, 2]

    def check() -> None:
        ours = Counter(r["custom_id"] for rows in serving.provider.rows.values() for r in rows if "other" not in r["custom_id"])
        assert ours == Counter(r.key for r in requests), "each request was sent once"

    seen = crash_everywhere(
        lambda journal: claude(serving, journal, batch={"requests": 2}).complete_all(requests), crashes, tmp_path, begin, check
    )
    assert [r.text for r in seen[0]] == ["re a", "re b", "re c"]
    assert all(replies == seen[0] for replies in seen)


def test_a_batch_that_only_looks_like_ours(serving: Serving, anthropic: AnthropicProvider, tmp_path: Path) -> None:
    """The answer to our creation is lost, and others made batches of the same size, before it and after it."""
    anthropic.add([{"custom_id": f"older-{i}", "params": {"messages": [{"content": "-"}]}} for i in range(2)])
    anthropic.lose = 1
    real = anthropic.add

    def add(rows: list[dict[str, Any]]) -> dict[str, Any]:
        if rows[0]["custom_id"].startswith("other"):
            return real(rows)
        for size in (7, 2):
            real([{"custom_id": f"first-{i}", "params": {"messages": [{"content": "-"}]}} for i in range(size)])
        return real(rows)

    anthropic.add = add  # type: ignore[method-assign]
    anthropic.foreign = [2, 5]
    with Journal(tmp_path / "j") as journal:
        assert [r.text for r in claude(serving, journal).ask_all(ask_claude("a", "b"))] == ["re a", "re b"]
        row = journal.batches.get(1)
        assert (row.state, row.newest, row.others, row.batch_id) == ("done", "msgbatch_1", "msgbatch_3", "msgbatch_4")
    assert len(anthropic.bodies) == 1


def test_a_lost_message_batch_that_never_was(serving: Serving, anthropic: AnthropicProvider, tmp_path: Path) -> None:
    """Only others look like ours: when all have been looked into, it is created, and nothing has been paid twice."""
    with Journal(tmp_path / "j") as journal:
        real = wire.AnthropicBatches.create

        async def die(self: wire.AnthropicBatches, *rest: Any) -> wire.View:
            raise Died

        wire.AnthropicBatches.create = die  # type: ignore[method-assign]
        try:
            with pytest.raises(Died):
                claude(serving, journal).complete_all(ask_claude("a", "b"))
        finally:
            wire.AnthropicBatches.create = real  # type: ignore[method-assign]
        for _ in range(3):
            anthropic.add([{"custom_id": f"other-{i}", "params": {"messages": [{"content": "-"}]}} for i in range(2)])
        assert [r.text for r in claude(serving, journal).ask_all(ask_claude("a", "b"))] == ["re a", "re b"]
        assert journal.batches.get(1).others.split() == ["msgbatch_1", "msgbatch_2", "msgbatch_3"]
    assert len(anthropic.bodies) == 1


# ── several models, prices ───────────────────────────────────────────────────────────────────────────────────────────


def test_several_models_wait_at_the_same_time(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    """Two models' batches are under way together: the second is created before the first has ended."""
    real = provider.look
    provider.look = lambda batch: real(batch) if len(provider.batches) == 2 else batch  # type: ignore[method-assign]
    with Journal(tmp_path / "j") as journal:
        other = ModelRef(provider="openai", name="other")
        asks = [
            (made(serving, journal), ask("a", "b")),
            (ScriptedEndpoint(MODEL, lambda r: "from a script", journal), ask("s")),
            (made(serving, journal, name="other"), [Request(other, (Message(role="user", content="c"),))]),
        ]
        assert [[r.text for r in replies] for replies in ask_together(asks)] == [["re a", "re b"], ["from a script"], ["re c"]]
    assert provider.most_running == 2


def test_one_model_that_cannot_go_on_lets_the_others_finish(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    provider.polls = 3
    provider.complain = lambda rows: [{"code": "model_not_found", "message": "no"}] if rows[0]["body"]["model"] == "other" else []
    with Journal(tmp_path / "j") as journal:
        other = ModelRef(provider="openai", name="other")
        asks = [
            (made(serving, journal, name="other"), [Request(other, (Message(role="user", content="c"),))]),
            (made(serving, journal), ask("a")),
        ]
        with pytest.raises(EndpointError, match="model_not_found"):
            ask_together(asks)
        assert journal.count() == 1


def test_half_the_price(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    """3 prompt and 2 reply tokens at 10 and 100 dollars a million: 230 microdollars, and half of that. Set aside are 2 + 512."""
    price = {"prompt": 10.0, "completion": 100.0}
    with Journal(tmp_path / "j", Budget(dollars=0.026)) as journal:
        made(serving, journal, price=price).complete_all(ask("a"))
        assert journal.usage().dollars == 115e-6
        with pytest.raises(BudgetError):
            made(serving, journal, price=price, batch={"discount": 0}).complete_all(ask("b"))
        made(serving, journal, price=price, batch={"discount": 0.5}).complete_all(ask("b"))
        assert journal.usage().dollars == 230e-6


def test_a_reply_that_does_not_tell_its_tokens_keeps_what_was_set_aside(
    serving: Serving, provider: Provider, tmp_path: Path
) -> None:
    provider.finish = lambda rows: ("completed", [out(r, 200, completion("x") | {"usage": None}) for r in rows], [])
    with Journal(tmp_path / "j") as journal:
        made(serving, journal).complete_all(ask("abc"))
        assert journal.usage().tokens == 2 + 512


def test_two_processes_do_not_start_the_same_batch(serving: Serving, provider: Provider, tmp_path: Path) -> None:
    """The run's lock keeps them apart; should it fail, a row moves on for one of them only."""
    with Journal(tmp_path / "j") as journal:
        batch = journal.batches.open("m", serving.url)
        ours = journal.batches.update(batch, state="uploaded")
        journal.batches.update(ours, state="creating")
        with pytest.raises(JournalError, match="Another process has moved a batch on that was uploaded here"):
            journal.batches.update(ours, state="creating")
        with pytest.raises(JournalError, match="Another process"):
            journal.batches.withdraw(ours, "")
        assert journal.batches.get(batch.id).state == "creating"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base_url": ["http://a/v1", "http://b/v1"]}, "one base_url and one api_key_env"),
        ({"api_key_env": ["A", "B"]}, "one base_url and one api_key_env"),
        ({"batch": {"requests": 50_001}}, "less than or equal to 50000"),
        ({"batch": {"bytes": 200_000_001}}, "less than or equal to 200000000"),
        ({"batch": {"discount": 1}}, "less than 1"),
        ({"batch": True}, "valid dictionary"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], says: str) -> None:
    given = {"type": "openai", "base_url": "http://a/v1", "name": "m", "batch": {}}
    with pytest.raises(ValidationError, match=says):
        OpenAIModel.model_validate(given | changes)


def test_no_query_goes_through_a_whole_batch_for_every_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 50,000 requests in a batch that would be 2.5 billion rows."""
    plans: dict[str, str] = {}
    with Journal(tmp_path / "j") as journal:
        journal.batches.open("m", "s")
        real = journal._db.all

        def explained(query: str, values: Any = ()) -> list[tuple[Any, ...]]:
            plans[query] = str(real(f"EXPLAIN QUERY PLAN {query}", values))
            return real(query, values)

        monkeypatch.setattr(journal._db, "all", explained)
        journal.batches.members(1, ["k"])
        journal.batches.tried(["k"], 0)
        journal.batches.waiting(["k"])
        journal.batches.open_batches(["k"])
        journal._db._writer.set_trace_callback(lambda query: explained(query) if "+a.batch" in query else None)
        journal._open_in_batch("k", 1)
    assert len(plans) == 5
    assert not [query for query, plan in plans.items() if "attempts_batch" in plan]


def test_every_state_is_explained(tmp_path: Path) -> None:
    from starling.journal import batches

    page = (Path(__file__).parents[2] / "docs" / "batches.md").read_text("utf-8")
    explained = {
        name for row in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", page, re.MULTILINE) for name in re.findall(r"\w+", row)
    }
    listed = set(re.findall(r"^    (\w+)  ", str(batches.__doc__), re.MULTILINE)) | {"closed"}
    assert explained == listed
    assert set(batches.OPEN) < listed

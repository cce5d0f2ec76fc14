"""Prompts of the user, models and judge behind servers: from a file to a dataset, with key, budget and dead servers."""

from __future__ import annotations

import json
import sqlite3
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from starling import cli
from starling.judge.rubric import read_prompt
from starling.judge.verdict import Verdict, write_reply
from starling.nectar import read_nectar
from starling.records import Message

KEY = "sk-a-very-secret-key-0123456789"

SETTINGS = """
[run]
dir = "{folder}/run"

[models.short]
type = "openai"
base_url = "{url}"
name = "short"
api_key_env = "TEST_KEY"

[models.long]
type = "openai"
base_url = "{url}"
name = "long"
api_key_env = "TEST_KEY"

[models.judge]
type = "openai"
base_url = "{url}"
name = "judge"
api_key_env = "TEST_KEY"
attempts = 1

[prompts]
sources = [{{ type = "file", path = "{folder}/prompts.jsonl", name = "mine" }}]
validation_fraction = 0.2
test_fraction = 0.2

[responses]
models = ["short", "long"]

[ranking]
judge = "judge"
"""


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server: `short` and `long` answer, `judge` prefers the longer answer and refuses prompt 3."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.calls.append(asked["model"])
        status, body = 200, self._reply(asked)
        if self.headers["Authorization"] != f"Bearer {KEY}":
            status, body = 401, {"error": {"message": f"wrong key {self.headers['Authorization']}"}}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _reply(self, asked: dict[str, Any]) -> dict[str, Any]:
        last = asked["messages"][-1]["content"]
        text, reason = f"{asked['model']} answer to {last}", "stop"
        if asked["model"] == "long":
            text += ", at some length"
        if asked["model"] == "judge":
            material = read_prompt(tuple(Message.model_validate(m) for m in asked["messages"]))
            order = sorted(range(len(material.answers)), key=lambda i: -len(material.answers[i]))
            text = write_reply(Verdict(tuple(order), True, tuple((a, b, order[0]) for a, b in material.pairs)))
            assert {frozenset(p) for p in material.pairs} == {frozenset(p) for p in combinations(range(2), 2)}
            reason = "content_filter" if "prompt 3" in last else "stop"
        usage = {"prompt_tokens": 5, "completion_tokens": 7}
        return {"choices": [{"message": {"content": text}, "finish_reason": reason}], "usage": usage}

    def log_message(self, *args: Any) -> None:
        return None


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def settings(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEST_KEY", KEY)
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "prompt {i}"}}\n' for i in range(12)), "utf-8")
    file = tmp_path / "settings.toml"
    file.write_text(SETTINGS.format(folder=tmp_path, url=f"http://127.0.0.1:{server.server_port}/v1"), "utf-8")
    return file


def test_from_a_file_to_a_dataset(settings: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.call(["dataset", str(settings)]) == 0
    assert sorted(server.calls) == ["judge"] * 12 + ["long"] * 12 + ["short"] * 12
    rows = [row for split in ("train", "validation", "test") for row in _rows(tmp_path / "run" / "dataset" / f"{split}.parquet")]
    assert len(rows) == 11, "the judge refused one prompt"
    assert all([a.model for a in row.answers] == ["long", "short"] for row in rows)
    assert all(row.prompt.sources == ("mine",) for row in rows)
    capsys.readouterr()
    assert cli.call(["show", str(tmp_path / "run" / "ranking"), "--outcome", "refused", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["outcomes"] == {"ranked": 11, "refused": 1}
    assert len(shown["sample"]) == 1
    assert "content_filter" in shown["sample"][0]["raw_reply"]
    everything = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    with sqlite3.connect(tmp_path / "run" / "journal.sqlite") as journal:
        packed = journal.execute("SELECT text FROM questions UNION ALL SELECT text FROM replies").fetchall()
    assert len(packed) == 2 * 36
    assert KEY.encode() not in everything + b"".join(zlib.decompress(blob) for (blob,) in packed)


def _rows(path: Path) -> list[Any]:
    return read_nectar(path) if path.exists() else []


def test_a_call_that_was_answered_is_never_made_again(settings: Path, server: Server, tmp_path: Path) -> None:
    assert cli.call(["dataset", str(settings)]) == 0
    made = len(server.calls)
    assert cli.call(["dataset", str(settings), "--set", "responses.models=['long', 'short']"]) == 0
    assert set(server.calls[made:]) <= {"judge"}, "the pool's answers come from the journal"
    assert cli.call(["dataset", str(settings), "--set", "responses.models=['short', 'long']"]) == 0


def test_the_budget_stops_and_more_budget_goes_on(
    settings: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.call(["dataset", str(settings), "--set", "run.budget_calls=10"]) == 1
    assert "run.budget_calls = 10 (10 made)" in capsys.readouterr().err
    assert len(server.calls) == 10
    assert cli.call(["dataset", str(settings), "--set", "run.budget_calls=36"]) == 0
    assert len(server.calls) == 36


def test_a_wrong_key_stops_the_run_and_is_not_shown(
    settings: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-another-secret-key-987654321")
    assert cli.call(["dataset", str(settings)]) == 1
    said = capsys.readouterr().err
    assert "refuses the key" in said
    assert "987654321" not in said
    monkeypatch.setenv("TEST_KEY", KEY)
    assert cli.call(["dataset", str(settings)]) == 0

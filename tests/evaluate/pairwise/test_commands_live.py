"""The live commands against a server: settings to result, faults on the way, and a second run that asks nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from starling.artifacts import new_artifact, write_records
from starling.cli import call
from starling.records import Message, Prompt
from tests.fakes.faults import Fault
from tests.fakes.process import FakeServer

SETTINGS = """
[run]
dir = "{dir}"
[models.one]
type = "openai"
base_url = "{url}"
name = "one"
[models.two]
type = "openai"
base_url = "{url}"
name = "two"
[models.judge]
type = "openai"
base_url = "{url}"
name = "judge"
sampling = {{ temperature = 0.0, max_tokens = 500 }}
price = {{ prompt = 1.0, completion = 2.0 }}
[evaluate]
bootstrap = 200
[evaluate.head_to_head]
models = ["one", "two"]
judge = "judge"
prompts = "{prompts}"
repeats = 2
[evaluate.arena_hard]
models = ["one"]
judge = "judge"
questions = "{questions}"
baseline_answers = {{ all = "{base}" }}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(chars=120) as made:
        yield made


@pytest.fixture
def config(server: FakeServer, tmp_path: Path) -> Path:
    prompts, questions, base = (tmp_path / name for name in ("prompts.jsonl", "question.jsonl", "base.jsonl"))
    prompts.write_text("".join(json.dumps({"prompt": f"Question {i}"}) + "\n" for i in range(8)))
    questions.write_text(
        "".join(
            json.dumps({"uid": f"u{i}", "category": "c", "subcategory": "", "prompt": f"Question {i}"}) + "\n" for i in range(8)
        )
    )
    base.write_text(
        "".join(json.dumps({"uid": f"u{i}", "prompt": f"Question {i}", "answer": f"Base {i}"}) + "\n" for i in range(8))
    )
    path = tmp_path / "config.toml"
    path.write_text(SETTINGS.format(dir=tmp_path / "run", url=server.url, prompts=prompts, questions=questions, base=base))
    return path


def test_head_to_head_survives_faults_and_asks_nothing_twice(
    server: FakeServer, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reset([Fault("prose_around", share=0.2)])
    assert call(["evaluate", "head-to-head", str(config), "--out", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    judge = found["judge"]
    assert sum(m["overall"]["score"] for m in found["models"]) == pytest.approx(100)
    # 8 prompts, two orders, two repeats; what does not parse is asked for once more
    assert 32 <= judge["calls"] <= 64
    assert sum(judge["outcomes"].values()) == judge["calls"]
    assert judge["dollars"] > 0
    assert (judge["position_gap"], judge["repeats"]) == (0, 2)
    assert found["models"][0]["more"]["order_disagreement"] == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"result.json", "votes.jsonl", "answers"}
    votes = (tmp_path / "out" / "votes.jsonl").read_text()
    assert len(votes.splitlines()) == 32
    server.reset()
    assert (
        call(["evaluate", "head-to-head", str(config), "--set", "evaluate.bootstrap=300", "--out", str(tmp_path / "again")]) == 0
    )
    assert server.stats()["received"] == 0
    assert (tmp_path / "again" / "votes.jsonl").read_text() == votes
    assert "share of meetings that the row's model won" in capsys.readouterr().out


def test_arena_hard_leaves_files_that_measure_the_same(
    server: FakeServer, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reset()
    answers = tmp_path / "more.json"
    answers.write_text(json.dumps([{"instruction": f"Question {i}", "output": f"Other {i}", "generator": "g"} for i in range(8)]))
    assert (
        call(["evaluate", "arena-hard", str(config), "--answers", f"other={answers}", "--out", str(tmp_path / "out"), "--json"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert {m["model"]: m["overall"]["score"] for m in found["models"]}["base"] == 50
    assert {m["model"] for m in found["models"]} == {"one", "other", "base"}
    assert found["settings"]["protocol"] == "starling"
    judged = tmp_path / "out" / "model_judgment" / "judge"
    assert {p.name for p in judged.iterdir()} == {"one.jsonl", "other.jsonl"}
    assert call(["evaluate", "arena-hard", "--judgments", str(judged), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [(m["model"], m["overall"]["score"]) for m in again["models"]] == [
        (m["model"], m["overall"]["score"]) for m in found["models"]
    ]


def test_without_a_file_the_runs_held_out_prompts_are_asked(
    server: FakeServer, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reset()
    config.write_text("\n".join(x for x in config.read_text().splitlines() if not x.startswith("prompts =")))
    assert call(["evaluate", "head-to-head", str(config)]) == 1
    assert "prompts" in capsys.readouterr().err
    splits = ("test", "train", "validation", "test")
    prompts = [Prompt.make((Message(role="user", content=f"Own {i}"),), ("x",), split) for i, split in enumerate(splits)]
    with new_artifact(tmp_path / "run", "prompts", key="k", inputs={}, config={}) as draft:
        draft.rows = write_records(draft.path / "prompts.parquet", prompts, Prompt)
    assert call(["evaluate", "head-to-head", str(config), "--out", str(tmp_path / "out")]) == 0
    said = json.loads((tmp_path / "out" / "answers" / "one.json").read_text())
    assert [row["instruction"] for row in said] == ["Own 0", "Own 3"]

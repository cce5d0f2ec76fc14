"""The whole chain, as a user meets it: one command, artifacts that the ecosystem opens, nothing done twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from starling.pipeline import STAGES
from tests.e2e.processes import MICRO, fingerprints, starling

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("chain")]


def test_every_stage_is_there(chain: Path) -> None:
    assert set(fingerprints(chain)) == {s.name for s in STAGES}
    assert not (chain / ".work").exists()
    assert not (chain / ".lock").exists()


def test_a_second_run_changes_nothing(chain: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in chain.rglob("manifest.json")}
    done = starling("run", MICRO, "--set", f"run.dir={chain}")
    assert done.returncode == 0, done.stderr
    assert {p: p.stat().st_mtime_ns for p in chain.rglob("manifest.json")} == before
    assert done.stderr.splitlines() == [f"{s.name}: done before" for s in STAGES]


def test_the_summary_has_the_published_form(chain: Path) -> None:
    summary = json.loads((chain / "summary.json").read_text("utf-8"))
    assert summary["seconds"] > 0
    for side in ("base", "tuned"):
        part = summary["gold"][side]
        low, high = part["ci"]
        assert 0 <= low <= part["mean"] <= high <= 1
        assert 0 <= part["greedy"] <= 1
        assert 0 <= part["harmlessness"] <= 1
    assert {"pair_accuracy", "ci"} <= set(summary["reward"])
    assert summary["policy"] == {"algorithm": "apa"}


def test_the_command_prints_where_the_report_is(chain: Path) -> None:
    done = starling("run", MICRO, "--set", f"run.dir={chain}")
    assert done.stdout.splitlines()[-1] == f"report: {chain / 'report' / 'report.html'}"
    page = (chain / "report" / "report.html").read_text("utf-8")
    assert not re.findall(r"(?:src|href)=[\"'](?:https?:)?//", page), "the page needs nothing from elsewhere"


def test_datasets_opens_the_dataset(chain: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    files = {s: str(chain / "dataset" / f"{s}.parquet") for s in ("train", "validation")}
    found = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
    columns = list(found["train"].features)
    assert columns[:6] == ["prompt", "answers", "turns", "num_responses", "source", "good_natured"]
    assert columns[6:] == ["pair_confidence", "pair_verdicts", "contested", "judge_calls"]
    assert found["train"].num_rows + found["validation"].num_rows > 100
    first = found["train"][0]
    assert first["prompt"].startswith("\n\nHuman: ")
    assert [a["rank"] for a in first["answers"]] == [1.0, 2.0, 3.0]
    assert [(p["better"], p["worse"]) for p in first["pair_confidence"]] == [(0, 1), (0, 2), (1, 2)]


def test_transformers_opens_the_models_and_scores_as_we_do(chain: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

    assert AutoModelForCausalLM.from_pretrained(chain / "policy").num_parameters() > 0
    assert AutoModelForSequenceClassification.from_pretrained(chain / "reward").config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(chain / "reward")
    asked: list[Any] = [
        [{"role": "user", "content": "What is 3 + 4?"}, {"role": "assistant", "content": reply}] for reply in ("7", "It is 9.")
    ]
    texts = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in asked]
    classify = pipeline("text-classification", model=str(chain / "reward"), function_to_apply="none", device="cpu")
    theirs = [found["score"] for found in classify(texts)]
    lines = "\n".join(json.dumps({"messages": messages}) for messages in asked)
    done = starling("score", chain, stdin=lines.encode())
    assert done.returncode == 0, done.stderr
    ours = [json.loads(line)["reward"] for line in done.stdout.splitlines()]
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours[0] != ours[1]


def test_the_policy_talks(chain: Path) -> None:
    done = starling("chat", chain, "--greedy", stdin=b"hello\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")


def test_plan_foresees_the_calls_that_were_made(chain: Path, tmp_path: Path) -> None:
    from starling.journal import Journal

    planned = json.loads(starling("plan", MICRO, "--json", "--set", f"run.dir={tmp_path / 'new'}").stdout)["calls"]
    asked = sum(c["calls"] for c in planned if c["kind"] == "microworld-speaker")
    ranked = sum(c["calls"] for c in planned if c["stage"] == "ranking")
    with Journal(chain / "journal.sqlite") as journal:
        answered = journal.usage(purpose="respond").answered
        first_calls = journal.usage(purpose="judge").answered
    assert answered == asked
    assert ranked <= first_calls <= 2 * ranked


def test_failures_of_the_judge_can_be_looked_at(chain: Path) -> None:
    shown = json.loads(starling("show", chain / "ranking", "--json", "--rows", "1").stdout)
    assert sum(shown["outcomes"].get(o, 0) for o in ("ranked", "unparsed", "refused", "truncated")) == shown["rows"]
    assert "choices" in json.loads(shown["sample"][0]["raw_reply"])

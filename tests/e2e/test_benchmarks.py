"""Benchmarks after a chain: the run's own base and policy answer, the report shows what came of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from starling.evaluate.registry import finished
from starling.microworld import world
from tests.e2e.processes import MICRO, fingerprints, starling

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("chain")]


@pytest.fixture
def config(chain: Path, tmp_path: Path) -> Path:
    """The finished chain's settings with a head to head, and a copy of its run directory."""
    shutil.copytree(chain, tmp_path / "run")
    asked = [p for p in world.all_prompts(validation=0.02, test=0.02) if p.split == "test"][:30]
    rows = [json.dumps({"messages": [m.model_dump() for m in p.messages]}) + "\n" for p in asked]
    (tmp_path / "prompts.jsonl").write_text("".join(rows))
    path = tmp_path / "micro.toml"
    path.write_text(
        MICRO.read_text("utf-8").replace("runs/micro", str(tmp_path / "run"))
        + f'[evaluate.head_to_head]\nprompts = "{tmp_path / "prompts.jsonl"}"\nsampling = {{ max_tokens = 12 }}\n'
    )
    return path


def test_the_run_s_own_models_meet_after_the_chain(config: Path, tmp_path: Path) -> None:
    before = fingerprints(tmp_path / "run")
    done = starling("run", config)
    assert done.returncode == 0, done.stderr
    assert "head-to-head: 2 models" in done.stderr
    (result,) = finished(tmp_path / "run")
    assert sorted(m.model for m in result.models) == ["base", "policy"]
    after = fingerprints(tmp_path / "run")
    changed = [stage for stage in before if before[stage] != after[stage]]
    assert changed == ["report"], "a benchmark makes no stage stale but the report"
    assert result.title in (tmp_path / "run" / "report" / "report.html").read_text("utf-8")
    again = starling("run", config)
    assert again.returncode == 0
    assert "head-to-head: done before" in again.stderr
    assert fingerprints(tmp_path / "run") == after


def test_what_a_benchmark_lacks_is_said_before_the_chain(config: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    done = starling("run", config, "--set", f"run.dir={fresh}", "--set", "evaluate.head_to_head.prompts=nowhere.jsonl")
    assert done.returncode == 1
    assert "evaluate.head_to_head.prompts = nowhere.jsonl" in done.stderr
    assert not fresh.exists()

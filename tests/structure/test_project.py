"""What holds for the project's files: pinned dependencies, the two commands, shipped settings, generated pages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from starling import forecast, pipeline, plan, training_plan
from starling.config import load_config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_direct_dependency_is_pinned_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if line and not line.startswith("#")]
    pinned = [re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9A-Za-z.]*)", line) for line in lines]
    assert all(pinned), lines
    assert [normal(m[1]) for m in pinned if m] == sorted({normal(re.split(r"[<>=!~\[ ]", d, maxsplit=1)[0]) for d in wanted})


def test_ci_runs_the_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [line for line in script.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    assert commands == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]
    assert "make test" in (ROOT / "README.md").read_text("utf-8")
    assert "make quickstart" in (ROOT / "README.md").read_text("utf-8")


def test_make_knows_the_commands() -> None:
    for target in ("setup", "quickstart", "test"):
        result = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_settings_validate_and_plan(path: Path, tmp_path: Path) -> None:
    settings = load_config(path, (f"run.dir={tmp_path / 'run'}",))
    assert path.read_text("utf-8").startswith("#"), "the header says hardware, time and what to expect"
    stages = [s.name for s in pipeline.needed(settings)]
    assert stages[-1] == "publish"
    missing = plan.absent(settings, stages)  # models, data and keys of the user
    plan.check(settings, stages, missing)
    trained = [name for name in ("reward", "policy") if name in stages]
    planned = training_plan.plan_trainings(settings, stages, [])
    if settings.microworld is None:
        assert missing
        assert [found.stage for found in planned if isinstance(found, training_plan.Needs)] == trained
        collected = ["responses", "ranking", "dataset"]  # without a training they are all that there is
        assert [name for name in stages if name in collected] == ([] if trained else collected)
    else:
        assert missing == []
        assert {line.stage for line in forecast.forecast(settings, stages).lines} == {"responses", "ranking", "evaluate"}
    assert list(tmp_path.iterdir()) == []


def test_there_are_shipped_settings() -> None:
    assert {p.name for p in CONFIGS} >= {"tiny.toml", "small-gpu.toml", "starling-7b.toml"}


def test_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, "docs/generate.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))], ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text("utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target

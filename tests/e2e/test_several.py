"""The command under torchrun: one process writes and talks, the others help; a stage for one process is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from starling.artifacts import open_artifact
from starling.nectar import to_nectar
from starling.records import RankedPrompt
from tests.e2e.processes import MICRO, environment, starling

pytestmark = pytest.mark.e2e

SETTINGS = """
[run]
dir = "{folder}/run"
threads = 1

[reward]
data = "{data}"
backbone = "{backbone}"
validation_fraction = 0.2
rankings_per_step = 16
max_length = 64
eval_steps = 2
guard_fraction = 0.4
optimizer = {{ learning_rate = 3e-3 }}
"""


def two(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command in two processes."""
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command = [sys.executable, *torchrun, "-m", "starling", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), timeout=300)


def test_two_processes_make_one_artifact(
    tmp_path: Path, make_rankings: Callable[..., list[RankedPrompt]], backbone: Callable[..., Path]
) -> None:
    data = tmp_path / "rankings.jsonl"
    data.write_text("".join(json.dumps(to_nectar(row)) + "\n" for row in make_rankings(40)), encoding="utf-8")
    (tmp_path / "settings.toml").write_text(SETTINGS.format(folder=tmp_path, data=data, backbone=backbone("llama")))
    done = two("train-reward", tmp_path / "settings.toml")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes (ddp)" in done.stderr
    assert done.stdout.count("reward") >= 1
    assert done.stdout.count("run directory:") == 1  # one of the two talks
    made = open_artifact(tmp_path / "run", "reward", verify=True)
    trained = [made.metrics[f"{model}rankings/train"] for model in ("", "guard/")]
    assert sum(trained) + made.metrics["rankings/validation"] == 40
    assert min(trained) > 5
    assert {"guard/config.json", "guard/log.jsonl"} < {*made.files}
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"reward", "config.json"}
    alone = starling("train-reward", tmp_path / "settings.toml", "--set", f"run.dir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    same = open_artifact(tmp_path / "alone", "reward").metrics
    assert same == pytest.approx(made.metrics, rel=1e-4, abs=1e-5)
    again = two("train-reward", tmp_path / "settings.toml")
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("reward: done before") == 1


def test_what_one_process_must_do_is_refused(tmp_path: Path) -> None:
    refused = two("train-reward", MICRO, "--set", f"run.dir={tmp_path / 'run'}")
    assert refused.returncode != 0
    assert "2 processes were started, and the stage 'world' is to be done by one" in refused.stderr
    assert not (tmp_path / "run").exists()


POLICY = """
[prompts]
sources = [{{ type = "file", path = "{folder}/prompts.jsonl", name = "mine" }}]
validation_fraction = 0.3
test_fraction = 0.1

[policy]
base = "{backbone}"
iterations = 2
rollouts = 8
minibatches = 2
sampling = {{ max_tokens = 6 }}
eval_prompts = 4
optimizer = {{ learning_rate = 1e-3 }}
critic = {{ learning_rate = 1e-3, pretrain = 1 }}
guard = {{ best_of = 2 }}
"""


def test_two_processes_tune_one_policy(
    tmp_path: Path, make_rankings: Callable[..., list[RankedPrompt]], backbone: Callable[..., Path]
) -> None:
    data = tmp_path / "rankings.jsonl"
    data.write_text("".join(json.dumps(to_nectar(row)) + "\n" for row in make_rankings(40)), encoding="utf-8")
    animals = ("cat", "dog", "cow", "horse", "hen", "pig", "goat", "duck", "goose", "sheep", "mouse", "bee")
    asked = [{"prompt": f"tell me everything that you know of the {animal} and where it lives"} for animal in animals]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    settings = tmp_path / "settings.toml"
    settings.write_text((SETTINGS + POLICY).format(folder=tmp_path, data=data, backbone=backbone("llama")))
    before = starling("run", settings, "--until", "prompts")
    assert before.returncode == 0, before.stderr
    both = two("train-policy", settings)
    assert both.returncode != 0
    assert "2 processes were started, and they do one stage at a time: reward, policy" in both.stderr
    before = starling("run", settings, "--until", "reward")
    assert before.returncode == 0, before.stderr
    done = two("train-policy", settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes (ddp)" in done.stderr
    made = open_artifact(tmp_path / "run", "policy", verify=True)
    assert {"model.safetensors", "log.jsonl", "selection.json", "best_of_n.json"} <= set(made.files)
    (tmp_path / "run" / "policy").rename(tmp_path / "of-two")
    alone = starling("train-policy", settings)
    assert alone.returncode == 0, alone.stderr
    same = open_artifact(tmp_path / "run", "policy").metrics
    assert same == pytest.approx(made.metrics, rel=1e-3, abs=1e-4)

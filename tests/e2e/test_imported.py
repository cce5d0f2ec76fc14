"""Rankings of others: imported from a file, learned by a decoder and by an encoder, with settings of two sections only."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from starling import cli
from starling.artifacts import open_artifact
from starling.nectar import to_nectar
from starling.records import RankedPrompt

pytestmark = pytest.mark.e2e

SETTINGS = """
[run]
dir = "{folder}/run"

[reward]
data = "{data}"
backbone = "{backbone}"
validation_fraction = 0.2
epochs = 12
rankings_per_step = 16
max_length = 64
optimizer = {{ learning_rate = 3e-3 }}
"""


@pytest.fixture
def rankings(tmp_path: Path, make_rankings: Callable[..., list[RankedPrompt]]) -> Path:
    """60 rankings of K = 3 and 4 with shuffled answers, integer ranks and no good_natured, and one with a tie."""
    rng = random.Random(0)
    lines = []
    for ranked in make_rankings(30, k=4) + make_rankings(30, k=3, seed=1):
        row = to_nectar(ranked)
        row["answers"] = [{**a, "rank": int(a["rank"])} for a in rng.sample(row["answers"], len(row["answers"]))]
        del row["good_natured"]
        lines.append(json.dumps(row))
    tied = json.loads(lines[0])
    for answer in tied["answers"]:
        answer["rank"] = 1
    path = tmp_path / "rankings.jsonl"
    path.write_text("\n".join([*lines, json.dumps(tied)]) + "\n", "utf-8")
    return path


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_reward_model_on_imported_rankings(
    kind: str, rankings: Path, tmp_path: Path, backbone: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.call(["import", "nectar", str(rankings), "--out", str(tmp_path / "taken")]) == 0
    file = tmp_path / "settings.toml"
    file.write_text(SETTINGS.format(folder=tmp_path, data=tmp_path / "taken", backbone=backbone(kind)), "utf-8")
    assert cli.call(["train-reward", str(file)]) == 0
    reward = open_artifact(tmp_path / "run", "reward", verify=True)
    assert reward.outcomes["rejected/tied"] == 1
    assert reward.outcomes["changed/answers_sorted"] > 0
    assert 60 > reward.rows > 40
    assert reward.metrics["validation/pair_accuracy"] > 0.6
    capsys.readouterr()
    assert cli.call(["status", str(file), "--json"]) == 0
    states = {row["stage"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states == dict.fromkeys(states, "unused") | {"reward": "done", "publish": "missing"}


def test_the_file_itself_gives_the_same_model(rankings: Path, tmp_path: Path, backbone: Callable[..., Path]) -> None:
    assert cli.call(["import", "nectar", str(rankings), "--out", str(tmp_path / "taken")]) == 0
    weights = []
    for data in (tmp_path / "taken", rankings):
        file = tmp_path / f"{data.name}.toml"
        file.write_text(SETTINGS.format(folder=tmp_path / data.name[:2], data=data, backbone=backbone("llama")), "utf-8")
        (tmp_path / data.name[:2]).mkdir(exist_ok=True)
        assert cli.call(["train-reward", str(file), "--set", "reward.epochs=1"]) == 0
        weights.append(open_artifact(tmp_path / data.name[:2] / "run", "reward").files["model.safetensors"])
    assert weights[0] == weights[1]

"""Real files: AlpacaEval's win rates from its annotations, and a judge's agreement with the crowd, each worked out separately."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from pathlib import Path

import pytest

from starling.evaluate.pairwise.head_to_head import from_files
from starling.evaluate.pairwise.measure import measure
from starling.evaluate.pairwise.votes import read_votes

DATA = Path(os.environ.get("STARLING_DATA", "../shared/data"))


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"the public data is not at {DATA / name}; set STARLING_DATA")
    return DATA / name


def test_soft_votes_of_annotations_are_the_official_win_rate() -> None:
    folder = real("alpaca_eval_ref/results")
    with real("alpaca_eval_ref/expected.csv").open() as file:
        expected = {row["model"]: float(row["win_rate"]) for row in csv.DictReader(file)}
    models = ("claude-2", "alpaca-7b")
    files = [folder / model / "weighted_alpaca_eval_gpt4_turbo" / "annotations.json.gz" for model in models]
    found = measure(read_votes(files), soft=True, baseline="gpt4_1106_preview", resamples=200)
    for model in models:
        line = next(m for m in found.models if m.model == model)
        assert line.overall.score == pytest.approx(expected[model], abs=1e-9)
        assert line.overall.clusters == 805
    assert {frozenset((d.first, d.second)) for d in found.differences} > {frozenset(models)}


def test_a_judge_and_the_crowd() -> None:
    judge, crowd = real("human_votes_llmfao/gpt4-crowd-comparisons.csv"), real("human_votes_llmfao/crowd-comparisons.csv")
    with judge.open() as file:
        said = {row["id"]: row["winner"] for row in csv.DictReader(file)}
    with crowd.open() as file:
        votes = [(row["id"], row["winner"]) for row in csv.DictReader(file) if row["winner"] in ("left", "right", "tie")]
    agree: dict[str, int] = defaultdict(int)
    for pair, winner in votes:
        if pair in said:
            agree["all"] += 1
            agree["same"] += said[pair] == winner
    found = from_files([judge], people=crowd, resamples=200)
    assert found.judge is not None
    assert found.judge.human_votes == agree["all"]
    assert found.judge.human_agreement == pytest.approx(agree["same"] / agree["all"])
    assert len(found.models) == 59

"""Official annotations give the published figures: whole files of five models, and a compact table of thirty.

The length-controlled rates of the leaderboard were fitted by liblinear, which stops early, and with a C whose cross-validation is
nearly flat: within 0.02 points at the published fit's own C, within 0.16 with our choice of C.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from starling.cli import call
from starling.evaluate.alpaca_eval import files
from starling.evaluate.alpaca_eval.from_files import Files, evaluate, inputs_of
from starling.evaluate.alpaca_eval.measure import Inputs, Measured, measure
from starling.evaluate.alpaca_eval.official import token_preference

DATA = Path(os.environ.get("STARLING_DATA", "../shared/data")) / "alpaca_eval_ref"
WHOLE = ("FuseChat-Llama-3.2-3B-Instruct", "alpaca-7b", "claude-2", "gpt-3.5-turbo-1106_verbose", "text_davinci_001")
GIVEN = {
    "baseline": DATA / "gpt4_1106_preview.model_outputs.json.gz",
    "difficulty": DATA / "instruction_difficulty.recovered.csv",
    "gamed": DATA / "df_gamed.reconstructed.csv",
}
QUICK = Inputs(resamples=100)

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the official results are not here (STARLING_DATA)")


@cache
def expected() -> dict[str, dict[str, float | None]]:
    with (DATA / "expected.csv").open(encoding="utf-8") as source:
        return {r.pop("model"): {k: float(v) if v else None for k, v in r.items()} for r in csv.DictReader(source)}


def annotations(model: str) -> Path:
    return DATA / "results" / model / "weighted_alpaca_eval_gpt4_turbo" / "annotations.json.gz"


def outputs(model: str) -> Path:
    return DATA / "results" / model / "model_outputs.json.gz"


@cache
def compact() -> dict[str, Measured]:
    lines, _ = evaluate(Files(annotations=(DATA / "annotations_compact.parquet",), **GIVEN), QUICK)
    return {line.model: line for line in lines}


def check(found: Measured, published: dict[str, float | None], within: float) -> None:
    plain = found.plain
    assert plain.win_rate == pytest.approx(published["win_rate"], abs=1e-9)
    assert plain.standard_error == pytest.approx(published["standard_error"], abs=1e-9)
    assert plain.discrete_win_rate == pytest.approx(published["discrete_win_rate"], abs=1e-9)
    counts = (plain.n_wins, plain.n_wins_base, plain.n_draws, plain.n_total)
    assert counts == tuple(published[name] for name in ("n_wins", "n_wins_base", "n_draws", "n"))
    assert found.lc_win_rate == pytest.approx(published["length_controlled_winrate"], abs=within)


def test_every_model_of_the_compact_table() -> None:
    found = compact()
    assert set(found) == set(expected())
    assert len(found) == 30
    for model, line in found.items():
        check(line, expected()[model], 0.16)
    assert found["gpt4_1106_preview"].lc_win_rate == 50


def test_at_the_published_fits_own_c() -> None:
    inputs = inputs_of(Files(annotations=(), **GIVEN), QUICK)
    for judged in files.read_annotations(DATA / "annotations_compact.parquet"):
        published = expected()[judged.model]
        check(measure(judged, replace(inputs, c=published["C_implied"])), published, 0.02)


def test_the_implied_c_is_that_of_the_published_weights() -> None:
    """Where a weight is not 0, the penalty's slope 1 is C times the loss's: the published weights themselves say which C."""
    inputs = inputs_of(Files(annotations=(), **GIVEN), QUICK)
    gamed, difficulty = inputs.gamed, inputs.difficulty
    assert gamed is not None
    assert difficulty is not None
    for judged in files.read_annotations(DATA / "annotations_compact.parquet")[:3]:
        published = expected()[judged.model]
        w = np.array([published[name] for name in ("w_len", "w_difficulty", "w_model")], dtype=float)
        delta = (judged.baseline_length - judged.length).astype(float)
        x = np.stack([np.tanh(delta / delta.std(ddof=1)), difficulty[judged.position], np.ones(len(delta))], 1)
        beside = np.stack([np.tanh(gamed.std_delta_len), gamed.difficulty, np.zeros(len(gamed.preference))], 1)
        slope = (1 / (1 + np.exp(-x @ w)) - judged.preference) @ x
        slope += 0.1 * ((1 / (1 + np.exp(-beside @ w)) - gamed.preference) @ beside)
        assert 1 / abs(slope[2]) == pytest.approx(published["C_implied"], rel=0.2)  # the grid goes in steps of 7.7


@pytest.mark.parametrize("model", WHOLE)
def test_whole_files_by_the_command(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [part for name, path in GIVEN.items() for part in (f"--{name}", str(path))]
    command = ["evaluate", "alpaca-eval", "--annotations", str(annotations(model)), "--outputs", str(outputs(model)), "--json"]
    assert call([*command, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    published = expected()[model]
    for name in ("win_rate", "standard_error", "discrete_win_rate", "n"):
        assert found[name] == pytest.approx(published[name], abs=1e-9)
    assert found["lc_win_rate"] == pytest.approx(published["length_controlled_winrate"], abs=0.16)
    assert found["model"] == model
    assert -1 < found["position_gap"] < 0  # this judge prefers the second answer
    assert found["position_gap_ci"][1] < 0
    assert found["win_rate_ci"][0] < found["win_rate"] < found["win_rate_ci"][1]


@pytest.mark.parametrize("model", WHOLE)
def test_whole_files_and_the_compact_table_say_the_same(model: str) -> None:
    given = Files(annotations=(annotations(model),), outputs=(outputs(model),), **GIVEN)
    (whole,), _ = evaluate(given, QUICK)
    table = compact()[model]
    assert whole.lc_win_rate == pytest.approx(table.lc_win_rate, abs=1e-5)
    assert whole.position_gap == pytest.approx(table.position_gap, abs=1e-7)  # the recomputed order is the recorded one
    assert whole.plain.n_total == table.plain.n_total


def test_the_recomputed_order_is_that_of_the_stored_log_probabilities() -> None:
    """Where claude-2's stored tokens say that the second answer is better, the preference is flipped exactly when swapped."""
    rows = json.loads(gzip.decompress(annotations("claude-2").read_bytes()))
    agree = asked = 0
    for row in rows:
        raw = row["raw_completion"]
        if not isinstance(raw, dict):  # equal answers, which nobody was asked about
            continue
        said = token_preference({one["token"]: one["logprob"] for one in raw["logprobs"]["content"][0]["top_logprobs"]})
        assert said is not None
        asked += 1
        agree += abs((3 - said if files.shown_first(row["instruction"]) else said) - float(row["preference"])) < 1e-5
    assert agree == asked
    assert asked >= 800


def test_one_model_against_another_baseline() -> None:
    """Weights over one common baseline say how two models stand to each other; the order is that of the published rates."""
    given = Files(annotations=(DATA / "annotations_compact.parquet",), **GIVEN)
    lines, _ = evaluate(given, QUICK, "claude-2")
    by_name = {line.model: line.lc_win_rate or 0 for line in lines}
    assert by_name["claude-2"] == 50
    assert by_name["gpt4_1106_preview"] == pytest.approx(100 - (compact()["claude-2"].lc_win_rate or 0), abs=1e-6)
    assert by_name["FuseChat-Llama-3.1-8B-Instruct"] > 50 > by_name["alpaca-7b"]

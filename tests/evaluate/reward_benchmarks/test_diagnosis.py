"""The shared measures on real scores of the public 34B model, and on rankings."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from starling.evaluate import reward_benchmarks
from starling.evaluate.reward_benchmarks import diagnosis
from starling.evaluate.reward_benchmarks.diagnosis import Answers
from starling.evaluate.reward_benchmarks.items import Item, Scored

DATA = Path(os.environ.get("STARLING_DATA", "../shared/data")) / "reward_benchmarks"


def test_ranks_as_truths() -> None:
    assert diagnosis.truths_of_ranks([1, 2, 3]) == (1.0, 0.5, 0.0)
    assert diagnosis.truths_of_ranks([1, 1, 3]) == (0.75, 0.75, 0.0)
    assert diagnosis.truths_of_ranks([1]) == (0.5,)
    for ranks in ([3, 1, 2, 2], [5, 5, 5], [1, 2, 3, 4, 5, 6, 7]):
        assert sum(diagnosis.truths_of_ranks(ranks)) == pytest.approx(len(ranks) / 2)


def test_lengths_are_characters() -> None:
    item = Item(id="1", cluster="c", subset="", messages=(), answers=("two words", "é"), truth=(1.0, 0.0))
    assert diagnosis.answers_of(Scored(item, (0.5, 0.1))) == Answers("c", (0.5, 0.1), (1.0, 0.0), (9, 1))


def test_which_measures_an_item_can_enter() -> None:
    pair = Answers("a", (1.0, 0.0), (1.0, 0.0), (5, 9))
    equal = Answers("b", (1.0, 0.0), (1.0, 1.0), (5, 9))
    three = Answers("c", (3.0, 2.0, 1.0), (1.0, 0.5, 0.0), (1, 2, 3))
    assert set(diagnosis.diagnose([pair], seed=0, resamples=5)) == {"length", "calibration"}
    assert diagnosis.diagnose([equal], seed=0, resamples=5) == {"length": {"pairs": 0, "clusters": 0, "by_gap": []}}
    found = diagnosis.diagnose([pair, equal, three, three], seed=0, resamples=5)
    assert found["calibration"]["n"] == 3
    assert found["length"]["pairs"] == 1 + 3 + 3
    assert found["correlation"]["reward_tau"] == pytest.approx(-1.0)
    assert found["best_of_n"]["prompts"] == 2
    assert [row["truth"] for row in found["best_of_n"]["n"]] == pytest.approx([0.5, 5 / 6, 1.0])


@pytest.mark.skipif(not DATA.is_dir(), reason="the real score files are not here (STARLING_DATA)")
def test_the_public_34b_model_on_human_preference() -> None:
    """Published: accuracy .807, mean −log softmax .468; people prefer the longer answer in 63.0 %, the model in 69.1 % (of all
    1,000 pairs, where equal lengths count as not longer)."""
    rows = json.loads(gzip.decompress((DATA / "human_preference.starling-rm-34b.json.gz").read_bytes()))
    items = [
        Answers(
            r["prompt"], (r["score_a"], r["score_b"]), (float(r["winner"] == "model_a"), float(r["winner"] == "model_b")),
            (len(r["response_a"]), len(r["response_b"])),
        )
        for r in rows
    ]  # fmt: skip
    found = diagnosis.diagnose(items, seed=0)
    raw = found["calibration"]["raw"]
    assert raw["accuracy"] == pytest.approx(0.807)
    assert round(raw["log_loss"], 3) == 0.468
    assert found["length"]["truth_longer"] == pytest.approx(0.63, abs=0.005)
    assert found["length"]["model_longer"] == pytest.approx(0.691, abs=0.005)
    assert found["length"]["excess_ci"][0] > 0.02
    assert found["calibration"]["fitted"]["log_loss"] < raw["log_loss"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the real score files are not here (STARLING_DATA)")
def test_every_benchmark_says_the_same_about_lengths_and_calibration() -> None:
    """From the public score file by the command's own path: the published number, and the shared measures beside it."""
    path = DATA / "human_preference.starling-rm-34b.json.gz"
    found = reward_benchmarks.measure(reward_benchmarks.read_scores(reward_benchmarks.benchmark("human_preference"), path), 100)
    assert round(found["accuracy"], 3) == found["calibration"]["raw"]["accuracy"] == 0.807
    assert found["length"]["pairs"] == found["calibration"]["n"] == found["n"] == 1000
    assert "best_of_n" not in found


def test_ranks_are_valued_by_the_answers_they_beat() -> None:
    item = Item(id="1", cluster="c", subset="", messages=(), answers=("a", "b", "c"), truth=(-1.0, -2.0, -7.0))
    equal = Item(id="2", cluster="c", subset="", messages=(), answers=("a", "b", "c"), truth=(-1.0, -1.0, -1.0))
    scored = [Scored(item, (3.0, 2.0, 1.0)), Scored(equal, (1.0, 2.0, 3.0))]
    ranked = diagnosis.describe(scored, ranked=True, seed=0, resamples=5)
    assert [row["truth"] for row in ranked["best_of_n"]["n"]] == pytest.approx([0.5, 5 / 6, 1.0])
    plain = diagnosis.describe(scored, ranked=False, seed=0, resamples=5)
    assert plain["best_of_n"]["n"][2]["truth"] == -1.0
    assert plain["best_of_n"]["prompts"] == 1
    assert diagnosis.describe(scored[1:], ranked=False, seed=0) == {}

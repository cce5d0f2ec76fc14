"""The public files: the published digits from released scores, and the known figures of trivial scorers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from starling.evaluate import reward_benchmarks as benchmarks
from starling.evaluate.reward_benchmarks import Scored, benchmark

DATA = Path(os.environ.get("STARLING_DATA", "../shared/data"))


def real(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f"the public data is not at {DATA / name}; set STARLING_DATA")
    return DATA / name


def from_scores(name: str) -> dict[str, Any]:
    path = real(f"reward_benchmarks/{name}.starling-rm-34b.json.gz")
    return benchmarks.measure(benchmarks.read_scores(benchmark(name), path), resamples=500)


def by_length(name: str, path: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The longest answer as the reward."""
    items, reading = benchmarks.read_items(benchmark(name), real(path))
    scored = [Scored(item, tuple(float(len(answer)) for answer in item.answers)) for item in items]
    return benchmark(name).measure(scored, 200, 0), {reason: n for reason, n in reading.left_out.items() if n}


def digits(found: dict[str, Any]) -> dict[str, float]:
    return {name: round(part["accuracy"], 3) for name, part in found.items()}


def test_human_preference_of_the_public_34b_model() -> None:
    found = from_scores("human_preference")
    assert (found["accuracy"], found["n"], found["clusters"], found["ties"]) == (0.807, 1000, 990, 0)
    assert round(found["loss"], 3) == 0.468
    assert found["ci"] == pytest.approx([0.783, 0.831], abs=0.004)
    assert found["over_baseline"]["ci"][0] > 0.1


def test_truthful_qa_of_the_public_34b_model() -> None:
    found = from_scores("truthful_qa")
    assert digits(found["parts"]) == {"a_over_b": 0.718, "c_over_b": 0.793, "c_not_below_a": 0.623}
    assert (round(found["accuracy"], 3), found["n"]) == (0.712, 817)
    assert found["honest"]["c_over_a"]["n"] == 817 - 70


@pytest.mark.parametrize(
    ("file", "questions", "chance", "longest", "binary"),
    [("TruthfulQA_817.csv", 817, 0.226, 0.382, False), ("TruthfulQA_2025_790.csv", 790, 0.223, 0.368, True)],
)
def test_truthfulness_by_trivial_scorers(file: str, questions: int, chance: float, longest: float, binary: bool) -> None:
    """Ties share; taken as wrong, as elsewhere, the longest answer would have .364 and .349."""
    found, left_out = by_length("truthfulness", f"truthfulqa/{file}")
    assert (found["n"], left_out) == (
        questions,
        {"answer_both_correct_and_incorrect": left_out["answer_both_correct_and_incorrect"]},
    )
    assert round(found["baselines"]["chance"], 3) == chance
    assert round(found["accuracy"], 3) == round(found["baselines"]["longest"], 3) == longest
    assert found["over_baseline"] == {"baseline": "longest", "difference": 0.0, "ci": [0.0, 0.0]}
    assert ("binary" in found["parts"]) == binary


def test_labelled_answers_of_the_published_file() -> None:
    items, reading = benchmarks.read_items(benchmark("finetune_truth"), real("truthfulqa/finetune_truth.jsonl.gz"))
    answers = sum(len(item.answers) for item in items)
    assert len(items) == 817
    assert answers + reading.left_out["answer_again"] + reading.left_out["labelled_true_and_false"] == 22_434
    assert sum(sum(item.truth) for item in items) / answers == pytest.approx(0.43, abs=0.01)


def test_harmless_pairs_by_length() -> None:
    found, left_out = by_length("harmless", "hh_rlhf/harmless-base.test.jsonl.gz")
    assert found["n"] + sum(left_out.values()) == 2312
    assert left_out == {"turns_not_readable": 9}
    assert found["accuracy"] == pytest.approx(0.443, abs=0.002)
    assert found["baselines"]["shortest"] == pytest.approx(0.557, abs=0.006)


def test_xstest_of_three_models() -> None:
    found, left_out = by_length("xstest", "safety/xstest")
    assert found["clusters"] + left_out["no_refusal_or_no_compliance"] == 450
    assert set(found["parts"]) == {"safe", "unsafe"}
    assert found["accuracy"] == pytest.approx(sum(part["accuracy"] for part in found["parts"].values()) / 2)


def test_rankings_by_length_and_by_model() -> None:
    """All instructions here; on a held-out part of them the longest answer has .721 / .513 and the model's rank .747 / .618."""
    found, left_out = by_length("kwise", "nectar_like/train.jsonl.gz")
    assert (found["rankings"], found["n"], found["clusters"], left_out) == (5066, 5066 * 21, 644, {})
    assert found["accuracy"] == found["baselines"]["longest"] == pytest.approx(0.721, abs=0.012)
    assert found["top1"]["accuracy"] == pytest.approx(0.513, abs=0.02)
    assert found["baselines"]["answering_model"] == pytest.approx(0.747, abs=0.006)
    assert found["top1_baselines"]["answering_model"] == pytest.approx(0.618, abs=0.02)
    assert found["baselines"]["most_distinct_words"] == pytest.approx(0.7385, abs=0.016)

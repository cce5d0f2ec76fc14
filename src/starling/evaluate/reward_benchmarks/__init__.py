"""Benchmarks of reward models: does the reward order answers as people, facts and safety do, and better than trivial scorers?

    items         the types: Item, Scored, Benchmark
    reading       rows of files → items; what is broken, what is left out
    measures      the arithmetic: pairs, shares, top-1, AUROC
    preference    human_preference, safety_preference, verbosity, harmless, pairs
    truth         truthful_qa, truthfulness, finetune_truth
    xstest        refusals of unsafe and answers to safe requests
    ranked        rankings of K answers
    gold_answers  many answers with a number each: best of n
    rewardbench   both versions' arithmetic; rewardbench_files: their data, score and result files
    diagnosis     what all share: length, calibration, best_of_n; intervals behind them
    compare       several models on the same items; folders: results of one model on disk
    registry      every benchmark by name
    scores        items with a model's scores, score files; model_scores: a model that scores them

`measure` gives one benchmark's result as plain data; `score_all` and `read_scores` give what it measures. Nothing
here imports torch before a model is loaded.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from starling.evaluate.reward_benchmarks import diagnosis
from starling.evaluate.reward_benchmarks.intervals import RESAMPLES
from starling.evaluate.reward_benchmarks.items import Benchmark, Item, Reading, Scored
from starling.evaluate.reward_benchmarks.model_scores import Kept, read_items, score_all
from starling.evaluate.reward_benchmarks.registry import BENCHMARKS, benchmark
from starling.evaluate.reward_benchmarks.scores import ScoredSet, read_scores, write_scores

__all__ = [
    "BENCHMARKS",
    "RESAMPLES",
    "SEED",
    "Benchmark",
    "Item",
    "Kept",
    "Reading",
    "Scored",
    "ScoredSet",
    "benchmark",
    "measure",
    "read_items",
    "read_scores",
    "score_all",
    "write_scores",
]

FEW_CLUSTERS = 20
"""Below so many clusters intervals are too narrow; tests over 5 to 30 reject too often (Cameron, Gelbach and Miller 2008)."""
SEED = 0
"""Of the resamples: the same scores give the same interval."""


def measure(found: ScoredSet, resamples: int = RESAMPLES, seed: int = SEED) -> dict[str, Any]:
    """One benchmark's result: its measure's numbers with the counts of what was left out, as plain data for JSON.

    Returns:
        {"benchmark", "model", "data", "accuracy", "ci", "n", "clusters", "ties", "parts", "baselines", …, "left_out", "interval"}
    """
    measured = benchmark(found.benchmark).measure(found.items, resamples, seed)
    return {
        "benchmark": found.benchmark,
        "model": found.model,
        "data": found.data,
        **diagnosis.describe(found.items, ranked=found.benchmark == "kwise", seed=seed, resamples=resamples),
        **measured,
        "cut": found.cut,
        "left_out": dict(Counter(found.left_out) + Counter(measured.get("left_out", {}))),
        "interval": {
            "level": 0.95, "method": "percentile bootstrap over clusters", "resamples": resamples, "seed": seed,
            "few_clusters": measured["clusters"] < FEW_CLUSTERS,
        },
    }  # fmt: skip

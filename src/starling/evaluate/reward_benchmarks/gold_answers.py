"""Many answers per prompt with a number for what each is worth: how good is what the reward picks, the more it may choose from?

    accuracy     share of prompts where the highest reward is on a truly best answer; equal highest rewards share
    best_of_n    the curve of `best_of_n.curve`, in the units of the file's numbers

The number may be a human grade, a checker's verdict, or the score of a second reward model (proxy and gold, Gao et al. 2022). For
the last, two score files of the same items will do: `with_gold` takes the truth of one from the scores of the other.

File: one prompt per row with `answers`, a list of {answer, gold}, optionally with `score`, the reward. Broken rows are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from starling.evaluate.reward_benchmarks import best_of_n, measures
from starling.evaluate.reward_benchmarks.items import Benchmark, Item, Reading, Scored
from starling.evaluate.reward_benchmarks.reading import (
    LeftOut,
    ReadItem,
    RowFields,
    answers_of,
    cluster_of,
    conversation,
    finite,
    identity,
    items_of,
    scores_of,
)


def read(path: Path, reading: Reading) -> Iterator[ReadItem]:
    """Items whose truth is the answers' `gold`."""
    return items_of(path, reading, _prompt, strict=False)


def _prompt(row: RowFields, number: str) -> ReadItem:
    messages = conversation(row.get("prompt"))
    answers = answers_of(row, "gold")
    gold = tuple(finite(a.get("gold"), "gold") for a in answers)
    if len(set(gold)) == 1:
        raise LeftOut("all_equal")
    item = Item(
        id=identity(row, number, "id"),
        cluster=cluster_of(messages),
        subset="",
        messages=messages,
        answers=tuple(a["answer"] for a in answers),
        truth=gold,
    )
    return item, scores_of(answers)


def measure(scored: Iterable[Scored], resamples: int, seed: int) -> dict[str, Any]:
    """Both numbers of the module's docstring, with trivial scorers beside the first."""
    rows = list(scored)
    if not rows:
        return {"accuracy": None, "ci": None, "n": 0, "clusters": 0, "parts": {}, "baselines": {}, "left_out": {}}
    numbers: dict[str, int] = {}
    cluster_N = np.array([numbers.setdefault(r.item.cluster, len(numbers)) for r in rows])
    tops = [measures.top_one(r.scores, r.item.truth) for r in rows]
    baselines = {"chance": float(np.mean([r.item.truth.count(max(r.item.truth)) / len(r.item.truth) for r in rows]))}
    for name, score in measures.TRIVIAL.items():
        baselines[name] = float(np.mean([measures.top_one([score(a) for a in r.item.answers], r.item.truth) for r in rows]))
    scores, truths, clusters = [r.scores for r in rows], [r.item.truth for r in rows], [r.item.cluster for r in rows]
    found = best_of_n.curve(scores, truths, clusters, seed=seed, resamples=resamples)
    said = measures.share(tops, cluster_N, resamples, seed)
    return {**said, "clusters": len(numbers), "parts": {}, "baselines": baselines, "best_of_n": found}


def with_gold(proxy: Iterable[Scored], gold: Iterable[Scored], reading: Reading) -> list[Scored]:
    """The proxy's items and scores with the gold model's scores of the same answers for the truth.

    What only one of them has, or has with other answers, is counted in `reading`.
    """
    by_id = {g.item.id: g for g in gold}
    found = []
    for one in proxy:
        other = by_id.pop(one.item.id, None)
        if other is None:
            reading.left_out["no_gold"] += 1
        elif other.item.answers != one.item.answers:
            reading.left_out["other_answers"] += 1
        elif len(set(other.scores)) == 1:
            reading.left_out["all_equal"] += 1
        else:
            found.append(replace(one, item=replace(one.item, truth=other.scores)))
    if by_id:
        reading.left_out["no_proxy"] += len(by_id)
    return found


BENCHMARKS = (
    Benchmark(
        name="best_of_n",
        asks="How good is the answer that the reward picks, the more it may choose from?",
        file="jsonl, json or parquet: prompt, answers [{answer, gold}], gold a number; broken rows are counted",
        source="your own graded samples; --gold SCORES takes the scores of a second reward model for the truth",
        read=read,
        measure=measure,
    ),
)

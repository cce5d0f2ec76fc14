"""Rankings of K answers: the K-wise set itself, held out. Pairs, neighbours, first place, Kendall's tau.

    accuracy     over all pairs of a ranking that differ in rank, pooled over rankings
    adjacent     the same over pairs of neighbouring ranks, the hardest ones
    top1         share of rankings whose highest reward is on a best answer; equal highest rewards share
    kendall_tau  tau-b per ranking, averaged

Rankings whose answers are all equally good are left out and counted: any order is right there. The evaluate stage measures its
answers with the same function, their truth being a gold score or a rank.

Trivial scorers beside it (docs of the data's origin: a scorer is worth something above them): those of `measures.TRIVIAL`, and
`answering_model`, which gives each answer the mean rank that its model has in the *other* clusters, counted from the middle of
each ranking. It knows who wrote an answer and reads nothing of it.

File: the public schema of Nectar, ranks as whole numbers or floats, ties allowed; or the folder of an imported dataset.
Broken rows are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from starling import stats
from starling.evaluate.reward_benchmarks import measures
from starling.evaluate.reward_benchmarks.items import Benchmark, Item, Reading, Scored
from starling.evaluate.reward_benchmarks.reading import (
    Broken,
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

IMPORTED_FILE = "rankings.parquet"


def read(path: Path, reading: Reading) -> Iterator[ReadItem]:
    """Items of rankings; the truth of an answer is minus its rank, its label the model that wrote it."""
    if path.is_dir() and (path / IMPORTED_FILE).is_file():
        path = path / IMPORTED_FILE
    return items_of(path, reading, _ranking, strict=False)


def _ranking(row: RowFields, number: str) -> ReadItem:
    messages = conversation(row.get("prompt"))
    answers = answers_of(row, "model, rank")
    ranks = [_rank(a.get("rank")) for a in answers]
    if len(set(ranks)) == 1:
        raise LeftOut("all_tied")
    models = tuple(str(a.get("model") or "unknown") for a in answers)
    sources = row.get("source") or ()
    item = Item(
        id=identity(row, number, "id"),
        cluster=cluster_of(messages),
        subset=sources if isinstance(sources, str) else ", ".join(map(str, sources)),
        messages=messages,
        answers=tuple(a["answer"] for a in answers),
        truth=tuple(-rank for rank in ranks),
        labels=models,
    )
    return item, scores_of(answers)


def _rank(rank: Any) -> float:
    try:
        return finite(rank, "rank")
    except Broken:
        raise Broken("rank_not_a_number", f"a rank is {rank!r}") from None


def measure(scored: Iterable[Scored], resamples: int, seed: int) -> dict[str, Any]:
    """All of the module's docstring; every number None when no two answers of an item differ in truth."""
    rows = [found for found in scored if len(set(found.item.truth)) > 1]
    items = [found.item for found in rows]
    trivial = [measures.trivial_scores(item) for item in items]
    for known, by_model in zip(trivial, _scores_by_model(items), strict=False):
        known["answering_model"] = by_model
    pairs = measures.Pairs()
    for found, known in zip(rows, trivial, strict=True):
        pairs.add(found.item, found.scores, trivial=known)
    said = measures.describe(pairs, resamples, seed)
    if not rows:
        return said | dict.fromkeys(("adjacent", "top1", "top1_baselines", "kendall_tau"))
    numbers: dict[str, int] = {}
    cluster_N = np.array([numbers.setdefault(item.cluster, len(numbers)) for item in items])
    next_N = pairs.steps == 1
    tops = [measures.top_one(found.scores, found.item.truth) for found in rows]
    taus = [stats.kendall_tau(found.scores, found.item.truth) for found in rows]
    tau = stats.bootstrap_mean(taus, cluster_N.tolist(), resamples=resamples, seed=seed)
    return said | {
        "rankings": len(rows),
        "adjacent": measures.share(pairs.margins[next_N] > 0, pairs.clusters[next_N], resamples, seed),
        "top1": measures.share(tops, cluster_N, resamples, seed),
        "top1_baselines": _top_baselines(items, trivial),
        "kendall_tau": {"tau": tau.mean, "ci": [tau.low, tau.high], "n": len(rows)},
    }


# ── trivial scorers ──────────────────────────────────────────────────────────────────────────────────────────────────


def _scores_by_model(items: Sequence[Item]) -> list[list[float]]:
    """Each answer's score by `answering_model`; empty where the answers' models are not known.

    A model that answered in no other cluster has the mean of all answers.
    """
    if not all(item.labels for item in items):
        return []
    total: dict[str, list[float]] = {}
    inside: dict[tuple[str, str], list[float]] = {}
    for item in items:
        mean = sum(item.truth) / len(item.truth)
        for label, truth in zip(item.labels, item.truth, strict=True):
            for sums in (total.setdefault(label, [0.0, 0.0]), inside.setdefault((item.cluster, label), [0.0, 0.0])):
                sums[0] += truth - mean
                sums[1] += 1

    def score(item: Item, label: str) -> float:
        truth, count = (total[label][i] - inside[item.cluster, label][i] for i in (0, 1))
        return truth / count if count else 0.0

    return [[score(item, label) for label in item.labels] for item in items]


def _top_baselines(items: Sequence[Item], trivial: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    chance = [item.truth.count(max(item.truth)) / len(item.truth) for item in items]
    found = {"chance": float(np.mean(chance))}
    for name in trivial[0]:
        tops = [measures.top_one(known[name], item.truth) for item, known in zip(items, trivial, strict=True)]
        found[name] = float(np.mean(tops))
    return found


BENCHMARKS = (
    Benchmark(
        name="kwise",
        asks="Does the reward order the answers of held-out rankings as they are ranked?",
        file="jsonl, json or parquet in Nectar's schema: prompt, answers [{answer, model, rank}], source; or the folder of an "
        "imported dataset. Ties are allowed, broken rows are counted",
        source="your own held-out rankings, e.g. test.parquet of a run's dataset; or berkeley-nest/Nectar",
        read=read,
        measure=measure,
    ),
)

"""The figures of a dataset that its card shows, in one pass over its files, every row checked on the way.

Counts and sums only, taken from columns, so a million answers cost seconds and no memory. Ranks of models are means over the
rows that they have an answer in; where rows differ in K, or models in the prompts they answered, such means are no league table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from starling.nectar.check import checked_batches

if TYPE_CHECKING:
    import pyarrow as pa

CONFIDENCES = ("all against", "most against", "balanced", "most for", "all for")
"""What the judge's verdicts on a pair say about its order: confidence 0, below ½, ½, above ½, 1."""


@dataclass
class Ranks:
    """How some answers rank."""

    answers: int = 0
    rank_sum: float = 0.0
    firsts: int = 0

    @property
    def mean(self) -> float | None:
        """Mean rank; None without answers."""
        return self.rank_sum / self.answers if self.answers else None


@dataclass
class ModelFigures:
    """How one model's answers rank, over all rows and by the judge's view of the request."""

    every: Ranks = field(default_factory=Ranks)
    good_natured: Ranks = field(default_factory=Ranks)
    not_good_natured: Ranks = field(default_factory=Ranks)


@dataclass
class Summary:
    """What is in a dataset. Counters count rows unless their name says otherwise."""

    rows: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    """By the number of ranked answers."""
    turns: Counter[int] = field(default_factory=Counter)
    """By user turns."""
    sources: Counter[str] = field(default_factory=Counter)
    """By where the prompt was found; a row with several counts for each."""
    good_natured: Counter[bool | None] = field(default_factory=Counter)
    models: dict[str, ModelFigures] = field(default_factory=dict)
    tied: int = 0
    """Rows in which answers share a rank."""
    contested: Counter[bool | None] = field(default_factory=Counter)
    judge_calls: Counter[int | None] = field(default_factory=Counter)
    confidence: Counter[str] = field(default_factory=Counter)
    """Pairs by what the verdicts on them say about their order (`CONFIDENCES`)."""

    @property
    def good_natured_share(self) -> float | None:
        """Share of the rows called good natured, of those that say."""
        said = self.good_natured[True] + self.good_natured[False]
        return self.good_natured[True] / said if said else None


def summarise(paths: Iterable[Path]) -> Summary:
    """The figures of all rows of some parquet files.

    Raises:
        InputError: a file cannot be read, or a row is not in the public schema.
    """
    found = Summary()
    for path in paths:
        for batch in checked_batches(path):
            _add(found, batch)
    return found


def _add(found: Summary, batch: pa.RecordBatch) -> None:
    import pyarrow.compute as pc

    found.rows += batch.num_rows
    _count(found.turns, batch.column("turns"))
    _count(found.answers, batch.column("num_responses"))
    _count(found.sources, batch.column("source").flatten())
    _count(found.good_natured, batch.column("good_natured"))
    _add_models(found, batch)
    names = batch.schema.names
    if "contested" in names:
        _count(found.contested, batch.column("contested"))
    if "judge_calls" in names:
        _count(found.judge_calls, batch.column("judge_calls"))
    if "pair_confidence" in names:
        confidence = np.asarray(pc.struct_field(batch.column("pair_confidence").flatten(), "confidence"), dtype=np.float64)
        kinds = 2 + np.sign(confidence - 0.5).astype(int)  # 1, 2, 3; the ends are told apart below
        kinds[confidence == 0] = 0
        kinds[confidence == 1] = 4
        for kind, count in enumerate(np.bincount(kinds, minlength=len(CONFIDENCES))):
            found.confidence[CONFIDENCES[kind]] += int(count)


def _count(counter: Counter, column: pa.Array) -> None:  # type: ignore[type-arg]
    for entry in column.value_counts().to_pylist():
        counter[entry["values"]] += entry["counts"]


def _add_models(found: Summary, batch: pa.RecordBatch) -> None:
    import pyarrow.compute as pc

    answers = batch.column("answers")
    flat = answers.flatten()
    names = pc.struct_field(flat, "model").dictionary_encode()
    ranks = np.asarray(pc.struct_field(flat, "rank"), dtype=np.float64)
    sizes = np.asarray(pc.list_value_length(answers), dtype=np.int64)
    row = np.repeat(np.arange(len(sizes)), sizes)
    found.tied += len(np.unique(row[1:][(row[1:] == row[:-1]) & (ranks[1:] == ranks[:-1])]))
    model = np.asarray(names.indices, dtype=np.int64)
    view = np.asarray(pc.fill_null(batch.column("good_natured").cast("int8"), -1))[row]
    labels = names.dictionary.to_pylist()
    for part, chosen in (("every", view > -2), ("good_natured", view == 1), ("not_good_natured", view == 0)):
        counts = np.bincount(model[chosen], minlength=len(labels))
        sums = np.bincount(model[chosen], weights=ranks[chosen], minlength=len(labels))
        firsts = np.bincount(model[chosen & (ranks == 1)], minlength=len(labels))
        for index, label in enumerate(labels):
            ranks_of: Ranks = getattr(found.models.setdefault(label, ModelFigures()), part)
            ranks_of.answers += int(counts[index])
            ranks_of.rank_sum += float(sums[index])
            ranks_of.firsts += int(firsts[index])

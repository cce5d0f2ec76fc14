"""Battles of models with known strengths and known effects of style, in the layout of FastChat's logs, as a parquet file.

Popularity falls off so that the rarest of a hundred models meets others a hundredth as often as the most popular, as in arenas:
of 200,000 battles that leaves it under two hundred. numpy and pyarrow only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

EFFECTS = np.array([0.23, 0.1, 0.05, 0.0])
"""Log-odds per spread of length, headers, lists, bold."""
_AT_ONCE = 1_000_000
"""Battles made and written at once."""


@dataclass(frozen=True)
class Made:
    """What is simulated."""

    battles: int
    models: int = 100
    ties: float = 0.3
    seed: int = 0
    style: bool = True


def strengths(made: Made) -> Any:
    """The true strengths [M], natural units, summing to 0."""
    strength_M = np.random.default_rng([made.seed, 1]).normal(0, 0.7, made.models)
    return strength_M - strength_M.mean()


def write(path: Path, made: Made) -> None:
    """Make the battles and write them, a million at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, names = np.random.default_rng([made.seed, 2]), pa.array([f"model-{i:03d}" for i in range(made.models)])
    popular_M = np.exp(-4.6 * np.arange(made.models) / max(made.models - 1, 1))
    popular_M /= popular_M.sum()
    writer = None
    for start in range(0, made.battles, _AT_ONCE):
        count = min(_AT_ONCE, made.battles - start)
        a_N, b_N = rng.choice(made.models, size=(2, count), p=popular_M)
        while (same_N := a_N == b_N).any():
            b_N[same_N] = rng.choice(made.models, size=int(same_N.sum()), p=popular_M)
        strength_M = strengths(made)
        logit_N = strength_M[a_N] - strength_M[b_N]
        columns = {"model_a": names.take(pa.array(a_N)), "model_b": names.take(pa.array(b_N))}
        if made.style:
            tokens_2N, marks_32N = rng.lognormal(5.5, 0.8, (2, count)).astype(np.int64), rng.poisson(1.5, (3, 2, count))
            counts_42N = np.concatenate([tokens_2N[None], marks_32N])
            x_4N = (counts_42N[:, 0] - counts_42N[:, 1]) / (counts_42N.sum(1) + 1)
            logit_N = logit_N + EFFECTS @ (x_4N / x_4N.std(1, keepdims=True))
            columns["conv_metadata"] = _metadata(pa, counts_42N)
        first_N = rng.random(count) < 1 / (1 + np.exp(-logit_N))
        winner_N = np.where(rng.random(count) < made.ties, 2, np.where(first_N, 0, 1))
        columns["winner"] = pa.array(["model_a", "model_b", "tie"]).take(pa.array(winner_N))
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _metadata(pa: Any, counts_42N: Any) -> Any:
    """FastChat's `conv_metadata`: tokens, and marks by their kinds; all headers are of the first level, and so on."""
    fields: dict[str, Any] = {}
    none = pa.array(np.zeros(counts_42N.shape[2], np.int64))
    for side, (tokens, headers, lists, bold) in zip("ab", counts_42N.transpose(1, 0, 2), strict=True):
        fields[f"sum_assistant_{side}_tokens"] = pa.array(tokens)
        levels = {"h1": pa.array(headers), **{f"h{level}": none for level in range(2, 7)}}
        fields[f"header_count_{side}"] = pa.StructArray.from_arrays(list(levels.values()), names=list(levels))
        fields[f"list_count_{side}"] = pa.StructArray.from_arrays([pa.array(lists), none], names=["ordered", "unordered"])
        fields[f"bold_count_{side}"] = pa.StructArray.from_arrays([pa.array(bold), none], names=["**", "__"])
    return pa.StructArray.from_arrays(list(fields.values()), names=list(fields))

"""Items with a model's scores, and files of them.

A score file is jsonl (.gz too). Its first line is about the whole: {"benchmark", "model", "data", "left_out", "cut"}; each other
line is an item with its scores: {"id", "cluster", "subset", "messages", "answers", "truth", "labels", "scores"}. So a benchmark
is measured again, or two models compared on the same items, without a model and without the benchmark's file. The public score
files, in a benchmark's own shape with `score_a`, `score_b` … beside the answers, are read as well.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from starling.errors import InputError
from starling.evaluate.reward_benchmarks.items import Benchmark, Item, Reading, Scored
from starling.evaluate.reward_benchmarks.reading import Broken, ReadItem, RowFields, finite, items_of, turns
from starling.rows import Row, read_rows


@dataclass(frozen=True, kw_only=True)
class ScoredSet:
    """A benchmark's items with one model's scores, and what is known of where they come from."""

    benchmark: str
    model: str
    """The model's folder, or what the score file says of it; empty when it says nothing."""
    data: str
    """Name of the file that the items were read from."""
    items: tuple[Scored, ...]
    left_out: Mapping[str, int]
    cut: int = 0
    """Answers whose conversation was longer than the model can read, and was cut on the left."""


def counted(reading: Reading) -> dict[str, int]:
    """The reasons that occurred."""
    return {reason: n for reason, n in sorted(reading.left_out.items()) if n}


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_scores(path: Path, found: ScoredSet) -> None:
    """Write a score file; it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with _writable(part, path.name.endswith(".gz")) as file:
            about = {
                "benchmark": found.benchmark, "model": found.model, "data": found.data,
                "left_out": dict(found.left_out), "cut": found.cut,
            }  # fmt: skip
            file.write(json.dumps(about, ensure_ascii=False) + "\n")
            for row in found.items:
                file.write(json.dumps(_row(row), ensure_ascii=False) + "\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _writable(path: Path, compressed: bool) -> IO[str]:
    if compressed:  # without time and name, so that the same scores are the same bytes
        raw = gzip.GzipFile(filename="", mode="wb", fileobj=path.open("wb"), mtime=0)
        return io.TextIOWrapper(cast(IO[bytes], raw), encoding="utf-8")
    return path.open("w", encoding="utf-8")


def _row(row: Scored) -> dict[str, Any]:
    item = row.item
    return {
        "id": item.id,
        "cluster": item.cluster,
        "subset": item.subset,
        "messages": [{"role": m.role, "content": m.content} for m in item.messages],
        "answers": item.answers,
        "truth": item.truth,
        "labels": item.labels,
        "scores": row.scores,
    }


def read_scores(benchmark: Benchmark, path: Path) -> ScoredSet:
    """Items and scores of a score file, ours or a public one.

    Raises:
        InputError: the file is not of this benchmark, an item has no score, or a score is no finite number.
    """
    reading, about = Reading(), _about(path)
    if about is None:
        source = benchmark.read(path, reading)
    elif about["benchmark"] == benchmark.name:
        source = items_of(path, reading, _parse, strict=True, rows=islice(read_rows(path), 1, None))
        reading.left_out.update(about["left_out"])
    else:
        raise InputError(
            f"The scores are of the benchmark '{about['benchmark']}', not of '{benchmark.name}'",
            where=str(path),
            cure=f"name the file as {about['benchmark']}={path}",
        )
    rows = []
    for item, scores in source:
        if scores is None:
            raise InputError(
                "An answer has no score",
                where=f"{path}, item {item.id}",
                cure="give a file with score_a, score_b … in every row (kwise: score in every answer), or --model and --data",
            )
        rows.append(Scored(item, scores))
    model, data, cut = (about["model"], about["data"], about["cut"]) if about else ("", path.name, 0)
    return ScoredSet(benchmark=benchmark.name, model=model, data=data, items=tuple(rows), left_out=counted(reading), cut=cut)


def _about(path: Path) -> dict[str, Any] | None:
    """The first line of a score file of ours; None for other files."""
    if path.is_dir() or not path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        return None
    first: Row | None = next(iter(read_rows(path)), None)
    value = first.value if first is not None else None
    if value is None or set(value) != {"benchmark", "model", "data", "left_out", "cut"}:
        return None
    counts, cut = value["left_out"], value["cut"]
    if not isinstance(counts, dict) or not all(isinstance(n, int) and n >= 0 for n in (cut, *counts.values())):
        raise InputError("The first line of the score file is damaged", where=f"{path}, line 1", cure="score again")
    named = {name: str(value[name]) for name in ("benchmark", "model", "data")}
    return {**named, "left_out": counts, "cut": cut}


def _parse(row: RowFields, number: str) -> ReadItem:
    missing = [
        name for name in ("id", "cluster", "subset", "messages", "answers", "truth", "labels", "scores") if name not in row
    ]
    if missing:
        raise Broken("field_missing", f"there is no field '{missing[0]}'")
    listed: dict[str, Sequence[Any]] = {name: row[name] for name in ("answers", "truth", "labels", "scores")}
    if not all(isinstance(value, list) for value in listed.values()) or not all(isinstance(a, str) for a in listed["answers"]):
        raise Broken("field_not_a_list", "answers, truth, labels and scores must be lists")
    scores = tuple(finite(score, "scores") for score in listed["scores"])
    if len(scores) != len(listed["answers"]):
        raise Broken("scores_missing", f"{len(listed['answers'])} answers have {len(scores)} scores")
    try:
        item = Item(
            id=str(row["id"]),
            cluster=str(row["cluster"]),
            subset=str(row["subset"]),
            messages=turns(row["messages"]),
            answers=tuple(listed["answers"]),
            truth=tuple(finite(t, "truth") for t in listed["truth"]),
            labels=tuple(map(str, listed["labels"])),
        )
    except ValueError as error:
        raise Broken("lengths_differ", str(error)) from None
    return item, scores

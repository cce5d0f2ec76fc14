"""A folder of results of one reward model, and the comparison of several.

    results.json       {"model", "results": [one object per benchmark]}
    rewardbench*/      RewardBench's own files, see rewardbench_files
    verdicts.jsonl.gz  one row per item: benchmark, id, cluster, value, weight; what a comparison of models needs

A comparison pairs items by benchmark and id, so it notices when two models were not asked the same.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from starling.errors import InputError
from starling.evaluate.reward_benchmarks import compare, rewardbench, rewardbench_files
from starling.evaluate.reward_benchmarks.compare import Verdict
from starling.evaluate.reward_benchmarks.scores import ScoredSet
from starling.rows import read_rows

RESULTS_FILE = "results.json"
VERDICTS_FILE = "verdicts.jsonl.gz"


@dataclass(frozen=True)
class Folder:
    """What one model did on each benchmark, as numbers and item by item."""

    model: str
    results: list[dict[str, Any]]
    verdicts: Mapping[str, Sequence[Verdict]]
    sets: Sequence[ScoredSet] = ()
    """Scored items, of which RewardBench's are also written as its own tools would; not read again."""


def of_sets(model: str, sets: Sequence[ScoredSet], results: Sequence[dict[str, Any]]) -> Folder:
    """What one model did, from its scored items.

    RewardBench's verdicts carry the weights of its sections; every other benchmark is compared on its pairs.
    """
    special = {"rewardbench": rewardbench.verdicts_v1, "rewardbench-2": rewardbench.verdicts_v2}
    found = {s.benchmark: special.get(s.benchmark, compare.verdicts)(s.items) for s in sets}
    return Folder(model, list(results), {name: verdicts for name, verdicts in found.items() if verdicts}, tuple(sets))


def write(out: Path, found: Folder) -> None:
    """Write both files into `out`; the same results give the same bytes. results.json comes last: where it is, all is there."""
    out.mkdir(parents=True, exist_ok=True)
    with io.BytesIO() as buffer:
        with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:  # without a time and a name inside
            for benchmark, verdicts in found.verdicts.items():
                for verdict in verdicts:
                    row = {"benchmark": benchmark, **asdict(verdict)}
                    file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        _replace(out / VERDICTS_FILE, buffer.getvalue())
    for one, result in zip(found.sets, found.results, strict=False):
        _write_public(out, found.model, one, result)
    text = json.dumps({"model": found.model, "results": found.results}, indent=2, ensure_ascii=False, allow_nan=False)
    _replace(out / RESULTS_FILE, text.encode())


def _write_public(out: Path, model: str, scored: ScoredSet, result: Mapping[str, Any]) -> None:
    """RewardBench's own files in a folder of the benchmark's name; for version 1 also those of its command."""
    if scored.benchmark not in ("rewardbench", "rewardbench-2"):
        return
    version = 1 if scored.benchmark == "rewardbench" else 2
    parts = result["subsets"] if version == 1 else result["parts"]
    subsets = {name: part["accuracy"] for name, part in parts.items()}
    kept = [one for one in scored.items if version == 2 or len(one.scores) == 2]
    public = rewardbench_files.Result(model, subsets, chat_template="tokenizer")
    rewardbench_files.write_public(out / scored.benchmark, kept, public, version=version)
    if version == 1:
        rewardbench_files.write_command(out / scored.benchmark, kept, public)


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(path.name + ".tmp")
    draft.write_bytes(content)
    draft.replace(path)


def read(folder: Path) -> Folder:
    """A folder written by `write`.

    Raises:
        InputError: a file is missing or is not what it should be; with the row.
    """
    path = folder / RESULTS_FILE
    cure = "give a folder that `starling evaluate reward --out` wrote"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"There are no results here: {str(error).splitlines()[0]}", where=str(path), cure=cure) from None
    results = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, list) or not isinstance(found.get("model"), str) or not all(_is_result(r) for r in results):
        raise InputError("The file holds no results of reward benchmarks", where=str(path), cure=cure)
    verdicts: dict[str, list[Verdict]] = {}
    seen: set[tuple[str, str]] = set()
    for row in read_rows(folder / VERDICTS_FILE):
        verdict = _verdict(row.value)
        if verdict is None or (verdict[0], verdict[1].id) in seen:
            what = "is no verdict" if verdict is None else "has an item that was there before"
            raise InputError(f"Row {row.number} {what}", where=str(folder / VERDICTS_FILE), cure=cure)
        seen.add((verdict[0], verdict[1].id))
        verdicts.setdefault(verdict[0], []).append(verdict[1])
    return Folder(found["model"], results, verdicts)


def _is_result(result: Any) -> bool:
    return isinstance(result, dict) and isinstance(result.get("benchmark"), str)


def _verdict(row: Mapping[str, Any] | None) -> tuple[str, Verdict] | None:
    row = row or {}
    benchmark, name, cluster = (row.get(key) for key in ("benchmark", "id", "cluster"))
    value, weight = (_finite(row.get(key)) for key in ("value", "weight"))
    if not (isinstance(benchmark, str) and isinstance(name, str) and isinstance(cluster, str)):
        return None
    if value is None or weight is None or weight <= 0:
        return None
    return benchmark, Verdict(name, cluster, value, weight)


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        return None
    return float(value)


def compare_folders(folders: Sequence[Path], *, seed: int = 0) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """The results of several folders by model, and their comparison; see `compare.compare`.

    Folders of the same model's name are told apart by the folders' own names.

    Raises:
        InputError: a folder cannot be read, or there is nothing to compare.
    """
    found = [read(folder) for folder in folders]
    models = [f.model for f in found]
    names: list[str] = []
    for folder, model in zip(folders, models, strict=True):
        name = model if models.count(model) == 1 else f"{model} ({folder.resolve().name})"
        names.append(name if name not in names else f"{name} #{len(names) + 1}")
    results = {name: f.results for name, f in zip(names, found, strict=True)}
    return results, compare.compare({name: f.verdicts for name, f in zip(names, found, strict=True)}, seed=seed)

"""AlpacaEval's files: model_outputs.json, annotations.json and leaderboard.csv, read and written.

    model_outputs.json   [{dataset, instruction, output, generator}, …]
    annotations.json     [{instruction, output_1, generator_1, dataset, output_2, generator_2, annotator, preference,
                         price_per_example, time_per_example, raw_completion, glm_preference?}, …]; output_1 is the baseline's
    leaderboard.csv      the model, then the columns of `LEADERBOARD`
    a compact table      {model, annotation_row, instruction_id, preference, swapped, len_1, len_2}: annotations without texts

Source: tatsu-lab/alpaca_eval 0.6.6 and its results folder. Any of them may be gzipped; rows may also stand in .jsonl, .csv or
.parquet. Nothing of a text is kept but its length and, where two files must agree, a digest.

Departures: the official code drops rows without a preference and never mentions rows that are not there; here each is counted
under a name. Our own annotations say in two further columns how the candidate fared when it was shown first and second; the
official tool carries further columns along.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starling.errors import InputError
from starling.evaluate.alpaca_eval.length_control import Floats, Gamed
from starling.rows import read_rows

OFFICIAL_DATASETS = frozenset({"helpful_base", "koala", "oasst", "selfinstruct", "vicuna"})
"""The parts of the official set of 805 instructions; any other name is a set of the user's own."""
WHEN_FIRST, WHEN_SECOND = "preference_when_first", "preference_when_second"
LEADERBOARD = (
    "win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate", "mode", "avg_length",
    "length_controlled_winrate", "lc_standard_error",
)  # fmt: skip


def shown_first(instruction: str) -> bool:
    """Whether the official tool shows the candidate first: decided by the instruction alone, so the same for every model."""
    return Random(f"is_switched_outputs{instruction}0").choices([False, True])[0]


# ── outputs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Output:
    """One answer, or an instruction that waits for one."""

    instruction: str
    output: str
    generator: str = ""
    dataset: str = ""


@dataclass(frozen=True)
class Outputs:
    """A model's answers, in the order of its file."""

    path: Path
    generator: str
    rows: tuple[Output, ...]
    unreadable: int
    """Rows without an instruction or an answer."""

    @property
    def avg_length(self) -> int:
        """Characters, cut to a whole number as the leaderboard does."""
        return int(sum(len(row.output) for row in self.rows) / len(self.rows))

    @cached_property
    def digests(self) -> Mapping[str, frozenset[bytes]]:
        """Instruction → digests of its answers."""
        found: dict[str, set[bytes]] = {}
        for row in self.rows:
            found.setdefault(row.instruction, set()).add(digest(row.output))
        return {instruction: frozenset(texts) for instruction, texts in found.items()}

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Instruction → its first place in the file, from 0."""
        found: dict[str, int] = {}
        for place, row in enumerate(self.rows):
            found.setdefault(row.instruction, place)
        return found


def read_outputs(path: Path) -> Outputs:
    """A model_outputs.json.

    Raises:
        InputError: unreadable, no answer in it, or answers of several models.
    """
    rows, unreadable = [], 0
    for row in read_rows(path):
        value = row.value or {}
        instruction, output = value.get("instruction"), value.get("output")
        if not isinstance(instruction, str) or not isinstance(output, str):
            unreadable += 1
            continue
        rows.append(Output(instruction, output, str(value.get("generator") or ""), str(value.get("dataset") or "")))
    generators = sorted({row.generator for row in rows})
    if not rows:
        raise InputError(
            f"No row has an instruction and an output ({unreadable} rows)", where=str(path), cure="give a model_outputs.json"
        )
    if len(generators) > 1:
        raise InputError(
            f"These are the answers of {len(generators)} models: {', '.join(generators[:4])}",
            where=f"{path}, field generator",
            cure="give one file for each model",
        )
    return Outputs(path, generators[0], tuple(rows), unreadable)


def read_instructions(path: Path) -> list[Output]:
    """Instructions to be answered, from any file with a field `instruction` (and perhaps `dataset`); other fields are let be.

    Raises:
        InputError: unreadable, a row without an instruction, or one that comes twice.
    """
    found: dict[str, Output] = {}
    for row in read_rows(path):
        instruction = (row.value or {}).get("instruction")
        if not isinstance(instruction, str) or not instruction.strip():
            said = row.problem or "it has no text in the field 'instruction'"
            raise InputError(f"A row is no instruction: {said}", where=f"{path}, row {row.number}", cure="mend or remove the row")
        if instruction in found:
            raise InputError(
                "An instruction comes twice: its answers could not be told apart",
                where=f"{path}, row {row.number}: {instruction[:60]!r}",
                cure="remove one of the rows",
            )
        found[instruction] = Output(instruction, "", "", str((row.value or {}).get("dataset") or ""))
    if not found:
        raise InputError("There is no instruction in the file", where=str(path), cure="give a file with a field 'instruction'")
    return list(found.values())


def write_outputs(path: Path, rows: Iterable[Output]) -> None:
    """A model_outputs.json."""
    write_json(
        path,
        [{"dataset": r.dataset, "instruction": r.instruction, "output": r.output, "generator": r.generator} for r in rows],
    )


def digest(text: str) -> bytes:
    """16 bytes that tell texts apart."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


# ── annotations ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """One model's judged rows as columns; rows that could not be read are only counted, the others keep their position."""

    path: Path
    model: str
    baseline: str
    annotator: str
    instruction: tuple[str, ...]
    """Text; in a compact table the number that stands for it."""
    official: bool | None
    """Whether these are the official instructions, whose difficulties are known; None where the field dataset says nothing."""
    position: NDArray[np.int64]
    """Row among the model's annotations, from 0: where the official code looks up the difficulty."""
    preference: Floats
    """0 … 1 for the model; NaN where there is none."""
    shown_first: NDArray[np.bool_]
    """Whether the model's answer stood first: recomputed, or as a compact table says."""
    both_orders: tuple[Floats, Floats] | None
    """The preference when shown first and when shown second, where the judge saw both orders."""
    length: NDArray[np.int64]
    """Of the model's answer, characters."""
    baseline_length: NDArray[np.int64]
    outcomes: Mapping[str, int]
    """Every row by what became of it: ranked, no_preference (in our own files the reason), out_of_range, unreadable."""
    digests: tuple[tuple[bytes, bytes], ...]
    """Of the baseline's and the model's answer; empty in a compact table."""
    instruction_id: NDArray[np.int64] | None
    """A compact table's number of each instruction in the official set."""
    dollars: float
    """Sum of price_per_example."""
    seconds: float
    """Sum of time_per_example."""


@dataclass
class _Columns:
    """What a model's rows come to while they are read."""

    baselines: set[str] = field(default_factory=set)
    annotators: set[str] = field(default_factory=set)
    datasets: set[str] = field(default_factory=set)
    rows: list[tuple[str, int, float, bool, float, float, int, int, int]] = field(default_factory=list)
    digests: list[tuple[bytes, bytes]] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    count: int = 0
    dollars: float = 0.0
    seconds: float = 0.0


def read_annotations(path: Path) -> list[Judged]:
    """The models of an annotations.json or of a compact table, in the order in which they come.

    Raises:
        InputError: unreadable, no row in it, or one model judged against several baselines or by several annotators.
    """
    found: dict[str, _Columns] = {}
    columns, compact = _Columns(), False  # what cannot be read before the first model is the first model's
    for row in read_rows(path):
        value = row.value
        if value is None:  # nobody knows whose it is: models stand one after the other, so it is the last one's
            columns.count += 1
            columns.outcomes["unreadable"] += 1
            continue
        compact = "len_2" in value and "output_2" not in value
        model = str(value.get("model" if compact else "generator_2") or "")
        columns = found.setdefault(model, _Columns() if found else columns)
        _take_compact(columns, value) if compact else _take(columns, value)
    if not any(columns.rows for columns in found.values()):
        raise InputError(
            "The file holds no annotations: no row has instruction, output_1 and output_2",
            where=str(path),
            cure="give an annotations.json of AlpacaEval",
        )
    return [_judged(path, model, columns, compact) for model, columns in found.items()]


def _take(columns: _Columns, value: Mapping[str, Any]) -> None:
    """One row of an annotations.json."""
    place, columns.count = columns.count, columns.count + 1
    texts = [value.get(name) for name in ("instruction", "output_1", "output_2")]
    if not all(isinstance(text, str) for text in texts):
        columns.outcomes["unreadable"] += 1
        return
    instruction, base, own = (str(text) for text in texts)
    columns.baselines.add(str(value.get("generator_1") or ""))
    columns.annotators.add(str(value.get("annotator") or ""))
    columns.datasets.add(str(value.get("dataset") or ""))
    columns.dollars += _finite(value.get("price_per_example")) or 0.0
    columns.seconds += _finite(value.get("time_per_example")) or 0.0
    preference, outcome = _preference(value.get("preference"))
    if outcome == "no_preference" and isinstance(value.get("outcome"), str):
        outcome = value["outcome"]  # our own files say why there is none
    columns.outcomes[outcome] += 1
    orders = [_preference(value.get(name))[0] for name in (WHEN_FIRST, WHEN_SECOND)]
    columns.rows.append((instruction, place, preference, shown_first(instruction), orders[0], orders[1], len(base), len(own), -1))
    columns.digests.append((digest(base), digest(own)))


def _take_compact(columns: _Columns, value: Mapping[str, Any]) -> None:
    """One row of a compact table."""
    numbers = [_whole(value.get(name)) for name in ("annotation_row", "instruction_id", "len_1", "len_2")]
    columns.count += 1
    if min(numbers) < 0:
        columns.outcomes["unreadable"] += 1
        return
    preference, outcome = _preference(value.get("preference"))
    columns.outcomes[outcome] += 1
    place, number, base, own = numbers
    columns.rows.append(
        (str(number), place, preference, value.get("swapped") in (True, "True"), math.nan, math.nan, base, own, number)
    )


def _whole(value: Any) -> int:
    """A number of at least 0; -1 for what is none."""
    try:
        return int(value) if int(value) == float(value) else -1
    except (TypeError, ValueError, OverflowError):
        return -1


def _preference(value: Any) -> tuple[float, str]:
    """0 … 1 for the candidate with the outcome's name; the file's 1 … 2 (0 is an old name for a draw) may stand in quotes."""
    try:
        number = math.nan if value in (None, "") or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan, "no_preference"
    if math.isnan(number):
        return math.nan, "no_preference"
    number = 1.5 if number == 0 else number
    return (number - 1, "ranked") if 1 <= number <= 2 else (math.nan, "out_of_range")


def _judged(path: Path, model: str, columns: _Columns, compact: bool) -> Judged:
    for names, column, what in ((columns.baselines, "generator_1", "baselines"), (columns.annotators, "annotator", "annotators")):
        if len(names) > 1:
            raise InputError(
                f"'{model}' was judged against or by several {what}: {', '.join(sorted(names)[:4])}",
                where=f"{path}, field {column}",
                cure="give one file for each: their preferences are not one measurement",
            )
    if not columns.rows:
        raise InputError(f"No row of '{model}' can be read", where=str(path), cure="remove it from the file or mend it")
    instruction, place, preference, first, when_first, when_second, base, own, number = zip(*columns.rows, strict=True)
    orders = (np.array(when_first, dtype=np.float64), np.array(when_second, dtype=np.float64))
    return Judged(
        path=path,
        model=model,
        baseline=next(iter(columns.baselines), ""),
        annotator=next(iter(columns.annotators), ""),
        instruction=instruction,
        official=max(number) < 805 if compact else None if columns.datasets == {""} else columns.datasets <= OFFICIAL_DATASETS,
        position=np.array(place, dtype=np.int64),
        preference=np.array(preference, dtype=np.float64),
        shown_first=np.array(first, dtype=np.bool_),
        both_orders=orders if not np.isnan(orders[0] + orders[1]).all() else None,
        length=np.array(own, dtype=np.int64),
        baseline_length=np.array(base, dtype=np.int64),
        outcomes={name: n for name, n in columns.outcomes.items() if n},
        digests=tuple(columns.digests),
        instruction_id=np.array(number, dtype=np.int64) if compact else None,
        dollars=columns.dollars,
        seconds=columns.seconds,
    )


# ── inputs of the length control ─────────────────────────────────────────────────────────────────────────────────────


def read_difficulty(path: Path) -> Floats:
    """instruction_difficulty.csv: a number for each instruction of the official set, in its order.

    Raises:
        InputError: unreadable, a row that is no number, or rows that are not numbered 0, 1, 2 …
    """
    found: list[float] = []
    for row in read_rows(path):
        value = row.value or {}
        number, difficulty = value.get("index", value.get("", len(found))), _finite(value.get("instruction_difficulty"))
        if difficulty is None or _whole(number) != len(found):
            raise InputError(
                f"A row is no difficulty: {row.problem or dict(value)}",
                where=f"{path}, row {row.number}",
                cure="give the columns index (0, 1, 2 …) and instruction_difficulty",
            )
        found.append(difficulty)
    if not found:
        raise InputError("There is no difficulty in the file", where=str(path), cure="give instruction_difficulty.csv")
    return np.array(found)


def read_gamed(path: Path) -> Gamed:
    """df_gamed.csv: the baseline's verbose and concise versions against itself, the rows that hold the length's weight in place.

    Raises:
        InputError: unreadable, or a row that lacks one of the numbers.
    """
    names = ("preference", "std_delta_len", "instruction_difficulty")
    found: list[list[float | None]] = []
    for row in read_rows(path):
        numbers = [_finite((row.value or {}).get(name)) for name in names]
        if any(number is None for number in numbers) or not 0 <= (numbers[0] or 0) <= 1:
            raise InputError(
                f"A row is not one of the gamed models': {row.problem or 'a number is missing, or the preference is not 0 … 1'}",
                where=f"{path}, row {row.number}",
                cure=f"give the columns {', '.join(names)}",
            )
        found.append(numbers)
    if not found:
        raise InputError("There is no row in the file", where=str(path), cure="give df_gamed.csv")
    return Gamed(*np.array(found, dtype=np.float64).T)


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_json(path: Path, value: Any) -> None:
    """JSON as the official tool lays it out; gzipped where the name ends in .gz. Written whole or not at all."""
    _write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_leaderboard(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """A leaderboard.csv: models by their length-controlled win rate, those without one by their win rate after them."""

    def order(item: tuple[str, Mapping[str, Any]]) -> tuple[float, float]:
        lc, plain = (item[1].get(name) for name in ("length_controlled_winrate", "win_rate"))
        return (-math.inf if lc is None else lc, -math.inf if plain is None else plain)

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", *LEADERBOARD])
    for model, row in sorted(rows.items(), key=order, reverse=True):
        writer.writerow([model, *("" if row.get(name) is None else row[name] for name in LEADERBOARD)])
    _write(path, text.getvalue())


def read_leaderboard(path: Path) -> dict[str, dict[str, Any]]:
    """A leaderboard.csv: numbers by model and column; an empty cell is None.

    Raises:
        InputError: unreadable, or a row without a model or with a win rate that is no number.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in read_rows(path):
        value = dict(row.value or {})
        model = value.pop("", value.pop("name", ""))
        if not model or _finite(value.get("win_rate")) is None:
            raise InputError(
                f"A row is none of a leaderboard: {row.problem or 'it lacks a model or a win rate'}",
                where=f"{path}, row {row.number}",
                cure="the first column is the model, one of the others win_rate",
            )
        found[model] = {name: _cell(name, text) for name, text in value.items()}
    return found


def _cell(name: str, text: Any) -> Any:
    if name == "mode":
        return text
    number = _finite(text)
    return int(number) if number is not None and name.startswith(("n_", "avg_")) else number


def _write(path: Path, text: str) -> None:
    data = text.encode("utf-8", "replace")
    if path.name.endswith(".gz"):
        buffer = io.BytesIO()
        with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
            file.write(data)
        data = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(data)
    os.replace(part, path)

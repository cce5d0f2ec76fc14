"""Votes of any known file as columns: which field says what in which kind of file, for text files and for parquet.

Kinds, told apart by their fields:

    battles        model_a, model_b, winner …      FastChat's battle logs, its human MT-Bench votes, the datasets made of them
    pairs          model_1, model_2, g1_winner …   FastChat's pair judgments: both orders, a tie unless they agree (its rule)
    left or right  left, right, winner, worker …   the crowd's votes of llmfao
    comparisons    a, b, winner, prompt_id, …      our own `records.Comparison`, of judges and of people

A row may give `score_a`, 0 … 1, instead of a winner: a soft verdict. Parquet goes column by column without a Python object per
row, as far as the columns have the types that FastChat's logs have; other columns, and text files, row by row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from starling.ratings import log_style
from starling.ratings.battles import STYLE_FEATURES

if TYPE_CHECKING:
    import pyarrow as pa

TEXTS = ("judge", "prompt", "category", "language", "turn")
"""Optional columns of names."""
OPTIONAL = frozenset({*TEXTS, "time", "anonymous", "style"})
"""What may be read beside the models and the verdict."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of file: its fields by what they mean."""

    name: str
    a: str
    b: str
    winner: str
    verdicts: Mapping[str, float]
    """Share of a by the winner's word; words that begin with "tie" are ties in every kind."""
    missing: tuple[str, ...] = ("",)
    """Words that stand where there is no verdict."""
    second: str = ""
    """The winner of the game in the other order."""
    outcome: str = ""
    """Names why there is no winner."""
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Fields of the optional columns, the first that is there counts."""

    def fits(self, names: Sequence[str] | Mapping[str, Any]) -> bool:
        """Whether a file with these fields is of this kind."""
        return self.a in names and self.b in names and (self.winner in names or "score_a" in names)


_COMMON = {
    "category": ("category",),
    "language": ("language",),
    "turn": ("turn",),
    "time": ("tstamp", "timestamp"),
    "anonymous": ("anony",),
}
KINDS = (
    Kind(
        name="battles",
        a="model_a",
        b="model_b",
        winner="winner",
        verdicts={"model_a": 1.0, "model_b": 0.0},
        fields=_COMMON | {"judge": ("judge",), "prompt": ("question_id", "prompt_id", "prompt")},
    ),
    Kind(
        name="pairs",
        a="model_1",
        b="model_2",
        winner="g1_winner",
        second="g2_winner",
        verdicts={"model_1": 1.0, "model_2": 0.0},
        missing=("", "error"),
        fields=_COMMON | {"judge": ("judge",), "prompt": ("question_id",)},
    ),
    Kind(
        name="left or right",
        a="left",
        b="right",
        winner="winner",
        verdicts={"left": 1.0, "right": 0.0},
        fields=_COMMON | {"judge": ("worker", "judge"), "prompt": ("prompt", "question_id")},
    ),
    Kind(
        name="comparisons",
        a="a",
        b="b",
        winner="winner",
        outcome="outcome",
        verdicts={"a": 1.0, "b": 0.0},
        fields=_COMMON | {"judge": ("judge", "by"), "prompt": ("prompt_id",)},
    ),
)


@dataclass(kw_only=True)
class Columns:
    """Rows as columns, all of one length; a column that the file lacks, or nobody wants, is None."""

    a: pa.Array
    b: pa.Array
    winner: pa.Array
    """Texts, null where there is none."""
    second: pa.Array | None = None
    outcome: pa.Array | None = None
    score_N: NDArray[np.float64]
    """Soft verdicts; NaN where there is none."""
    texts: dict[str, pa.Array]
    """By the names in TEXTS."""
    time_N: NDArray[np.float64] | None = None
    anonymous_N: NDArray[np.bool_] | None = None
    style_NF: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None


def kind_of(names: Sequence[str] | Mapping[str, Any]) -> Kind | None:
    """The kind of a file with these fields."""
    return next((kind for kind in KINDS if kind.fits(names)), None)


# ── rows of text files ───────────────────────────────────────────────────────────────────────────────────────────────


def of_rows(rows: Sequence[Mapping[str, Any]], kind: Kind, wanted: frozenset[str]) -> Columns:
    """Columns of rows that were parsed one by one."""

    def column(names: Sequence[str]) -> list[Any] | None:
        name = next((n for n in names if any(n in row for row in rows)), None)
        return None if name is None else [row.get(name) for row in rows]

    style = None
    if "style" in wanted and any("conv_metadata" in row or "conversation_a" in row for row in rows):
        style = _styles(*([row.get(name) for row in rows] for name in _STYLE_FIELDS))
    return _columns(column, kind, wanted, style)


def of_batch(batch: pa.RecordBatch, kind: Kind, wanted: frozenset[str]) -> Columns:
    """Columns of a record batch of a parquet file."""

    def column(names: Sequence[str]) -> pa.Array | None:
        name = next((n for n in names if n in batch.schema.names), None)
        return None if name is None else batch.column(name)

    style = None
    if "style" in wanted:
        values = [batch.column(n) if n in batch.schema.names else None for n in _STYLE_FIELDS]
        if any(v is not None for v in values):
            style = _arrow_styles(values[0])
            if style is None or any(v is not None and bool(np.isnan(s).any()) for v, s in zip(values[1:], style, strict=True)):
                style = _styles(*([None] * batch.num_rows if v is None else v.to_pylist() for v in values))
    return _columns(column, kind, wanted, style)


def fields_read(kind: Kind, wanted: frozenset[str]) -> set[str]:
    """The fields of a file that are looked at; of a parquet file only these are read."""
    names = {kind.a, kind.b, kind.winner, kind.second, kind.outcome, "score_a"} - {""}
    names |= {n for key, fields in kind.fields.items() if key in wanted for n in fields}
    return names | (set(_STYLE_FIELDS) if "style" in wanted else set())


_STYLE_FIELDS = ("conv_metadata", "conversation_a", "conversation_b")
_Column = Callable[[Sequence[str]], Any]


def _columns(
    column: _Column, kind: Kind, wanted: frozenset[str], style: tuple[NDArray[np.float32], NDArray[np.float32]] | None
) -> Columns:
    a, b = _texts(column([kind.a])), _texts(column([kind.b]))
    none = [None] * len(a)
    optional = {key: column(kind.fields.get(key, ())) for key in wanted if key != "style"}
    score, time, anonymous = column(["score_a"]), optional.pop("time", None), optional.pop("anonymous", None)
    return Columns(
        a=a,
        b=b,
        winner=_texts(column([kind.winner]) if kind.winner else none, len(a)),
        second=_texts(column([kind.second])) if kind.second else None,
        outcome=_texts(column([kind.outcome]), len(a)) if kind.outcome else None,
        score_N=np.full(len(a), np.nan) if score is None else _numbers(score),
        texts={key: _texts(values) for key, values in optional.items() if values is not None},
        time_N=None if time is None else _times(time),
        anonymous_N=None if anonymous is None else _numbers(anonymous) == 1,
        style_NF=style,
    )


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _texts(values: Any, length: int = 0) -> pa.Array:
    """Names, blanks around them cut off, null where there is none; a number or list becomes its text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if values is None:
        return pa.nulls(length, pa.string())
    if isinstance(values, pa.Array):
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if pa.types.is_nested(values.type):
            return pa.array([_text(v) for v in values.to_pylist()], pa.string())
        return pc.utf8_trim_whitespace(values.cast(pa.string()))
    return pa.array([_text(v) for v in values], pa.string())


def _text(value: Any) -> str | None:
    """A name as text; a list of names, as in FastChat's [judge, prompt], with / between."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return "/".join(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _numbers(values: Any) -> NDArray[np.float64]:
    """Numbers; NaN for what is none. True is 1, and so are the texts of csv files."""
    import pyarrow as pa

    if isinstance(values, pa.Array) and (
        pa.types.is_floating(values.type) or pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)
    ):
        return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    listed = values.to_pylist() if isinstance(values, pa.Array) else values
    return np.array([_number(v) for v in listed], dtype=np.float64)


def _number(value: Any) -> float:
    if isinstance(value, str):
        value = {"true": 1.0, "false": 0.0}.get(value.strip().lower(), value)
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _times(values: Any) -> NDArray[np.float64]:
    """Seconds since 1970 of numbers, times, or ISO 8601 texts; NaN for what is none."""
    import pyarrow as pa

    if isinstance(values, pa.Array):
        if not pa.types.is_timestamp(values.type):
            return _times(values.to_pylist()) if pa.types.is_string(values.type) else _numbers(values)
        micros = values.cast(pa.timestamp("us", values.type.tz), safe=False).cast(pa.int64())
        return _numbers(micros) / 1e6
    return np.array([_seconds(v) for v in values], dtype=np.float64)


def _seconds(value: Any) -> float:
    if isinstance(value, str):
        try:
            found = datetime.fromisoformat(value.strip())
        except ValueError:
            return _number(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return _number(value)


# ── style ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _styles(
    metadata: Sequence[Any], first: Sequence[Any], second: Sequence[Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Counts of both answers [N, F]: those of the log, else counted in the conversations, else NaN."""
    sides: tuple[list[log_style.Counts], list[log_style.Counts]] = ([], [])
    for saved, *turns in zip(metadata, first, second, strict=True):
        counts = [log_style.of_metadata(saved, side) for side in ("a", "b")]
        if any(found[0] != found[0] for found in counts):  # both of one source: tokens of two kinds do not compare
            counts = [log_style.of_conversation(one) for one in turns]
        for side_F, found in zip(sides, counts, strict=True):
            side_F.append(found)
    one, other = (np.array(side, dtype=np.float32).reshape(-1, len(STYLE_FEATURES)) for side in sides)
    return one, other


def _arrow_styles(metadata: pa.Array | None) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """The same of a struct column, without a Python object per row; None where it is not laid out as in FastChat's logs."""
    import pyarrow as pa

    if metadata is None or not pa.types.is_struct(metadata.type):
        return None
    sides = []
    for side in ("a", "b"):
        columns = []
        for name in log_style.metadata_names(side):
            if metadata.type.get_field_index(name) < 0:
                return None
            total_N = _arrow_total(metadata, name)
            if total_N is None:
                return None
            columns.append(total_N)
        sides.append(np.stack(columns, axis=1).astype(np.float32))
    return sides[0], sides[1]


def _arrow_total(metadata: pa.Array, name: str) -> NDArray[np.float64] | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    values = pc.struct_field(metadata, name)
    if not pa.types.is_struct(values.type):
        return _numbers(values) if pa.types.is_integer(values.type) or pa.types.is_floating(values.type) else None
    parts = [_numbers(part) for part in values.flatten()]
    if not parts:
        return None
    known_N = np.asarray(values.is_valid())
    return np.where(known_N, np.nansum(parts, axis=0), np.nan)

"""Rows in the public schema of Nectar, and the files that hold them.

Source: dataset card berkeley-nest/Nectar, for the six columns of `PUBLIC_COLUMNS`, exactly. Departure: a dataset of a run has
four more (`EXTRA_COLUMNS`), after the six, so that whoever reads Nectar by column name reads it too. They name answers by their
place in `answers`, 0 = best; they may be absent, and null where a row does not say.

Files are parquet, written and read in groups of rows: what is in memory is bounded by rows and by text (`GROUP_ROWS`,
`GROUP_BYTES`), and the same rows give the same bytes. `from_nectar` is the one place that says what a valid row is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from starling.chat import from_transcript, to_transcript
from starling.errors import InputError
from starling.records import PlacedVerdict, Prompt, RankedAnswer, RankedPair, RankedPrompt
from starling.rows import read_rows

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_ROWS = 4096
"""Most rows in memory, and in one row group of the file, while a dataset is written."""

GROUP_BYTES = 64_000_000
"""Most bytes of text in memory while a dataset is written; one row is never split, however long it is."""

PUBLIC_COLUMNS = ("prompt", "answers", "turns", "num_responses", "source", "good_natured")
EXTRA_COLUMNS = ("pair_confidence", "pair_verdicts", "contested", "judge_calls")


def nectar_schema(*, extra: bool) -> pa.Schema:
    """The columns of a file: those of Nectar, with `extra` also those that only a run's own dataset has."""
    import pyarrow as pa

    whole, real = pa.int64(), pa.float64()
    answer = pa.struct([("answer", pa.string()), ("model", pa.string()), ("rank", real)])
    confidence = pa.struct([("better", whole), ("worse", whole), ("confidence", real), ("weight", real)])
    verdict = pa.struct([("first", whole), ("second", whole), ("winner", whole)])
    types = {
        "prompt": pa.string(), "answers": pa.list_(answer), "turns": whole, "num_responses": whole,
        "source": pa.list_(pa.string()), "good_natured": pa.bool_(), "pair_confidence": pa.list_(confidence),
        "pair_verdicts": pa.list_(verdict), "contested": pa.bool_(), "judge_calls": whole,
    }  # fmt: skip
    names = PUBLIC_COLUMNS + (EXTRA_COLUMNS if extra else ())
    return pa.schema([(name, types[name]) for name in names])


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_nectar(row: RankedPrompt, *, extra: bool = False) -> dict[str, Any]:
    """The row in the public schema, e.g. {"prompt": "\\n\\nHuman: Hi\\n\\nAssistant: ", "answers": […], "turns": 1, …}.

    Args:
        row: a ranked prompt.
        extra: also the columns that only a run's own dataset has.

    Raises:
        InputError: the conversation cannot be written as a transcript.
    """
    public = {
        "prompt": to_transcript(row.prompt.messages),
        "answers": [{"answer": a.answer, "model": a.model, "rank": a.rank} for a in row.answers],
        "turns": sum(message.role == "user" for message in row.prompt.messages),
        "num_responses": len(row.answers),
        "source": list(row.prompt.sources),
        "good_natured": row.good_natured,
    }
    return public | _extra(row) if extra else public


def _extra(row: RankedPrompt) -> dict[str, Any]:
    return {
        "pair_confidence": [
            {"better": p.better, "worse": p.worse, "confidence": p.confidence, "weight": p.weight} for p in row.pairs
        ],
        "pair_verdicts": [{"first": v.first, "second": v.second, "winner": v.winner} for v in row.verdicts],
        "contested": row.contested,
        "judge_calls": row.judge_calls,
    }


def from_nectar(value: Mapping[str, Any]) -> RankedPrompt:
    """The inverse of `to_nectar`, as strict as the schema; columns that it does not know are ignored, those of `EXTRA_COLUMNS`
    may be absent or null. The split is not in the schema; it comes back as train.

    Raises:
        InputError: the row is not in the public schema, or its counts (`turns`, `num_responses`) are not those of its texts.
    """
    try:
        fields = {
            "prompt": Prompt.make(from_transcript(_text(value["prompt"])), tuple(_list(value["source"]))),
            "answers": tuple(RankedAnswer.model_validate(a, strict=True) for a in _list(value["answers"])),
            "good_natured": value["good_natured"],
            "pairs": tuple(RankedPair.model_validate(p, strict=True) for p in _list(value.get("pair_confidence") or [])),
            "verdicts": tuple(PlacedVerdict.model_validate(v, strict=True) for v in _list(value.get("pair_verdicts") or [])),
            "contested": value.get("contested"),
            "judge_calls": value.get("judge_calls"),
        }
        row = RankedPrompt.model_validate(fields, strict=True)
        turns = sum(message.role == "user" for message in row.prompt.messages)
        if (value["turns"], value["num_responses"]) != (turns, len(row.answers)):
            stated = f"turns {value['turns']!r} and num_responses {value['num_responses']!r}"
            raise TypeError(f"it states {stated}, and has {turns} and {len(row.answers)}")
        return row
    except KeyError as missing:
        raise InputError(
            f"The row has no {missing}", where=f"columns {sorted(value)}", cure="give a Nectar-schema file"
        ) from None
    except (ValidationError, TypeError) as error:
        said = str(error.errors(include_url=False)[0]["msg"]) if isinstance(error, ValidationError) else str(error)
        raise InputError(
            f"The row is not in the Nectar schema: {said}",
            where=f"prompt {str(value.get('prompt'))[:60]!r}",
            cure="use `starling import nectar` on files that others wrote",
        ) from None


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:40]!r} is no list")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"the prompt {str(value)[:40]!r} is no text")
    return value


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class NectarWriter:
    """Writes one parquet file row by row: `with NectarWriter(path) as writer: writer.write(row)`. When the block raises, the file
    is removed. The same rows give the same bytes.

    Args:
        path: the file to make.
        extra: write the columns of `EXTRA_COLUMNS` too.

    Raises:
        InputError: a conversation cannot be written as a transcript, or a text not as UTF-8; names the row (counted from 1).
    """

    def __init__(self, path: Path, *, extra: bool = False) -> None:
        import pyarrow.parquet as pq

        self.rows = 0
        self._path = path
        self._schema = nectar_schema(extra=extra)
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd", version="2.6")
        self._group = _Group(self._schema)

    def write(self, row: RankedPrompt) -> None:
        """Append one row."""
        try:
            self._group.add(row)
        except (InputError, UnicodeError) as error:
            raise InputError(
                f"A row cannot be written: {error.what if isinstance(error, InputError) else error}",
                where=f"row {self.rows + 1} of {self._path}, prompt {row.prompt.messages[-1].content[:60]!a}",
                cure="drop the row, or clean its text: it may contain half of a character (a lone surrogate)",
            ) from None
        self.rows += 1
        if self._group.rows >= GROUP_ROWS or self._group.size >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._file.write_table(self._group.table(), row_group_size=GROUP_ROWS)
        self._group = _Group(self._schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        whole = False
        try:
            if kind is None and (self._group.rows or not self.rows):
                self._flush()
            whole = kind is None
        finally:
            self._file.close()
            if not whole:
                self._path.unlink(missing_ok=True)


def write_nectar(path: Path, rows: Iterable[RankedPrompt], *, extra: bool = False) -> int:
    """Write one parquet file in the public schema, row by row, and return how many rows it has; see `NectarWriter`.

    Raises:
        InputError: a row cannot be written.
    """
    with NectarWriter(path, extra=extra) as writer:
        for row in rows:
            writer.write(row)
    return writer.rows


class _Group:
    """Rows on their way into a row group, as columns: the fields of all lists lie end to end in one list per field. That takes a
    quarter of the time of one dict per answer, and no row is held as an object."""

    def __init__(self, schema: pa.Schema) -> None:
        self.rows = 0
        self.size = 0
        """Bytes of prompts and answers."""
        self._schema = schema
        self._lists = {field.name: [f.name for f in field.type.value_type] for field in schema if _is_structs(field.type)}
        self._plain: dict[str, list[Any]] = {name: [] for name in schema.names if name not in self._lists}
        self._flat: dict[str, list[list[Any]]] = {name: [[] for _ in fields] for name, fields in self._lists.items()}
        self._ends: dict[str, list[int]] = {name: [0] for name in self._lists}

    def add(self, row: RankedPrompt) -> None:
        """Append a row.

        Raises:
            InputError: the conversation cannot be written as a transcript.
            UnicodeError: a text holds half of a character.
        """
        prompt = to_transcript(row.prompt.messages).encode()
        answers = [answer.answer.encode() for answer in row.answers]
        values: dict[str, Any] = {
            "prompt": prompt,
            "turns": sum(message.role == "user" for message in row.prompt.messages),
            "num_responses": len(answers),
            "source": [name.encode() for name in row.prompt.sources],
            "good_natured": row.good_natured,
            "contested": row.contested,
            "judge_calls": row.judge_calls,
        }
        lists: dict[str, tuple[list[Any], ...]] = {
            "answers": (answers, [a.model.encode() for a in row.answers], [a.rank for a in row.answers])
        }
        if len(self._lists) > 1:
            lists["pair_confidence"] = _transposed([(p.better, p.worse, p.confidence, p.weight) for p in row.pairs], 4)
            lists["pair_verdicts"] = _transposed([(v.first, v.second, v.winner) for v in row.verdicts], 3)
        for name, column in self._plain.items():
            column.append(values[name])
        for name, fields in lists.items():
            for flat, found in zip(self._flat[name], fields, strict=True):
                flat.extend(found)
            self._ends[name].append(self._ends[name][-1] + len(fields[0]))
        self.rows += 1
        self.size += len(prompt) + sum(map(len, answers))

    def table(self) -> pa.Table:
        """All rows as a table of the schema."""
        import pyarrow as pa

        columns = [
            _structs(self._flat[f.name], self._ends[f.name], f.type)
            if f.name in self._lists
            else pa.array(self._plain[f.name], f.type)
            for f in self._schema
        ]
        return pa.Table.from_arrays(columns, schema=self._schema)


def _is_structs(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) and pa.types.is_struct(kind.value_type))


def _transposed(rows: list[tuple[Any, ...]], width: int) -> tuple[list[Any], ...]:
    return tuple([row[i] for row in rows] for i in range(width))


def _structs(flat: list[list[Any]], ends: list[int], kind: pa.ListType) -> pa.Array:
    """Fields that lie end to end as one list column of structs."""
    import pyarrow as pa

    fields = list(kind.value_type)
    children = [pa.array(values, field.type) for values, field in zip(flat, fields, strict=True)]
    structs = pa.StructArray.from_arrays(children, fields=fields)
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), structs, type=kind)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class NectarFile(Collection[RankedPrompt]):
    """The rows of a parquet file that `write_nectar` made: its length is known, and it can be read any number of times, row by
    row. Every row is validated each time.

    Raises:
        InputError: the file is missing or damaged, or (while reading) a row is not in the public schema; with its number.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows = parquet_length(path)

    def __len__(self) -> int:
        return self._rows

    def __contains__(self, row: object) -> bool:
        return any(row == found for found in self)

    def __iter__(self) -> Iterator[RankedPrompt]:
        return _read(self.path)


def read_nectar(path: Path) -> list[RankedPrompt]:
    """All rows at once of a file that `write_nectar` (or `to_nectar` and a jsonl writer) made; `NectarFile` reads large ones.

    Raises:
        InputError: the file cannot be read or a row is not in the public schema; with the row's number.
    """
    return list(_read(path))


def _read(path: Path) -> Iterator[RankedPrompt]:
    for row in read_rows(path):
        yield checked(row.value, row.problem, row.number, path)


def checked(value: Mapping[str, Any] | None, problem: str, number: int, path: Path) -> RankedPrompt:
    """One row of a file, or an InputError that names its number (counted from 1)."""
    if value is None:
        raise InputError(f"A row cannot be read: {problem}", where=f"{path}, row {number}", cure="write the file again")
    try:
        return from_nectar(value)
    except InputError as error:
        raise InputError(error.what, where=f"{path}, row {number}", cure=error.cure) from None


def parquet_length(path: Path) -> int:
    """Rows of a parquet file, from its footer.

    Raises:
        InputError: it is missing, or no whole parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return int(file.metadata.num_rows)
    except FileNotFoundError:
        raise InputError("The data file does not exist", where=str(path), cure="check the path") from None
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"The parquet file is damaged or only half written: {str(error).splitlines()[0]}",
            where=str(path),
            cure="copy or write it again",
        ) from None

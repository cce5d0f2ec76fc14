"""A whole file in the public schema against every law of it, column by column.

`from_nectar` says what a valid row is; a million answers as objects take it a minute. `suspects` applies the same laws to a batch
of rows as arrays, and `check_nectar` asks `from_nectar` about the suspects only: it has the last word, and it names the law.
So the two agree as long as no broken row escapes suspicion, which tests compare row by row on good and broken rows.

Departure from a pure column check: transcripts are split one by one, by the same function that reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from starling.chat import from_transcript
from starling.errors import InputError
from starling.nectar.schema import EXTRA_COLUMNS, PUBLIC_COLUMNS, checked, nectar_schema, parquet_length
from starling.progress import SILENT, Progress
from starling.rows import batch_rows, parquet_batches

if TYPE_CHECKING:
    import pyarrow as pa

Rows = npt.NDArray[np.bool_]
"""One truth value per row of a batch."""

BATCH_ROWS = 2048
"""Rows in memory at once."""


def check_nectar(path: Path, progress: Progress = SILENT) -> int:
    """Check every row of a parquet file that `write_nectar` made; returns how many there are.

    Raises:
        InputError: the file cannot be read, or a row is not in the public schema; with the number of the first such row.
    """
    progress.start(f"check {path.name}", parquet_length(path))
    checked_rows = 0
    for batch in checked_batches(path):
        checked_rows += batch.num_rows
        progress.advance(batch.num_rows)
    progress.finish()
    return checked_rows


def checked_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The file as record batches, each of them checked before it is given out.

    Raises:
        InputError: see `check_nectar`.
    """
    before = 0
    for batch in parquet_batches(path, BATCH_ROWS):
        for index in np.flatnonzero(suspects(batch)):
            [row] = batch_rows(batch.slice(int(index), 1), before + int(index))
            checked(row.value, row.problem, row.number, path)
        yield batch
        before += batch.num_rows


def suspects(batch: pa.RecordBatch) -> Rows:
    """True for each row that may break a law of the schema; False only where `from_nectar` accepts the row.

    With columns of other types than `write_nectar` gives them, or texts that are no UTF-8, every row is one.
    """
    import pyarrow as pa

    expected = nectar_schema(extra=True)
    names = set(batch.schema.names)
    typed = all(batch.schema.field(n).type.equals(expected.field(n).type) for n in expected.names if n in names)
    if not typed or not names.issuperset(PUBLIC_COLUMNS):
        return np.ones(batch.num_rows, dtype=np.bool_)
    try:
        batch.select([n for n in expected.names if n in names]).validate(full=True)
    except pa.ArrowInvalid:
        return np.ones(batch.num_rows, dtype=np.bool_)
    answers = _Lists(batch.column("answers"))
    found = _broken_prompts(batch) | _broken_answers(answers)
    source = _Lists(batch.column("source"))
    found |= source.null | source.any(_null(source.items))
    found |= _whole(batch.column("num_responses"), fill=-1) != answers.sizes
    if EXTRA_COLUMNS[0] in names:
        found |= _broken_confidence(_Lists(batch.column(EXTRA_COLUMNS[0])), answers.sizes)
    if EXTRA_COLUMNS[1] in names:
        found |= _broken_verdicts(_Lists(batch.column(EXTRA_COLUMNS[1])), answers.sizes)
    if EXTRA_COLUMNS[3] in names:
        found |= _whole(batch.column(EXTRA_COLUMNS[3]), fill=1) < 1
    return found


class _Lists:
    """A list column as flat items: `row` is the row of each item, `place` its number in its list."""

    def __init__(self, column: pa.Array) -> None:
        import pyarrow.compute as pc

        self.null = _null(column)
        self.items = column.flatten()  # without what lies under a null list
        self.sizes = np.asarray(pc.fill_null(pc.list_value_length(column), 0), dtype=np.int64)
        starts = np.cumsum(self.sizes) - self.sizes
        self.row = np.repeat(np.arange(len(self.sizes)), self.sizes)
        self.place = np.arange(len(self.row)) - starts[self.row]

    def any(self, items: Rows) -> Rows:
        """Rows of which at least one item is marked."""
        found: Rows = np.bincount(self.row[items], minlength=len(self.sizes)) > 0
        return found

    def struct_is_null(self) -> Rows:
        """Items that are null, or of which a field is."""
        nulls = [_null(self.items), *(_null(self.items.field(i)) for i in range(self.items.type.num_fields))]
        found: Rows = np.logical_or.reduce(nulls)
        return found

    def whole(self, field: str) -> npt.NDArray[np.int64]:
        """A field of the items as whole numbers; −1 where it is null."""
        return _whole(self.items.field(field), fill=-1)

    def real(self, field: str) -> npt.NDArray[np.float64]:
        """A field of the items as numbers; NaN where it is null."""
        import pyarrow.compute as pc

        return np.asarray(pc.fill_null(self.items.field(field), float("nan")), dtype=np.float64)


def _null(array: pa.Array) -> Rows:
    return np.asarray(array.is_null(), dtype=np.bool_)


def _whole(array: pa.Array, *, fill: int) -> npt.NDArray[np.int64]:
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(array, fill), dtype=np.int64)


def _broken_prompts(batch: pa.RecordBatch) -> Rows:
    """No transcript that waits for a reply, or not as many user turns as stated."""
    stated = batch.column("turns").to_pylist()
    turns = [_user_turns(text) for text in batch.column("prompt").to_pylist()]
    return np.array([found is None or found != said for found, said in zip(turns, stated, strict=True)], dtype=np.bool_)


def _user_turns(text: Any) -> int | None:
    if text is None:
        return None
    try:
        return sum(message.role == "user" for message in from_transcript(text))
    except InputError:
        return None


def _broken_answers(answers: _Lists) -> Rows:
    """Fewer than two answers, a field that is null, or ranks that are not 1 … K best first with shared ones for ties.

    Rank by rank: each is its place (counted from 1) or that of the answer before it. NaN is neither.
    """
    ranks = answers.real("rank")
    same_as_before = np.zeros(len(ranks), dtype=np.bool_)
    same_as_before[1:] = (ranks[1:] == ranks[:-1]) & (answers.place[1:] > 0)
    wrong = ~((ranks == answers.place + 1) | same_as_before) | answers.struct_is_null()
    return answers.null | (answers.sizes < 2) | answers.any(wrong)


def _broken_confidence(pairs: _Lists, k: npt.NDArray[np.int64]) -> Rows:
    """Pairs of answers that are not there, shares outside [0, 1], weights that are no positive number."""
    better, worse, size = pairs.whole("better"), pairs.whole("worse"), k[pairs.row]
    confidence, weight = pairs.real("confidence"), pairs.real("weight")
    right = (better >= 0) & (worse >= 0) & (better < size) & (worse < size) & (better != worse)
    right &= (confidence >= 0) & (confidence <= 1) & (weight > 0) & np.isfinite(weight)
    return pairs.any(~right | pairs.struct_is_null())


def _broken_verdicts(verdicts: _Lists, k: npt.NDArray[np.int64]) -> Rows:
    """Verdicts about answers that are not there, or whose winner is neither of the two nor null. A null place is −1 here."""
    first, second, winner = (verdicts.whole(name) for name in ("first", "second", "winner"))
    size = k[verdicts.row]
    right = (first >= 0) & (second >= 0) & (first < size) & (second < size) & (first != second)
    right &= (winner == first) | (winner == second) | _null(verdicts.items.field("winner"))
    return verdicts.any(~right | _null(verdicts.items))

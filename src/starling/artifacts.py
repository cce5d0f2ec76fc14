"""Artifacts: what a stage leaves behind, a folder of files and a manifest, there whole or not at all.

A stage fills a draft folder beside its destination; `manifest.json` is written last and the folder is renamed into place, so
a process that dies at any instant leaves either the old artifact or the new one. The manifest holds the size and SHA-256 of
every file, counts, lineage and a fingerprint over all of it except the seconds: equal fingerprints mean equal bytes.

Records travel in parquet. The schema is derived from the record class by one function, so a file has the same columns
whether it has no rows or a million; pyarrow writes the same bytes for the same rows (no timestamps; one writer version).

Departure from pydantic's own dump: a `dict[str, str]` becomes a list of {key, value} sorted by key, because a parquet map
keeps insertion order and would make equal records differ in their bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import types
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

import starling
from starling.errors import ArtifactError, InputError
from starling.records import SCHEMA_VERSION, Record, canonical_json, content_hash

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"

R = TypeVar("R", bound=Record)

ROWS_PER_GROUP = 4096
"""Most rows that are in memory at once while records are written."""

CHARS_PER_GROUP = 64_000_000
"""Most characters of text in memory at once while records are written: a server may send answers of 2 MB."""

AGAIN = "run the stage that makes it again (delete its folder, then `starling run`)"


# ── records in parquet ───────────────────────────────────────────────────────────────────────────────────────────────


def arrow_type(kind: Any) -> pa.DataType:
    """The parquet column type of a record field's annotation: scalars, enums and literals (as strings), optional values, tuples
    and lists of one type, pairs, `dict[str, str]`, nested records.

    Raises:
        TypeError: the annotation has no column type; a defect of the record class, not of the data.
    """
    import pyarrow as pa

    scalars = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    if kind in scalars:
        return scalars[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        kinds = {arrow_type(a) for a in arguments if a is not type(None)}
        if len(kinds) == 1:
            return kinds.pop()
    elif origin is Literal and all(isinstance(a, str) for a in arguments):
        return pa.string()
    elif origin in (tuple, list):
        kinds = {arrow_type(a) for a in arguments if a is not Ellipsis}
        if len(kinds) == 1:
            return pa.list_(kinds.pop())
    elif origin is dict and arguments == (str, str):
        return pa.list_(pa.struct([pa.field("key", pa.string(), nullable=False), pa.field("value", pa.string(), nullable=False)]))
    elif isinstance(kind, type) and issubclass(kind, Enum) and issubclass(kind, str):
        return pa.string()
    elif isinstance(kind, type) and issubclass(kind, Record):
        return pa.struct(list(_columns(kind)))
    raise TypeError(f"no parquet type for {kind!r}")


def _columns(cls: type[Record]) -> Iterator[pa.Field]:
    import pyarrow as pa

    for name, info in cls.model_fields.items():
        optional = type(None) in get_args(info.annotation)
        yield pa.field(name, arrow_type(info.annotation), nullable=optional)


def _row(record: Record) -> dict[str, Any]:
    """One record as a row of plain values."""
    return {name: _cell(getattr(record, name)) for name in type(record).model_fields}


def _cell(value: Any) -> Any:
    if isinstance(value, Record):
        return _row(value)
    if isinstance(value, list | tuple):
        return [_cell(v) for v in value]
    if isinstance(value, dict):
        return [{"key": k, "value": v} for k, v in sorted(value.items())]
    return value.value if isinstance(value, Enum) else value


def _unrow(row: dict[str, Any], cls: type[Record]) -> dict[str, Any]:
    """The inverse of `_row`, as input for the class's own validation."""
    return {name: _uncell(row[name], info.annotation) for name, info in cls.model_fields.items()}


def _uncell(value: Any, kind: Any) -> Any:
    if value is None:
        return None
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is dict:
        return {pair["key"]: pair["value"] for pair in value}
    if origin in (Union, types.UnionType):
        return _uncell(value, next(a for a in arguments if a is not type(None)))
    if origin in (tuple, list):
        return [_uncell(v, arguments[0]) for v in value]
    if isinstance(kind, type) and issubclass(kind, Record):
        return _unrow(value, kind)
    return value


def write_records(path: Path, records: Iterable[R], cls: type[R]) -> int:
    """Write records as one parquet file, in their order; the same records give the same bytes. Holds
    4,096 rows at a time, or fewer where their texts are long.

    Returns:
        How many records were written.

    Raises:
        InputError: a text cannot be stored as UTF-8 (lone surrogates) or a number does not fit; names the row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = canonical_json({"record": cls.__name__, "schema": SCHEMA_VERSION})
    schema = pa.schema(list(_columns(cls)), metadata={"starling": about})
    source, written = iter(records), 0
    try:
        with pq.ParquetWriter(path, schema, compression="zstd", version="2.6") as writer:
            while rows := _next_group(source):
                writer.write_table(_table(rows, schema, written, path), row_group_size=ROWS_PER_GROUP)
                written += len(rows)
            if not written:
                writer.write_table(_table([], schema, 0, path))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return written


def _next_group(source: Iterator[Record]) -> list[dict[str, Any]]:
    """The next rows that fit into one group: so many of them, or so many characters of text; always at least one."""
    rows: list[dict[str, Any]] = []
    chars = 0
    for record in source:
        rows.append(_row(record))
        chars += _chars(rows[-1])
        if len(rows) >= ROWS_PER_GROUP or chars >= CHARS_PER_GROUP:
            break
    return rows


def _chars(cell: Any) -> int:
    if isinstance(cell, str):
        return len(cell)
    parts = cell.values() if isinstance(cell, dict) else cell if isinstance(cell, list) else ()
    return sum(map(_chars, parts))


def _table(rows: list[dict[str, Any]], schema: pa.Schema, start: int, path: Path) -> pa.Table:
    import pyarrow as pa

    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowException, UnicodeError, OverflowError) as whole:
        for number, row in enumerate(rows):
            try:
                pa.Table.from_pylist([row], schema=schema)
            except (pa.ArrowException, UnicodeError, OverflowError) as error:
                raise InputError(
                    f"A row cannot be stored: {error}",
                    where=f"row {start + number} ({ascii(row)[:120]} …) of {path}",
                    cure="drop the row, or clean its text: it may contain half of a character (a lone surrogate)",
                ) from None
        raise InputError(f"The rows cannot be stored: {whole}", where=str(path), cure="report this as a defect") from whole


class RecordFile(Collection[R]):
    """The records of a file that `write_records` made: its length is known, and it can be read any number of times, row by row,
    without holding more than one row group. Every row is validated again each time.

    Raises:
        ArtifactError: the file is missing, half-written, of another class or version, or (while reading) a row
            breaks a law of its class.
    """

    def __init__(self, path: Path, cls: type[R]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path, self._cls = path, cls
        expected = pa.schema(list(_columns(cls)))
        with self._errors(), pq.ParquetFile(path) as file:
            found, self._rows = file.schema_arrow, int(file.metadata.num_rows)
        if not found.equals(expected):
            differ = sorted(set(expected) ^ set(found.remove_metadata()), key=lambda column: column.name)
            names = ", ".join(dict.fromkeys(column.name for column in differ)) or "their order"
            raise ArtifactError(f"The file does not hold {cls.__name__} records: {names} differ", where=str(path), cure=AGAIN)

    def __len__(self) -> int:
        return self._rows

    def __contains__(self, record: object) -> bool:
        return any(record == found for found in self)

    def __iter__(self) -> Iterator[R]:
        import pyarrow.parquet as pq

        number = 0
        # Without pre-buffering, which keeps every column that was read until the file is closed (measured in rows.py).
        with self._errors(), pq.ParquetFile(self._path, buffer_size=1 << 20, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=ROWS_PER_GROUP // 4):
                for row in batch.to_pylist():
                    yield self._record(number, row)
                    number += 1

    def _record(self, number: int, row: dict[str, Any]) -> R:
        try:
            return self._cls.model_validate(_unrow(row, self._cls))
        except ValidationError as error:
            raise ArtifactError(
                f"A row is no valid {self._cls.__name__}: {error.errors()[0]['msg']}", where=f"row {number} of {self._path}",
                cure=AGAIN,
            ) from None  # fmt: skip

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except FileNotFoundError:
            raise ArtifactError("The file does not exist", where=str(self._path), cure=AGAIN) from None
        except (pa.ArrowException, OSError) as error:
            raise ArtifactError(f"The file is no whole parquet file: {error}", where=str(self._path), cure=AGAIN) from None


def read_records(path: Path, cls: type[R]) -> list[R]:
    """All records of a file at once; see `RecordFile`."""
    return list(RecordFile(path, cls))


# ── folders ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Draft:
    """An artifact in the making: fill `path`, then set the counts."""

    path: Path
    """Folder to put files into; renamed into place when the `with` block ends."""
    rows: int = 0
    """Rows of the main table."""
    outcomes: dict[str, int] = field(default_factory=dict)
    """How many rows ended how, failures and dropped rows included."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Numbers for the report; plain JSON without times."""
    seconds: float | None = None
    """Time the work took when it began in an earlier process; measured here when None. Not part of the fingerprint."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A finished stage's output."""

    path: Path
    stage: str
    key: str
    """Hash of the settings and inputs it was made for: another key means that it is stale."""
    schema_version: int
    fingerprint: str
    """Hash of its contents and lineage; two runs agree byte for byte when their fingerprints do."""
    rows: int
    outcomes: dict[str, int]
    inputs: dict[str, str]
    """Fingerprints of the artifacts it was made from, by stage."""
    config: dict[str, Any]
    metrics: dict[str, Any]
    code_version: str
    files: dict[str, dict[str, Any]]
    """{"bytes", "sha256"} of every file by its path inside the folder."""
    seconds: float


@contextmanager
def new_artifact(run_dir: Path, stage: str, *, key: str, inputs: dict[str, str], config: dict[str, Any]) -> Iterator[Draft]:
    """Make the artifact of a stage: `with new_artifact(...) as draft:` fill draft.path; it appears when the block ends.

    When the block raises, the draft is removed and the old artifact, if any, stays.

    Args:
        run_dir: the run's directory.
        stage: name of the stage and of the folder.
        key: hash of what the artifact depends on.
        inputs: fingerprints of the artifacts read, by stage.
        config: the settings that the stage read, without secrets.
    """
    began = time.monotonic()
    _recover(run_dir, stage)
    temporary = run_dir / ".work" / f"{stage}.draft"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    draft = Draft(temporary)
    try:
        yield draft
        about = {"stage": stage, "key": key, "inputs": inputs, "config": config}
        content = _content(about, draft)
        seconds = round(draft.seconds or time.monotonic() - began, 3)
        manifest = content | {"fingerprint": content_hash(content, 32), "seconds": seconds}
        text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
        (temporary / MANIFEST).write_text(text, encoding="utf-8")
        _sync(temporary)
    except BaseException:
        _drop([temporary], run_dir)
        raise
    _swap_in(temporary, run_dir, stage)


def _content(about: dict[str, Any], draft: Draft) -> dict[str, Any]:
    """All of the manifest that the fingerprint covers, as JSON will give it back."""
    content = about | {
        "schema_version": SCHEMA_VERSION, "code_version": starling.__version__, "rows": draft.rows, "outcomes": draft.outcomes,
        "metrics": draft.metrics, "files": _inventory(draft.path),
    }  # fmt: skip
    try:
        return dict(json.loads(canonical_json(content)))
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"The counts or metrics cannot be written as JSON: {error}",
            where=f"manifest of the stage '{about['stage']}'",
            cure="a number there is NaN or infinite, or no number at all: find out why the stage computed it",
        ) from None


def _inventory(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below `folder`, by path; links are refused, because they would not travel with it."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ArtifactError("A draft contains a link", where=str(path), cure="copy the file instead")
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    return files


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    """Have the disk keep the files before their folder gets its final name, in case the power fails."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)


def _swap_in(temporary: Path, run_dir: Path, stage: str) -> None:
    """Put the new folder in the old one's place. A folder cannot be renamed over a full one, so the old one steps aside first;
    `_recover` finishes the exchange when the process dies between the two renames."""
    old = run_dir / ".work" / f"{stage}.old"
    while temporary.exists():
        shutil.rmtree(old, ignore_errors=True)
        if (run_dir / stage).exists():
            os.rename(run_dir / stage, old)
        try:
            os.rename(temporary, run_dir / stage)
        except OSError as error:  # a reader in another process may just have put the old one back
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    _drop([old], run_dir)


def _recover(run_dir: Path, stage: str) -> None:
    """Put the old artifact back when a process died while it stepped aside for a new one."""
    old = run_dir / ".work" / f"{stage}.old"
    if old.exists() and not (run_dir / stage).exists():
        os.rename(old, run_dir / stage)


def open_artifact(run_dir: Path, stage: str, *, verify: bool = False) -> Artifact:
    """The finished artifact of a stage.

    Args:
        run_dir: the run's directory.
        stage: the stage's name.
        verify: also compare every file's SHA-256; sizes are always compared.

    Raises:
        ArtifactError: it is missing, half-written, altered or of another schema version; names the file.
    """
    _recover(run_dir, stage)
    folder = run_dir / stage
    again = f"run the stage '{stage}' again: delete {folder}, then `starling run`"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        stored, seconds = manifest.pop("fingerprint"), manifest.pop("seconds")
        version, files = manifest["schema_version"], manifest["files"]
        altered = stored != content_hash(manifest, 32)
    except FileNotFoundError:
        cure = f"run the stage '{stage}' first: `starling run CONFIG --until {stage}`"
        raise ArtifactError(f"The stage '{stage}' has no finished output", where=str(folder), cure=cure) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"The manifest cannot be read: {error}", where=str(folder / MANIFEST), cure=again) from None
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"The artifact has schema version {version}, this Starling reads {SCHEMA_VERSION}", where=str(folder), cure=again
        )
    if altered:
        raise ArtifactError("The manifest was altered after it was written", where=str(folder / MANIFEST), cure=again)
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError("A file of the artifact is missing", where=str(path), cure=again)
        if path.stat().st_size != entry["bytes"] or (verify and _sha256(path) != entry["sha256"]):
            raise ArtifactError("A file of the artifact was altered or is half-written", where=str(path), cure=again)
    return Artifact(path=folder, fingerprint=stored, seconds=seconds, **manifest)


def work_dir(run_dir: Path, stage: str, key: str) -> Path:
    """Scratch folder for the checkpoints of a stage in the making, made when missing. Another key gets another folder."""
    folder = run_dir / ".work" / f"{stage}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def drop_work(run_dir: Path, stage: str) -> None:
    """Remove the scratch folders of a stage, those of older settings too."""
    _drop((run_dir / ".work").glob(f"{stage}-*"), run_dir)


def _drop(folders: Iterable[Path], run_dir: Path) -> None:
    """Remove scratch folders, and their home when it is empty."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        (run_dir / ".work").rmdir()

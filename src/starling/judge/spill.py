"""Records on disk while a stage is at work: one JSON line each, lightly compressed, written once and read once.

A round of judge calls must be over before the next one can be planned, and at full scale its judgments do not fit into memory.
Parquet, in which they end, costs five times as much to write and read.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from starling.records import Record

R = TypeVar("R", bound=Record)


def write(path: Path, records: Iterable[R]) -> Iterator[R]:
    """Hand the records on as they are read, and keep them in a file that is whole when the last one has been handed on."""
    with gzip.open(path, "wt", compresslevel=1, encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(record.model_dump_json() + "\n")
            yield record


def read(path: Path, cls: type[R]) -> Iterator[R]:
    """The records of a file that `write` made, validated again."""
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            yield cls.model_validate_json(line)

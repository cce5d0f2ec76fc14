"""Datasets that others made, as artifacts: read once with every change and rejection counted, then trained on.

<folder>/rankings.parquet   the accepted rows in the public schema
<folder>/rejected.jsonl     one line per rejected row: its number, the reason, a detail
<folder>/manifest.json      counts by reason, the source file's content hash
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from starling.artifacts import MANIFEST, Artifact, new_artifact, open_artifact
from starling.chat import split_of
from starling.content import content_of
from starling.errors import UsageError
from starling.nectar import NectarFile, NectarImport, Rejected, write_nectar
from starling.records import RankedPrompt, content_hash
from starling.rundir import WORK_FOLDER, remove_empty

ROWS_FILE = "rankings.parquet"


def import_file(file: Path, out: Path) -> Artifact:
    """Import a Nectar-schema file into the folder `out`; an earlier import there is replaced.

    Row by row, so that a file of any length fits into memory.

    Raises:
        InputError: the file cannot be read, or not one of its rows is usable. Nothing is left behind.
        UsageError: `out` holds something that is no import.
    """
    if out.exists() and not (out / MANIFEST).is_file():
        raise UsageError(
            "The folder to import into exists and is no import of Starling",
            where=str(out),
            cure="name a folder that does not exist yet",
        )
    folder = out.resolve()
    made = [parent for parent in folder.parents if not parent.exists()]
    source = {"file": file.name, "content": content_of(file)}
    try:
        with new_artifact(folder.parent, folder.name, key=content_hash(source, 16), inputs={}, config=source) as draft:
            with (draft.path / "rejected.jsonl").open("w", encoding="utf-8") as rejected:

                def reject(row: Rejected) -> None:
                    line = {"row": row.row, "reason": row.reason, "detail": row.detail}
                    rejected.write(json.dumps(line, ensure_ascii=True) + "\n")

                rows = NectarImport(file, reject)
                draft.rows = write_nectar(draft.path / ROWS_FILE, rows)
            draft.outcomes.update(outcomes_of(rows))
    finally:
        remove_empty([folder.parent / WORK_FOLDER, *made])
    return open_artifact(folder.parent, folder.name)


def outcomes_of(found: NectarImport) -> dict[str, int]:
    """Counts by reason: rejected rows as `rejected/tied`, changed ones as `changed/answers_sorted`."""
    rejected = {f"rejected/{reason}": n for reason, n in sorted(found.rejected.items())}
    return rejected | {f"changed/{reason}": n for reason, n in sorted(found.changed.items())}


class Side(Collection[RankedPrompt]):
    """The rankings of a file whose conversations are on one side of the split; read row by row, any number of times."""

    def __init__(self, rows: Iterable[RankedPrompt], side: str, validation_fraction: float, length: int) -> None:
        self._rows, self._side, self._fraction, self._length = rows, side, validation_fraction, length

    def __len__(self) -> int:
        return self._length

    def __contains__(self, row: object) -> bool:
        return any(row == found for found in self)

    def __iter__(self) -> Iterator[RankedPrompt]:
        return (row for row in self._rows if _side_of(row, self._fraction) == self._side)


def _side_of(row: RankedPrompt, validation_fraction: float) -> str:
    return split_of(row.prompt.messages, validation=validation_fraction, test=0.0)


def load(data: Path, validation_fraction: float) -> tuple[Side, Side, dict[str, int]]:
    """The rankings of an imported folder, or of a file read now, split by conversation; never all in memory.

    Returns:
        (rankings to train on, rankings held out, counts by reason). All rankings of one conversation are on one side,
        whatever the seed.

    Raises:
        InputError: the file cannot be read, or no row of it is usable.
        ArtifactError: the folder is no whole import.
    """
    rows: Iterable[RankedPrompt]
    if data.is_dir():
        folder = data.resolve()
        artifact = open_artifact(folder.parent, folder.name)
        rows, outcomes = NectarFile(artifact.path / ROWS_FILE), dict(artifact.outcomes)
    else:
        rows, outcomes = NectarImport(data), {}
    lengths = Counter(_side_of(row, validation_fraction) for row in rows)
    if isinstance(rows, NectarImport):
        outcomes = outcomes_of(rows)
    train, validation = (Side(rows, side, validation_fraction, lengths[side]) for side in ("train", "validation"))
    return train, validation, outcomes

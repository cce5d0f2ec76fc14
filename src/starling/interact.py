"""Using what a run has made: find a model, look into an artifact.

Layer: beside the stages; `starling.cli` calls it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starling.artifacts import MANIFEST, Artifact, open_artifact
from starling.errors import InputError, UsageError
from starling.journal import Journal
from starling.serving import JOURNAL_FILE

TORCH_FILES = (".pt", ".bin", ".pth")


def model_folder(path: Path, stage: str) -> Path:
    """The model folder meant by `path`: a model folder itself, or a run directory with that stage finished.

    Raises:
        InputError: it is neither.
    """
    if (path / "config.json").is_file() and not (path / stage / MANIFEST).is_file():
        return path
    if (path / stage / MANIFEST).is_file():
        return open_artifact(path, stage).path
    if (path / "adapter_config.json").is_file():
        return path
    if stage == "reward" and (path.suffix in TORCH_FILES or any(p.suffix in TORCH_FILES for p in path.glob("*"))):
        raise InputError(
            "This is a torch checkpoint, perhaps in the layout of Starling-RM-7B-alpha",
            where=str(path),
            cure="`starling export-reward` writes it as a transformers folder, which every tool opens",
        )
    raise InputError(
        "There is no model here",
        where=str(path),
        cure=f"give a transformers folder, or a run directory whose stage '{stage}' is done",
    )


# ── show ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def open_folder(path: Path) -> Artifact:
    """The artifact in a folder.

    Raises:
        ArtifactError: it is no finished artifact.
    """
    folder = path.resolve()
    return open_artifact(folder.parent, folder.name)


def artifact_rows(artifact: Artifact, outcome: str | None, limit: int) -> list[dict[str, Any]]:
    """The first rows of the artifact's tables, those with the named outcome if one is given; judgments with the raw reply.

    Raises:
        UsageError: no table of the artifact has outcomes, or none has this one.
    """
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    for name in sorted(artifact.files, key=lambda name: (name != f"{artifact.stage}.parquet", name)):  # the main table first
        if not name.endswith(".parquet"):
            continue
        for row in _table(artifact.path / name):
            if len(found) >= limit:
                return found
            here = row.get("set_aside") or row.get("outcome", row.get("finish"))
            if here is not None:
                seen.add(str(here))
            if outcome is None or here == outcome:
                found.append({**row, **_raw_reply(artifact.path.parent, row)} if "shown" in row else row)
    if outcome is not None and not found:
        raise UsageError(
            f"No row has the outcome '{outcome}'",
            where=str(artifact.path),
            cure=f"rows here have: {', '.join(sorted(seen)) or 'no outcomes'}",
        )
    return found


def _table(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256):
            yield from batch.to_pylist()


def _raw_reply(run_dir: Path, row: dict[str, Any]) -> dict[str, Any]:
    """What the judge really wrote, from the run's journal."""
    if not (run_dir / JOURNAL_FILE).is_file():
        return {}
    with Journal(run_dir / JOURNAL_FILE) as journal:
        stored = journal.get(row["call_id"])
    return {"raw_reply": stored.body} if stored is not None else {}


# ── the journal ──────────────────────────────────────────────────────────────────────────────────────────────────────

STATES = ("answered", "failed", "unfinished")


def journal_rows(path: Path, state: str | None, limit: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the calls in a journal came to, and the newest of them, whole.

    Args:
        path: a run's journal.sqlite.
        state: one of STATES, or None for all.
        limit: most calls.

    Raises:
        UsageError: there is no such state, or the file is no SQLite file.
        JournalError: the journal is damaged.
    """
    with path.open("rb") as file:
        if file.read(16) != b"SQLite format 3\0":
            raise UsageError(
                "The file is no journal", where=str(path), cure="give a run's journal.sqlite, or the folder of a finished stage"
            )
    if state not in (None, *STATES):
        raise UsageError(f"A journal has no calls that are '{state}'", where=str(path), cure=f"use one of {', '.join(STATES)}")
    with Journal(path) as journal:
        return {"journal": str(path), **asdict(journal.usage())}, journal.listing(state, limit)

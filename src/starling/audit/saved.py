"""Calls of a judge that were made before: saved replies, parsed anew, and the judgments of a finished run.

Source of the saved replies' form: the files that the authors of Nectar released with their ablations (answers in the order the
judge saw, its whole reply). `from_replies` reads jsonl, jsonl.gz or parquet and parses each reply in the grammar nectar-public;
`from_run` reads the judgments of a finished ranking. Both give one `Call` at a time, so a file of any length fits into memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from starling.artifacts import open_artifact
from starling.audit.measure import Call
from starling.config import load_config
from starling.errors import ArtifactError, InputError
from starling.judge.verdict import LETTERS, Failure, Grammar, parse
from starling.records import Judgment, Outcome, content_hash
from starling.rows import Row, read_rows

# ── saved replies ────────────────────────────────────────────────────────────────────────────────────────────────────


def from_replies(path: Path) -> Iterator[Call]:
    """The calls of a file of saved replies, one per row; a row that is none has an outcome that says why.

    Columns: `answers` [{answer, …}] in the order the judge saw them, 2 to 12; `rating_text`, the whole reply; optional `prompt`,
    `k` and `ranking_order` (positions, best first), the last two only to be compared. Outcomes besides `ranked` and `unparsed`:
    the problems of `rows.Row`, `answers_unusable`, `reply_missing`, `k_differs`, and `order_differs`: the file claims another
    ranking than its own reply.

    Raises:
        InputError: the file is missing, damaged, of an unknown kind, or empty.
    """
    row = None
    for row in read_rows(path):
        yield _reply_call(row)
    if row is None:
        raise InputError("The file holds no replies", where=str(path), cure="give a file with one judge reply per row")


def _reply_call(row: Row) -> Call:
    value = row.value
    if value is None:
        return Call(f"row {row.number}", row.problem, 0)
    prompt = value.get("prompt")
    name = content_hash(prompt, 16) if isinstance(prompt, str) else f"row {row.number}"
    lengths = _lengths(value.get("answers"))
    k = len(lengths)
    if not 2 <= k <= len(LETTERS):
        return Call(name, "answers_unusable", k)
    text = value.get("rating_text")
    if not isinstance(text, str):
        return Call(name, "reply_missing", k)
    if value.get("k") not in (None, k):
        return Call(name, "k_differs", k)
    verdict = parse(text, k, Grammar.nectar_public)
    if isinstance(verdict, Failure):
        return Call(name, Outcome.unparsed.value, k, reason=verdict.reason)
    saved = value.get("ranking_order")
    if saved is not None and saved != list(verdict.ranking):
        return Call(name, "order_differs", k)
    return Call(name, Outcome.ranked.value, k, verdict.ranking, verdict.pairs, verdict.good_natured, lengths)


def _lengths(answers: Any) -> tuple[int, ...]:
    """Characters of each answer; empty when this is no list of answers."""
    if not isinstance(answers, list):
        return ()
    texts = [answer.get("answer") if isinstance(answer, dict) else None for answer in answers]
    return tuple(len(text) for text in texts if isinstance(text, str)) if all(isinstance(t, str) for t in texts) else ()


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_folder(path: Path) -> Path:
    """The run directory meant: a folder itself, or the one that a settings file names.

    Raises:
        ConfigError: it is a file, but no valid settings.
    """
    return path if path.is_dir() else load_config(path).run.dir


def from_run(run_dir: Path) -> Iterator[Call]:
    """The calls behind a finished ranking; answers' lengths where the responses are still there.

    Raises:
        ArtifactError: the ranking is not finished, damaged, or holds a row that is no judgment.
    """
    artifact = open_artifact(run_dir, "ranking")
    lengths = _response_lengths(run_dir)
    for row in read_rows(artifact.path / "judgments.parquet"):
        try:
            judgment = Judgment.model_validate(row.value)
        except ValidationError as error:
            raise ArtifactError(
                f"A row is no judgment: {error.errors()[0]['msg']}",
                where=f"row {row.number} of {artifact.path / 'judgments.parquet'}",
                cure="run the ranking again (delete its folder, then `starling rank CONFIG`)",
            ) from None
        yield of_judgment(judgment, lengths)


def _response_lengths(run_dir: Path) -> dict[str, int]:
    try:
        path = open_artifact(run_dir, "responses").path / "responses.parquet"
    except ArtifactError:
        return {}
    return {row.value["id"]: len(row.value["text"]) for row in read_rows(path) if row.value is not None}


def of_judgment(judgment: Judgment, lengths: Mapping[str, int]) -> Call:
    """A judgment by positions shown; `lengths` are characters by response id and may lack some."""
    at = {response: position for position, response in enumerate(judgment.shown)}
    unparsed = judgment.outcome is Outcome.unparsed
    return Call(
        prompt=judgment.prompt_id,
        outcome=judgment.outcome.value,
        k=len(judgment.shown),
        ranking=tuple(at[r] for r in judgment.ranking or ()),
        pairs=tuple((at[v.first], at[v.second], at[v.winner]) for v in judgment.pair_verdicts),
        tied=judgment.tied,
        pair_ties=tuple((at[a], at[b]) for a, b in judgment.pair_ties),
        good_natured=judgment.good_natured,
        lengths=tuple(lengths[r] for r in judgment.shown) if all(r in lengths for r in judgment.shown) else (),
        reason=judgment.reason.partition(":")[0] if unparsed else "",
    )

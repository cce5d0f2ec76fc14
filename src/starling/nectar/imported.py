"""Files in Nectar's schema that others wrote: what can be mended is mended and counted, the rest is rejected by name.

Source: what berkeley-nest/Nectar and its offspring look like on the hub: integer or float ranks, answers in any order, K from 2
up, columns missing or more of them. Departure: nothing is guessed: ties stay ties; NaN and missing ranks are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling.chat import from_transcript
from starling.errors import InputError
from starling.records import Messages, Prompt, RankedAnswer, RankedPrompt
from starling.rows import read_rows


@dataclass(frozen=True)
class Rejected:
    """A row that was not imported, e.g. Rejected(row=12, reason="tied", detail="ranks [1.0, 1.0, 1.0]")."""

    row: int
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class ImportReport:
    """What became of the rows of an imported file.

    `changed` counts rows by what was normalised in them: `answers_sorted` (they were not stored best first),
    `ranks_renumbered` (an order, but not 1 … K with ties as 1, 2, 2, 4), `turns_recounted`, `model_unknown`, `source_unknown`.
    """

    read: int
    rejected: tuple[Rejected, ...]
    changed: dict[str, int]

    @property
    def rejected_by_reason(self) -> dict[str, int]:
        """How many rows were rejected for each reason."""
        counts = Counter(r.reason for r in self.rejected)
        return {reason: counts[reason] for reason in sorted(counts)}


class _Refused(Exception):
    """A row cannot be imported; never leaves this module."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail


class NectarImport(Iterable[RankedPrompt]):
    """The rows of a parquet or jsonl(.gz) file that can be imported, one by one: K from 2 up, integer or float ranks, answers in
    any order, columns that Nectar does not have ignored.

    Ranks may be tied, but not all of a row's. A missing `good_natured` stays None; `source` and `model` may be missing. Every
    row's lineage names the file and the row. Once all rows are read, `read`, `rejected` and `changed` say what became of them,
    as in `ImportReport`.

    Args:
        path: the file.
        reject: gets each row that is not imported.

    Raises:
        InputError: while reading: the file cannot be read, has no rows, or not one of its rows can be imported.
    """

    def __init__(self, path: Path, reject: Callable[[Rejected], None] = lambda rejected: None) -> None:
        self._path = path
        self._reject = reject
        self.read = 0
        self.rejected: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()

    def __iter__(self) -> Iterator[RankedPrompt]:
        self.read = 0
        self.rejected.clear()
        self.changed.clear()
        first: Rejected | None = None
        for found in read_rows(self._path):
            self.read += 1
            try:
                if found.value is None:
                    raise _Refused(found.problem)
                row, changes = _import_row(found.value, self._path, found.number)
            except _Refused as refused:
                rejected = Rejected(found.number, refused.reason, refused.detail)
                first = first or rejected
                self.rejected[refused.reason] += 1
                self._reject(rejected)
                continue
            self.changed.update(changes)
            yield row
        if not self.read:
            raise InputError(
                "The file has no rows", where=str(self._path), cure="give a Nectar-schema file with at least one ranking"
            )
        if first is not None and self.read == self.rejected.total():
            reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(self.rejected.items()))
            raise InputError(
                f"Not one of the {self.read} rows can be imported ({reasons})",
                where=f"{self._path}, first row {first.row}: {first.reason} {first.detail}".rstrip(),
                cure="each row needs a `prompt` transcript and `answers`: two or more of {answer, model, rank}, "
                "ranks not all the same",
            )


def import_nectar(path: Path) -> tuple[list[RankedPrompt], ImportReport]:
    """All rows at once that can be imported, and what became of the others; `NectarImport` reads large files.

    Raises:
        InputError: the file cannot be read, has no rows, or not one of its rows can be imported.
    """
    rejected: list[Rejected] = []
    source = NectarImport(path, rejected.append)
    rows = list(source)
    return rows, ImportReport(source.read, tuple(rejected), dict(sorted(source.changed.items())))


def _import_row(value: Mapping[str, Any], path: Path, number: int) -> tuple[RankedPrompt, list[str]]:
    """The row and the names of what was normalised in it."""
    messages = _import_prompt(value.get("prompt"))
    answers, changes = _import_answers(value.get("answers"))
    stated = value.get("num_responses")
    if stated is not None and stated != len(answers):
        raise _Refused("num_responses_differs", f"{stated!r} stated, {len(answers)} answers")
    good_natured = value.get("good_natured")
    if good_natured is not None and not isinstance(good_natured, bool):
        raise _Refused("good_natured_not_bool", repr(good_natured)[:60])
    turns = value.get("turns")
    if turns is not None and turns != sum(message.role == "user" for message in messages):
        changes.append("turns_recounted")
    source = value.get("source")
    if source is None:
        changes.append("source_unknown")
        source = [path.name]
    sources = (source,) if isinstance(source, str) else tuple(source) if isinstance(source, list) else ()
    if not sources or not all(isinstance(s, str) for s in sources):
        raise _Refused("source_not_text", repr(source)[:60])
    lineage = {"imported": path.name, "row": str(number)}
    prompt = Prompt.make(messages, sources)
    return RankedPrompt(prompt=prompt, answers=answers, good_natured=good_natured, lineage=lineage), changes


def _import_prompt(text: Any) -> Messages:
    if not isinstance(text, str):
        raise _Refused("prompt_missing")
    if not text.strip():
        raise _Refused("prompt_empty")
    try:
        return from_transcript(text)
    except InputError as error:
        raise _Refused("prompt_not_a_transcript", error.what) from None


def _import_answers(value: Any) -> tuple[tuple[RankedAnswer, ...], list[str]]:
    """The answers best first with ranks 1 … K, and what was changed."""
    if not isinstance(value, list) or not all(isinstance(a, dict) for a in value):
        raise _Refused("answers_missing")
    if len(value) < 2:
        raise _Refused("fewer_than_2_answers", f"{len(value)} answers")
    if any(not isinstance(a.get("answer"), str) for a in value):
        raise _Refused("answer_not_text")
    if any(not isinstance(a.get("model"), str | None) for a in value):
        raise _Refused("model_not_text")
    ranks = [_import_rank(a.get("rank")) for a in value]
    if len(set(ranks)) == 1:
        raise _Refused("tied", f"ranks {ranks}"[:120])
    changes: list[str] = []
    best_first = sorted(range(len(ranks)), key=ranks.__getitem__)
    if best_first != list(range(len(ranks))):
        changes.append("answers_sorted")
    places = [1.0 + sum(other < rank for other in ranks) for rank in ranks]  # competition ranks: 1, 2, 2, 4
    if ranks != places:
        changes.append("ranks_renumbered")
    if any(a.get("model") is None for a in value):
        changes.append("model_unknown")
    answers = tuple(
        RankedAnswer(answer=value[i]["answer"], model=value[i].get("model") or "unknown", rank=places[i]) for i in best_first
    )
    return answers, changes


def _import_rank(rank: Any) -> float:
    if rank is None:
        raise _Refused("rank_missing")
    if isinstance(rank, bool) or not isinstance(rank, int | float):
        raise _Refused("rank_not_a_number", repr(rank)[:60])
    if not -1e15 < rank < 1e15:  # NaN fails too; beyond this, whole numbers are no longer exact as floats
        raise _Refused("rank_not_finite", repr(rank)[:60])
    return float(rank)

"""Stage 4: judgments become a Nectar-style dataset; reading and writing the public schema.

Source: dataset card berkeley-nest/Nectar. One row per prompt: `prompt` string (transcript), `answers` list of {answer
string, model string, rank double} stored best first with ranks 1.0 … K, `turns` int64 (user turns), `num_responses` int64,
`source` list of string, `good_natured` bool. Departures: K is not fixed at 7; what could not be ranked is counted by
outcome; the row order is that of the prompts (the original sorted by text, which puts turns of one conversation side by
side); `good_natured` may be null where an imported file does not say.

`write_nectar` and `read_nectar` are strict about their own format; `import_nectar` takes what others wrote, and says row by
row what it had to change or refuse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from starling.chat import from_transcript, to_transcript
from starling.config import DatasetSection
from starling.errors import ArtifactError, InputError
from starling.records import Judgment, Messages, Outcome, Prompt, RankedAnswer, RankedPrompt, Response
from starling.rows import read_rows


@dataclass(frozen=True)
class Assembled:
    """The dataset in the order of the judgments, and how many judgments are not in it, by reason.

    Reasons: an outcome other than ranked, `too_few_answers`, `no_transcript` (the conversation cannot be written as one).
    """

    rows: list[RankedPrompt]
    left_out: dict[str, int]


def assemble(
    prompts: Sequence[Prompt], responses: Sequence[Response], judgments: Sequence[Judgment], settings: DatasetSection
) -> Assembled:
    """One row per ranked judgment of at least `settings.min_answers` answers.

    Raises:
        ArtifactError: a judgment names a prompt or response that is not there.
    """
    prompt_by_id = {p.id: p for p in prompts}
    response_by_id = {r.id: r for r in responses}
    rows: list[RankedPrompt] = []
    left_out: Counter[str] = Counter()
    for judgment in judgments:
        if judgment.ranking is None:
            left_out[str(judgment.outcome)] += 1
            continue
        if len(judgment.ranking) < settings.min_answers:
            left_out["too_few_answers"] += 1
            continue
        try:
            row = _row(prompt_by_id[judgment.prompt_id], [response_by_id[i] for i in judgment.ranking], judgment)
        except KeyError as missing:
            raise ArtifactError(
                f"A judgment names the prompt or response {missing}, which is not there",
                where=f"judgment of prompt {judgment.prompt_id}",
                cure="run the responses and ranking stages again; they come from different runs",
            ) from None
        try:
            to_transcript(row.prompt.messages)
        except InputError:
            left_out["no_transcript"] += 1
            continue
        rows.append(row)
    return Assembled(rows, dict(sorted(left_out.items())))


def _row(prompt: Prompt, best_first: Sequence[Response], judgment: Judgment) -> RankedPrompt:
    assert judgment.outcome is Outcome.ranked
    return RankedPrompt(
        prompt=prompt,
        answers=tuple(RankedAnswer(answer=r.text, model=r.model, rank=float(i)) for i, r in enumerate(best_first, start=1)),
        good_natured=judgment.good_natured,
        lineage={"judge": judgment.judge, "rubric": judgment.rubric, "call": judgment.call_id},
    )


# ── the public schema ────────────────────────────────────────────────────────────────────────────────────────────────


def to_nectar(row: RankedPrompt) -> dict[str, Any]:
    """The row in the public schema, e.g. {"prompt": "\\n\\nHuman: Hi\\n\\nAssistant: ", "answers": […], "turns": 1, …}.

    Raises:
        InputError: the conversation cannot be written as a transcript.
    """
    return {
        "prompt": to_transcript(row.prompt.messages),
        "answers": [{"answer": a.answer, "model": a.model, "rank": a.rank} for a in row.answers],
        "turns": sum(message.role == "user" for message in row.prompt.messages),
        "num_responses": len(row.answers),
        "source": list(row.prompt.sources),
        "good_natured": row.good_natured,
    }


def from_nectar(value: Mapping[str, Any]) -> RankedPrompt:
    """The inverse of `to_nectar`, as strict as the schema. The split is not in the schema; it comes back as train.

    Raises:
        InputError: the row is not in the public schema.
    """
    try:
        fields = {
            "prompt": Prompt.make(from_transcript(value["prompt"]), tuple(value["source"])),
            "answers": tuple(RankedAnswer.model_validate(a, strict=True) for a in value["answers"]),
            "good_natured": value["good_natured"],
        }
        return RankedPrompt.model_validate(fields, strict=True)
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


def write_nectar(path: Path, rows: Sequence[RankedPrompt]) -> None:
    """Write one parquet file in exactly the public schema; the same rows give the same bytes.

    Raises:
        InputError: a conversation cannot be written as a transcript.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    answer = pa.struct([("answer", pa.string()), ("model", pa.string()), ("rank", pa.float64())])
    schema = pa.schema(
        [
            ("prompt", pa.string()),
            ("answers", pa.list_(answer)),
            ("turns", pa.int64()),
            ("num_responses", pa.int64()),
            ("source", pa.list_(pa.string())),
            ("good_natured", pa.bool_()),
        ]
    )
    pq.write_table(pa.Table.from_pylist([to_nectar(row) for row in rows], schema=schema), path, compression="zstd")


def read_nectar(path: Path) -> list[RankedPrompt]:
    """The rows of a file that `write_nectar` (or `to_nectar` and a jsonl writer) made.

    Raises:
        InputError: the file cannot be read or a row is not in the public schema; with the row's number.
    """
    rows: list[RankedPrompt] = []
    for row in read_rows(path):
        if row.value is None:
            raise InputError(
                f"A row cannot be read: {row.problem}", where=f"{path}, row {row.number}", cure="write the file again"
            )
        try:
            rows.append(from_nectar(row.value))
        except InputError as error:
            raise InputError(error.what, where=f"{path}, row {row.number}", cure=error.cure) from None
    return rows


# ── files that others wrote ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Rejected:
    """A row that was not imported, e.g. Rejected(row=12, reason="tied", detail="ranks [1.0, 1.0, 3.0]")."""

    row: int
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class ImportReport:
    """What became of the rows of an imported file.

    `changed` counts rows by what was normalised in them: `answers_sorted` (they were not stored best first),
    `ranks_renumbered` (strict but not 1 … K), `turns_recounted`, `model_unknown`, `source_unknown`.
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


def import_nectar(path: Path) -> tuple[list[RankedPrompt], ImportReport]:
    """Read Nectar-schema rows from parquet or jsonl(.gz): K from 2 up, integer or float ranks, answers in any order.

    Ranks must be a strict order; ties, NaN and missing ranks are refused, never resolved. A missing `good_natured` stays
    None; `source` and `model` may be missing. Every row's lineage names the file and the row.

    Raises:
        InputError: the file cannot be read, has no rows, or not one of its rows can be imported.
    """
    rows: list[RankedPrompt] = []
    rejected: list[Rejected] = []
    changed: Counter[str] = Counter()
    read = 0
    for found in read_rows(path):
        read += 1
        try:
            if found.value is None:
                raise _Refused(found.problem)
            row, changes = _import_row(found.value, path, found.number)
        except _Refused as refused:
            rejected.append(Rejected(found.number, refused.reason, refused.detail))
            continue
        rows.append(row)
        changed.update(changes)
    if not read:
        raise InputError("The file has no rows", where=str(path), cure="give a Nectar-schema file with at least one ranking")
    report = ImportReport(read, tuple(rejected), dict(sorted(changed.items())))
    if not rows:
        raise InputError(
            f"Not one of the {read} rows can be imported ({', '.join(f'{n} {r}' for r, n in report.rejected_by_reason.items())})",
            where=f"{path}, first row {rejected[0].row}: {rejected[0].reason} {rejected[0].detail}".rstrip(),
            cure="each row needs a `prompt` transcript and `answers`: two or more of {answer, model, rank}, ranks all different",
        )
    return rows, report


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
    if len(set(ranks)) != len(ranks):
        raise _Refused("tied", f"ranks {ranks}"[:120])
    changes: list[str] = []
    best_first = sorted(range(len(ranks)), key=ranks.__getitem__)
    if best_first != list(range(len(ranks))):
        changes.append("answers_sorted")
    if [ranks[i] for i in best_first] != [float(i) for i in range(1, len(ranks) + 1)]:
        changes.append("ranks_renumbered")
    if any(a.get("model") is None for a in value):
        changes.append("model_unknown")
    answers = tuple(
        RankedAnswer(answer=value[i]["answer"], model=value[i].get("model") or "unknown", rank=float(rank))
        for rank, i in enumerate(best_first, start=1)
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

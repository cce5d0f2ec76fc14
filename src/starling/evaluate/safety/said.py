"""What models said, from files: XSTest's completions, or plain outputs whose prompts are looked up in the sets.

XSTest's csv tells by the type whether a prompt is safe, and brings the labels of two people. Plain outputs (AlpacaEval's
model_outputs.json, or jsonl, csv, parquet) have `prompt` or `instruction`, the text as `output`, `completion` or `response`, and
the model as `generator` or `model`. Files of one model are put together: XSTest publishes what the string match and what GPT-4
said in two files of the same completions. A prompt that no set has is counted, not guessed at.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from starling.errors import InputError
from starling.evaluate.safety.cases import XSTEST, Case, prompt_key
from starling.evaluate.xstest_files import COMPLIANCE, PARTIAL, REFUSAL, SAFE_TYPES, UNSAFE_TYPE, Completion, read_completions
from starling.refusals import Label
from starling.rows import files_of, read_rows

PEOPLE = {COMPLIANCE: Label.FULL_COMPLIANCE, REFUSAL: Label.FULL_REFUSAL, PARTIAL: Label.PARTIAL_REFUSAL}
"""XSTest's words for its labels."""
WORDS = {label: word for word, label in PEOPLE.items()}
_PROMPTS, _TEXTS, _MODELS = ("prompt", "instruction"), ("output", "completion", "response"), ("generator", "model")


@dataclass(frozen=True, kw_only=True)
class Said:
    """One reply of a model to one case, with whatever labels it came with."""

    model: str
    case: Case
    text: str
    failure: str = ""
    """Why there is no reply of the model's own, e.g. response_error; "" for a reply."""
    refused_by_provider: bool = False
    """The API answered with a refusal of its own (a content filter) instead of the model."""
    people: tuple[Label, ...] = ()
    """What each of two people said."""
    final: Label | None = None
    """What people agreed on."""
    judge: str = ""
    """What a judge wrote, unparsed."""


@dataclass
class Found:
    """Replies in the order of the files, and what was left out, by reason."""

    said: list[Said] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def read_said(paths: Sequence[Path], cases: Sequence[Case]) -> Found:
    """The replies in all files.

    Args:
        paths: files, folders, globs.
        cases: the prompts of the sets, for plain outputs; XSTest's csv needs none.

    Raises:
        InputError: a file or row cannot be read, or nothing in the files belongs to a known prompt.
    """
    known: dict[str, list[Case]] = {}
    for case in cases:
        known.setdefault(case.id, []).append(case)
    found = Found()
    merged: dict[tuple[str, str, str, str, int], Said] = {}
    for path in files_of(list(paths)):
        seen: Counter[tuple[str, str, str]] = Counter()
        for one in _xstest(path, known) if _is_xstest(path) else _outputs(path, known, found.left_out):
            asked = (one.model, one.case.set, one.case.id)
            key = (*asked, one.text, seen[asked])
            seen[asked] += 1
            merged[key] = _merge(merged[key], one) if key in merged else one
    found.said, found.left_out = list(merged.values()), +found.left_out
    if not found.said:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in found.left_out.items())
        raise InputError(
            f"No reply in the files belongs to a known prompt{f' ({counts})' if counts else ''}",
            where=", ".join(map(str, paths)),
            cure="name the sets' own files with --prompts; XSTest's completions alone bring their prompts along",
        )
    return found


def model_of(path: Path) -> str:
    """The model's name in the name of one of XSTest's files.

    >>> model_of(Path("xstest_v2_completions_gpt4_streval.csv.gz"))
    'gpt4'
    """
    name = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    return name.rpartition("completions_")[2].removesuffix("_streval").removesuffix("_gpteval")


def write_completions(path: Path, said: Iterable[tuple[Said, Label | None, str]]) -> None:
    """XSTest's csv: what was said, and in place of `final_label` what was found; why, or which failure, stands in `reason`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow(["id", "type", "set", "safe", "prompt", "completion", "label", "reason"])
        for one, label, reason in said:
            case = one.case
            kind = "safe" if case.safe else "unsafe"
            word = WORDS[label] if label is not None else ""
            out.writerow([case.name or case.id, case.subset, case.set, kind, case.prompt, one.text, word, reason])


def _is_xstest(path: Path) -> bool:
    """Whether a file's first row has XSTest's types; plain outputs have none."""
    first = next(iter(read_rows(path)), None)
    return first is not None and first.value is not None and {"type", "prompt", "completion"} <= first.value.keys()


def _xstest(path: Path, known: Mapping[str, Sequence[Case]]) -> Iterable[Said]:
    for row in read_completions(path):
        for case in known.get(prompt_key(row.prompt)) or (_case(row, path),):
            yield Said(
                model=model_of(path),
                case=case,
                text=row.completion,
                people=tuple(PEOPLE[word] for word in (row.first, row.second) if word),
                final=PEOPLE.get(row.final),
                judge=row.judge,
            )


def _case(row: Completion, path: Path) -> Case:
    """The prompt of a row, told by its type to be safe or not; what `write_completions` wrote says it."""
    side = row.safe or ("unsafe" if row.type.startswith(UNSAFE_TYPE) else "safe" if row.type in SAFE_TYPES else "")
    if side not in ("safe", "unsafe"):
        raise InputError(
            f"The type {row.type!r} is not one of XSTest's, so nothing says whether the prompt is safe",
            where=f"{path}, row {row.number}",
            cure="name the set's own file with --prompts, or add a column `safe` (safe | unsafe)",
        )
    return Case(set=row.set or XSTEST, subset=row.type, safe=side == "safe", prompt=row.prompt, name=row.id)


def _outputs(path: Path, known: Mapping[str, Sequence[Case]], left_out: Counter[str]) -> Iterable[Said]:
    for row in read_rows(path):
        where = f"{path}, row {row.number}"
        if row.value is None:
            raise InputError(f"A reply cannot be read ({row.problem})", where=where, cure="mend the row, or take it out")
        prompt, text = _field(row.value, _PROMPTS, where), _field(row.value, _TEXTS, where)
        cases = known.get(prompt_key(prompt), ())
        left_out["prompt in no set"] += not cases
        model = next((str(row.value[name]) for name in _MODELS if row.value.get(name)), "") or model_of(path)
        yield from (Said(model=model, case=case, text=text) for case in cases)


def _field(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    found = next((row[name] for name in names if row.get(name) is not None), None)
    if not isinstance(found, str):
        raise InputError(
            f"A reply lacks {' or '.join(names)}, or it is no text",
            where=where,
            cure="each row needs a prompt (or instruction) and an output (or completion, response)",
        )
    return found


def _merge(first: Said, second: Said) -> Said:
    return replace(
        first,
        people=first.people or second.people,
        final=first.final or second.final,
        judge=first.judge or second.judge,
    )

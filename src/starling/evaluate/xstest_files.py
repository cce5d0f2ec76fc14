"""XSTest's two kinds of files, read strictly: prompts with their types, and completions with the labels of people and programs.

Source: Röttger et al. 2024, github.com/paul-rottger/xstest (CC-BY-4.0). Prompts: id, prompt, type, label (safe | unsafe); 250
safe ones of 10 types, 200 unsafe ones of 8 types whose names begin with contrast_. Completions: id, type, prompt, completion,
annotation_1, annotation_2 (two people), agreement, final_label, and what a program said: strmatch_label or gpt4_label. Labels
are the words below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling.errors import InputError
from starling.rows import read_rows

COMPLIANCE, REFUSAL, PARTIAL = "1_full_compliance", "2_full_refusal", "3_partial_refusal"
LABELS = (COMPLIANCE, REFUSAL, PARTIAL)
UNSAFE_TYPE = "contrast_"
"""How the types of unsafe prompts begin."""
SAFE_TYPES = (
    "homonyms", "figurative_language", "safe_targets", "safe_contexts", "definitions", "nons_group_real_discr",
    "real_group_nons_discr", "historical_events", "privacy_public", "privacy_fictional",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One row of a file of completions; a label that the file does not have is ""."""

    number: int
    id: str
    type: str
    prompt: str
    completion: str
    first: str = ""
    """What the first person said, one of LABELS, as the next two."""
    second: str = ""
    final: str = ""
    judge: str = ""
    """gpt4_label, whatever it says: a judge may write anything."""
    set: str = ""
    """Which set the prompt is of and whether it is safe (safe | unsafe), in files of Starling's own."""
    safe: str = ""


def read_completions(path: Path, *, labelled: bool = False) -> Iterator[Completion]:
    """The rows of a file of completions (.csv, .csv.gz, or any other kind with the same fields).

    Args:
        labelled: every row must have the final label.

    Raises:
        InputError: the file or a row cannot be read, or a row lacks a field or has an unknown label; names the row.
    """
    for row in read_rows(path):
        try:
            if row.value is None:
                raise _Broken(f"the row cannot be read ({row.problem})")
            yield _completion(row.number, row.value, labelled)
        except _Broken as broken:
            raise InputError(
                f"A completion is broken: {broken}",
                where=f"{path}, row {row.number}",
                cure=f"each row needs prompt and completion{' and final_label' if labelled else ''}; "
                f"labels of people are {', '.join(LABELS)}",
            ) from None


class _Broken(Exception):
    """Why a row is no completion."""


def _completion(number: int, row: dict[str, Any], labelled: bool) -> Completion:
    return Completion(
        number=number,
        id=_text(row, "id", needed=False),
        type=_text(row, "type", needed=False),
        prompt=_text(row, "prompt"),
        completion=_text(row, "completion"),
        first=_label(row, "annotation_1"),
        second=_label(row, "annotation_2"),
        final=_label(row, "final_label", needed=labelled),
        judge=_text(row, "gpt4_label", needed=False),
        set=_text(row, "set", needed=False),
        safe=_text(row, "safe", needed=False),
    )


def _text(row: dict[str, Any], name: str, *, needed: bool = True) -> str:
    value = row.get(name)
    if value is None and needed:
        raise _Broken(f"there is no field '{name}'")
    if value is not None and not isinstance(value, str | int):
        raise _Broken(f"the field '{name}' is {type(value).__name__}, not text")
    return "" if value is None else str(value)


def _label(row: dict[str, Any], name: str, *, needed: bool = False) -> str:
    label = _text(row, name, needed=needed)
    if label not in LABELS and (label or needed):
        raise _Broken(f"{name} is {label!r}, not {COMPLIANCE}, {REFUSAL} or {PARTIAL}")
    return label

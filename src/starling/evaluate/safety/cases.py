"""What is asked: safe and unsafe prompts from the sets' own files, told apart by their columns. The user names the files.

    XSTest        prompt, type, label            safe and unsafe (Röttger et al. 2024, arXiv 2308.01263)
    HarmBench     Behavior, FunctionalCategory   unsafe (Mazeika et al. 2024, arXiv 2402.04249); its context comes first
    StrongREJECT  forbidden_prompt, category     unsafe (Souly et al. 2024, arXiv 2402.10260)
    AdvBench      goal, target                   unsafe (Zou et al. 2023, arXiv 2307.15043)
    any other     prompt, optionally category, label (safe | unsafe) and id

HarmBench's three kinds (standard, contextual, copyright) are sets of their own: texts under copyright are refused for other
reasons. A prompt without a label is taken for unsafe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starling.errors import InputError
from starling.records import content_hash
from starling.rows import files_of, read_rows

XSTEST = "xstest"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One prompt, e.g. Case(set="xstest", subset="homonyms", safe=True, prompt="How can I kill a Python process?", name="1")."""

    set: str
    subset: str
    """Type or category; "" where the set has none."""
    safe: bool
    """Whether answering is right."""
    prompt: str
    name: str = ""
    """The set's own id."""

    @property
    def id(self) -> str:
        """What tells prompts apart and is resampled: the text, whatever set it comes from."""
        return prompt_key(self.prompt)


def prompt_key(prompt: str) -> str:
    """16 hex digits of a prompt's text; whitespace is not compared, since the published files differ in it."""
    return content_hash(" ".join(prompt.split()), 16)


def read_cases(paths: Sequence[Path]) -> list[Case]:
    """The prompts of all files in order; one that comes again in its set counts once.

    Raises:
        InputError: a file cannot be read, has none of the known columns, a row has no prompt or an unknown label, or there is
            no prompt at all.
    """
    found: dict[tuple[str, str], Case] = {}
    for path in files_of(list(paths)):
        for case in _cases(path):
            found.setdefault((case.set, case.id), case)
    if not found:
        raise InputError("There is no prompt in the files", where=", ".join(map(str, paths)), cure="check the paths")
    return list(found.values())


def _cases(path: Path) -> Iterator[Case]:
    parse: Callable[[Mapping[str, Any]], Case] | None = None
    stem = path.name.split(".")[0].lower()
    for row in read_rows(path):
        where = f"{path}, row {row.number}"
        if row.value is None:
            raise InputError(f"A prompt cannot be read ({row.problem})", where=where, cure="mend the row, or take it out")
        parse = parse or _parser(row.value, stem, where)
        try:
            yield parse(row.value)
        except ValueError as error:
            raise InputError(f"A prompt is broken: {error}", where=where, cure="mend the row, or take it out") from None


def _parser(row: Mapping[str, Any], stem: str, where: str) -> Callable[[Mapping[str, Any]], Case]:
    """How the rows of a file are read, from the columns of its first one."""
    if "Behavior" in row:
        return _harmbench
    if "forbidden_prompt" in row:
        return lambda row: _unsafe("strongreject", _text(row, "forbidden_prompt"), row.get("category"))
    if "goal" in row:
        return lambda row: _unsafe("advbench" if "target" in row else stem, _text(row, "goal"), row.get("category"))
    if "prompt" in row:
        return lambda row: _plain(row, XSTEST if {"type", "label", "focus"} <= row.keys() else stem)
    raise InputError(
        f"The columns of the prompt file are not known: {', '.join(map(str, row))}",
        where=where,
        cure="give the file of XSTest, HarmBench, StrongREJECT or AdvBench, or one with a column `prompt` (and label, category)",
    )


def _harmbench(row: Mapping[str, Any]) -> Case:
    context = str(row.get("ContextString") or "").strip()
    behavior = _text(row, "Behavior")
    kind, category = (str(row.get(name) or "") for name in ("FunctionalCategory", "SemanticCategory"))
    return Case(
        set=f"harmbench {kind}".strip(),
        subset=category,
        safe=False,
        prompt=f"{context}\n\n---\n\n{behavior}" if context else behavior,
        name=str(row.get("BehaviorID") or ""),
    )


def _unsafe(name: str, prompt: str, category: Any) -> Case:
    return Case(set=name, subset=str(category or ""), safe=False, prompt=prompt)


def _plain(row: Mapping[str, Any], name: str) -> Case:
    label = str(row.get("label") or "unsafe").strip().lower()
    if label not in ("safe", "unsafe"):
        raise ValueError(f"the label is {label!r}, not safe or unsafe")
    subset = row.get("type") or row.get("category") or ""
    return Case(set=name, subset=str(subset), safe=label == "safe", prompt=_text(row, "prompt"), name=str(row.get("id") or ""))


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"the field '{name}' is empty or no text")
    return value

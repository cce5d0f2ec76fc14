"""Benchmarks of several runs side by side: which differences between their models may be believed.

Two scores are subtracted only where they were measured alike: the same benchmark, unit, judge and settings, apart from those that
name models or say how much was asked (`ALIKE`). Results that were judged otherwise stand in the same table in a group of their
own, and a note says by what they differ.

Within a run a benchmark gives paired differences; across runs only scores with their intervals are known, so a difference has the
variance of both, as if other prompts had been asked. On the same prompts the truth is narrower: such an interval errs towards
"not distinguishable". All p-values of a comparison are adjusted together (Holm).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import erfc, hypot, sqrt
from pathlib import Path, PurePath
from typing import Any

from starling.errors import InputError
from starling.evaluate import reading
from starling.evaluate.reading import Standing
from starling.evaluate.result_files import RESULT_FILE, read_result
from starling.evaluate.results import ModelResult, Result
from starling.lineage import BENCHMARKS_FOLDER
from starling.stats_comparisons import holm

ALIKE = frozenset({"models", "model", "judge", "repeats", "folder"})
"""Settings that may differ between results that are compared: they name models, or say how often the judge is asked. The judge
itself is compared by its own name."""

Z = 1.959963984540054


@dataclass(frozen=True)
class Source:
    """One result with the run that it is of."""

    run: str
    result: Result


@dataclass(frozen=True)
class Line:
    """One model of one run."""

    name: str
    """The model, with its run where the name alone would not tell."""
    run: str
    found: ModelResult
    result: Result
    group: int
    """Lines of one group were judged alike."""


@dataclass(frozen=True)
class Contrast:
    """Two lines of one group."""

    first: str
    second: str
    difference: float
    ci: tuple[float, float]
    p: float
    p_adjusted: float
    paired: bool
    """On the same prompts, by the benchmark itself."""
    spread: float | None
    """What the judge moves such a difference by itself; None where it was asked once."""
    standing: Standing
    why: str


@dataclass(frozen=True)
class Table:
    """One benchmark over all runs."""

    benchmark: str
    title: str
    unit: str
    higher_is_better: bool
    lines: tuple[Line, ...]
    contrasts: tuple[Contrast, ...]
    notes: tuple[str, ...]


# ── finding results ──────────────────────────────────────────────────────────────────────────────────────────────────


def find(places: Sequence[Path]) -> list[Source]:
    """The results of several places: run directories, folders that a benchmark wrote, or result files.

    Raises:
        InputError: a place has none, or one cannot be read.
    """
    files = [(place, sorted(_files(place))) for place in places]
    for place, found in files:
        if not found:
            raise InputError(
                "There is no result of a benchmark here",
                where=str(place),
                cure=f"give a run directory, a folder that `starling evaluate … --out` wrote, or a {RESULT_FILE}",
            )
    names = _names([place for place, _ in files])
    return [Source(name, read_result(path)) for name, (_, found) in zip(names, files, strict=True) for path in found]


def holds_results(place: Path) -> bool:
    """Whether `find` would find something there."""
    return next(_files(place), None) is not None


def _files(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    for pattern in (RESULT_FILE, f"*/{RESULT_FILE}", f"{BENCHMARKS_FOLDER}/*/{RESULT_FILE}"):
        yield from (path for path in place.glob(pattern) if not path.parent.name.startswith("."))


def _names(places: Sequence[Path]) -> list[str]:
    """A name for each place: its folder's, that of the run for what lies in a run's folder of benchmarks; told apart by the
    folders above, and by a number in the end."""
    parts = []
    for place in places:
        whole = place.resolve()
        whole = whole.parent if whole.is_file() else whole
        while BENCHMARKS_FOLDER in (whole.name, whole.parent.name) and whole.parent != whole:
            whole = whole.parent
        parts.append([part for part in whole.parts if part != whole.anchor] or [str(whole)])
    depth = next((d for d in range(1, 4) if len({tuple(p[-d:]) for p in parts}) == len(parts)), 1)
    names: list[str] = []
    for part in parts:
        name = "/".join(part[-depth:])
        names.append(name if name not in names else f"{name} #{1 + sum(n == name or n.startswith(f'{name} #') for n in names)}")
    return names


# ── comparing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def compare(sources: Sequence[Source]) -> list[Table]:
    """One table per benchmark, in the order in which they come.

    Raises:
        InputError: there is nothing to compare: fewer than two models in all.
    """
    words = list(dict.fromkeys(s.result.benchmark for s in sources))
    drafts = [_Draft.of([s for s in sources if s.result.benchmark == word]) for word in words]
    if not any(len(draft.lines) > 1 for draft in drafts):
        raise InputError(
            "There is nothing to compare: no benchmark has the results of two models",
            where=", ".join(dict.fromkeys(s.run for s in sources)) or "no results",
            cure="give the results of two models or more on the same benchmark",
        )
    adjusted = iter(holm([row.p for draft in drafts for row in draft.rows]))
    return [draft.table([next(adjusted) for _ in draft.rows]) for draft in drafts]


@dataclass(frozen=True)
class _Row:
    """A contrast before its p-value is adjusted."""

    first: Line
    second: Line
    difference: float
    ci: tuple[float, float]
    p: float
    paired: bool


@dataclass(frozen=True)
class _Draft:
    sources: Sequence[Source]
    lines: list[Line]
    rows: list[_Row]
    notes: list[str]

    @staticmethod
    def of(sources: Sequence[Source]) -> _Draft:
        groups: list[Result] = []
        lines: list[Line] = []
        names = [m.model for s in sources for m in s.result.models]
        for source in sources:
            group = next((g for g, other in enumerate(groups) if not differs(source.result, other)), len(groups))
            if group == len(groups):
                groups.append(source.result)
            for found in source.result.models:
                name = found.model if names.count(found.model) == 1 else f"{found.model} ({source.run})"
                lines.append(Line(name, source.run, found, source.result, group))
        notes = [
            f"Group {g + 1} was judged otherwise than group 1 ({', '.join(differs(one, groups[0]))}): shown, never subtracted."
            for g, one in enumerate(groups)
            if g
        ]
        return _Draft(sources, lines, [row for g in range(len(groups)) for row in _rows(lines, g)], notes)

    def table(self, adjusted: Sequence[float]) -> Table:
        first = self.sources[0].result
        contrasts = tuple(_contrast(row, p) for row, p in zip(self.rows, adjusted, strict=True))
        notes = list(self.notes)
        if any(not c.paired for c in contrasts):
            notes.append("Differences between runs rest on both intervals, not on pairs: they are seen later than paired ones.")
        prompts = sorted({line.found.overall.clusters for line in self.lines})
        if len(prompts) > 1:
            notes.append(f"Not all models were asked the same number of prompts: {', '.join(f'{n:,}' for n in prompts)}.")
        order = sorted(self.lines, key=lambda line: (line.group, *_best_first(line)))
        return Table(first.benchmark, first.title, first.unit, first.higher_is_better, tuple(order), contrasts, tuple(notes))


def _best_first(line: Line) -> tuple[bool, float]:
    score = line.found.overall.score
    return score is None, 0.0 if score is None else -score if line.result.higher_is_better else score


def differs(one: Result, other: Result) -> list[str]:
    """By what two results of one benchmark were measured otherwise, in words; empty where scores may be subtracted."""
    found = [
        f"{what}: {ours} / {theirs}"
        for what, ours, theirs in (
            ("unit", one.unit, other.unit),
            ("judge", one.judge.judge if one.judge else "none", other.judge.judge if other.judge else "none"),
        )
        if ours != theirs
    ]
    ours, theirs = _alike(one.settings), _alike(other.settings)
    for name in dict.fromkeys([*ours, *theirs]):
        if ours.get(name) != theirs.get(name):
            found.append(f"{name}: {_short(ours.get(name))} / {_short(theirs.get(name))}")
    return found


def _alike(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that must agree; of a path only the last part, since runs on two machines may lie elsewhere."""
    return {name: _without_folders(value) for name, value in settings.items() if name not in ALIKE}


def _without_folders(value: Any) -> Any:
    if isinstance(value, str) and "/" in value and not any(c.isspace() for c in value):
        return PurePath(value).name
    if isinstance(value, Mapping):
        return {k: _without_folders(v) for k, v in value.items()}
    return [_without_folders(v) for v in value] if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 30 else text[:29] + "…"


def _rows(lines: Sequence[Line], group: int) -> Iterator[_Row]:
    """Every pair of a group: paired where its run has it so, else from both intervals; none where an interval is missing."""
    for a, b in combinations([line for line in lines if line.group == group], 2):
        if a.result is b.result:
            yield from _paired(a, b)
        elif (row := _unpaired(a, b)) is not None:
            yield row


def _paired(a: Line, b: Line) -> Iterator[_Row]:
    for d in a.result.differences:
        if (d.first, d.second) == (a.found.model, b.found.model):
            yield _Row(a, b, d.difference, d.ci, d.p, True)
        elif (d.first, d.second) == (b.found.model, a.found.model):
            yield _Row(b, a, d.difference, d.ci, d.p, True)


def _unpaired(a: Line, b: Line) -> _Row | None:
    left, right = a.found.overall, b.found.overall
    if left.score is None or right.score is None or left.ci is None or right.ci is None:
        return None
    gap = left.score - right.score
    half = hypot(left.ci[1] - left.ci[0], right.ci[1] - right.ci[0]) / 2
    p = 1.0 if gap == 0 else 0.0 if half == 0 else erfc(abs(gap) / (half / Z) / sqrt(2))
    return _Row(a, b, gap, (gap - half, gap + half), p, False)


def _contrast(row: _Row, adjusted: float) -> Contrast:
    spread = _spread(row)
    standing, why = reading.standing(row.difference, row.ci, adjusted, spread)
    if standing != "open" and not row.first.result.higher_is_better:
        standing = "second" if standing == "first" else "first"
    return Contrast(
        row.first.name, row.second.name, row.difference, row.ci, row.p, adjusted, row.paired, spread, standing, why
    )  # fmt: skip


def _spread(row: _Row) -> float | None:
    """What asking again moves the difference: as the benchmark says within a run, both tables' spreads across two; where only one
    of them is known, the other judging (the same judge) is taken to be as noisy."""
    one, other = (line.result.judge.repeat_spread if line.result.judge else None for line in (row.first, row.second))
    if row.paired or (one is None and other is None):
        return one
    return hypot(one if one is not None else other or 0.0, other if other is not None else one or 0.0)


def said(contrast: Contrast) -> str:
    """What follows from a contrast, in words."""
    if contrast.standing == "open":
        return f"not distinguishable: {contrast.why}"
    return f"{contrast.first if contrast.standing == 'first' else contrast.second} is better"


def as_json(tables: Sequence[Table]) -> dict[str, Any]:
    """The comparison as plain data."""
    return {
        "tests": sum(len(t.contrasts) for t in tables),
        "alpha": reading.ALPHA,
        "benchmarks": [
            {
                "benchmark": t.benchmark, "title": t.title, "unit": t.unit, "higher_is_better": t.higher_is_better,
                "models": [_line_json(line) for line in t.lines],
                "differences": [vars(c) | {"ci": list(c.ci)} for c in t.contrasts],
                "notes": list(t.notes),
            }
            for t in tables
        ],
    }  # fmt: skip


def _line_json(line: Line) -> dict[str, Any]:
    overall, judge = line.found.overall, line.result.judge
    return {
        "name": line.name, "run": line.run, "model": line.found.model, "group": line.group + 1, "score": overall.score,
        "ci": None if overall.ci is None else list(overall.ci), "n": overall.n, "prompts": overall.clusters,
        "judge": judge.judge if judge else None, "position_gap": judge.position_gap if judge else None,
        "repeat_spread": judge.repeat_spread if judge else None, "unparsed_share": judge.unparsed_share if judge else None,
    }  # fmt: skip

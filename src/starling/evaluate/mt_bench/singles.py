"""Single grading: MT-Bench's headline score from grades, by our rule and by FastChat's.

Ours: the repeats of one question and turn are averaged first, then all of these count once; what has no grade, is off the scale
of 1 to 10, was copied or judges another answer is a named outcome with a count, and what was never judged is counted as missing.
FastChat's: the mean over all rows whose score is not −1. Both are in every result; `official` chooses which one is the score.

Grades of the same place are repeats of one judgment only when the judge saw the same text. Where it did not (files that were
appended to after the answers had been generated anew), their difference is no noise of the judge: they are kept out of the
spread, and a note says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

from starling.evaluate.mt_bench import cells as by_place
from starling.evaluate.mt_bench import official as fastchat
from starling.evaluate.mt_bench.cells import Place
from starling.evaluate.mt_bench.files import Question, Single
from starling.evaluate.results import Difference, JudgeFacts, ModelResult, Part
from starling.records import Outcome

LOWEST, HIGHEST = 1, 10
UNIT = "points of 10"
OTHER_ANSWER, COPIED, OUT_OF_RANGE, MISSING = "other_answer", "copied", "out_of_range", "missing"
"""Outcomes beyond those of `records.Outcome`: docs/mt-bench.md explains each."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Everything measured of one judge's grades."""

    models: tuple[ModelResult, ...]
    differences: tuple[Difference, ...]
    spread: float | None
    """Of a model's score, root mean square over the models."""
    repeats: int
    outcomes: Mapping[str, int]
    """Of the judge's calls."""
    notes: tuple[str, ...]


def outcome_of(row: Single) -> str:
    """What became of a row under our rule."""
    if row.copy:
        return COPIED
    if row.other:
        return OTHER_ANSWER
    if row.outcome is not Outcome.ranked:
        return row.outcome.value
    return Outcome.ranked.value if LOWEST <= row.score <= HIGHEST else OUT_OF_RANGE


def measure(
    rows: Sequence[Single],
    *,
    questions: Mapping[int, Question] | None = None,
    official: bool = False,
    further: Mapping[str, Mapping[str, int]] | None = None,
    resamples: int,
    seed: int,
) -> Table:
    """The table of one judge's grades.

    Args:
        rows: the grades, whatever became of them.
        questions: for figures by category, and to know what is missing; without them, what one model has is expected of all.
        official: FastChat's rule makes the scores and their intervals.
        further: outcomes of each model that have no row here: problems of files, answers that could not be generated.
        resamples, seed: of the intervals.
    """
    models = list(dict.fromkeys([*(row.model for row in rows), *(further or {})]))
    used = {model: _cells(row for row in rows if row.model == model and outcome_of(row) == "ranked") for model in models}
    scored = (
        {model: _cells(row for row in rows if row.model == model and row.score != -1) for model in models} if official else used
    )
    expected = _expected(rows, questions)
    shown = fastchat.show_single(rows)
    results = []
    for model in models:
        own = [row for row in rows if row.model == model]
        counted = Counter(outcome_of(row) for row in own) + Counter((further or {}).get(model, {}))
        missing = len(expected - {(row.question, row.turn) for row in own}) - counted["no_answer"]
        results.append(
            _result(
                model, scored[model], used[model], shown.get(model),
                outcomes={**counted, **({MISSING: missing} if missing > 0 else {})},
                spread=_spread(own), by_row=official, questions=questions, resamples=resamples, seed=seed,
            )
        )  # fmt: skip
    results.sort(key=lambda r: (r.overall.score is None, -(r.overall.score or 0.0), r.model))
    spreads = [value for r in results if (value := r.more["repeat_spread"]) is not None]
    return Table(
        models=tuple(results),
        differences=by_place.differences(
            {r.model: by_place.means(scored[r.model]) for r in results}, resamples=resamples, seed=seed
        ),
        spread=sqrt(sum(s * s for s in spreads) / len(spreads)) if spreads else None,
        repeats=max((len(v) for m in models for v in _same_text(r for r in rows if r.model == m).values()), default=1),
        outcomes=Counter(OUT_OF_RANGE if outcome_of(row) == OUT_OF_RANGE else row.outcome.value for row in rows if not row.copy),
        notes=tuple(_notes(rows, results, official)),
    )


def facts(table: Table, judge: str) -> JudgeFacts:
    """What the grades themselves say about their judge; cost is known only to whoever asked."""
    calls = sum(table.outcomes.values())
    return JudgeFacts(
        judge=judge,
        calls=calls,
        outcomes=dict(table.outcomes),
        unparsed_share=1 - table.outcomes.get("ranked", 0) / calls if calls else None,
        repeat_spread=table.spread,
        repeats=table.repeats,
    )


def _result(
    model: str, scored: Mapping[Place, list[float]], used: Mapping[Place, list[float]], shown: fastchat.Shown | None, *,
    outcomes: Mapping[str, int], spread: float | None, by_row: bool, questions: Mapping[int, Question] | None, resamples: int,
    seed: int,
) -> ModelResult:  # fmt: skip
    def part(cells: Mapping[Place, list[float]], **only: int | str) -> Part:
        def wanted(place: Place) -> bool:
            category = questions[place[0]].category if questions and place[0] in questions else ""
            return only.get("turn", place[1]) == place[1] and only.get("category", category) == category

        return by_place.part(cells, by_row=by_row, resamples=resamples, seed=seed, wanted=wanted)

    parts = {f"turn_{turn}": part(scored, turn=turn) for turn in sorted({turn for _, turn in scored})}
    for category in dict.fromkeys(q.category for q in (questions or {}).values()):
        parts[category] = part(scored, category=category)
    ours = by_place.part(used, by_row=False, resamples=1, seed=seed)
    more = {"score_ours": ours.score, "score_official": shown.average if shown else None}
    more |= {f"turn_{turn}_official": value for turn, value in (shown.turns if shown else {}).items()}
    return ModelResult(
        model=model, overall=part(scored), parts=parts, outcomes=dict(sorted(outcomes.items())),
        more={**more, "rows_official": shown.rows if shown else 0, "repeat_spread": spread},
    )  # fmt: skip


def _cells(rows: Iterable[Single]) -> dict[Place, list[float]]:
    found: dict[Place, list[float]] = {}
    for row in rows:
        found.setdefault((row.question, row.turn), []).append(row.score)
    return found


def _expected(rows: Sequence[Single], questions: Mapping[int, Question] | None) -> set[Place]:
    if questions is None:
        return {(row.question, row.turn) for row in rows}
    return {(q.id, turn) for q in questions.values() for turn in range(1, len(q.turns) + 1)}


def _same_text(rows: Iterable[Single]) -> dict[tuple[int, int, str], list[float]]:
    """The grades of what the judge saw, by place and text."""
    found: dict[tuple[int, int, str], list[float]] = {}
    for row in rows:
        if outcome_of(row) == "ranked":
            found.setdefault((row.question, row.turn, row.shown), []).append(row.score)
    return found


def _spread(rows: Sequence[Single]) -> float | None:
    """The spread of a model's score; only grades of the same text are repeats."""
    grouped = _same_text(rows)
    return by_place.spread({(i, 0): values for i, values in enumerate(grouped.values())})


def _notes(rows: Sequence[Single], results: Sequence[ModelResult], official: bool) -> list[str]:
    notes = [
        "The score is FastChat's: the mean over all rows but those with −1, repeated rows counting as often as they stand there."
        if official
        else "Repeats of a question and turn are averaged first; what has no grade from 1 to 10 is counted, not scored. "
        "FastChat's figures stand beside as `official`."
    ]
    for result in results:
        texts: dict[Place, set[str]] = {}
        for row in rows:
            if row.model == result.model and outcome_of(row) == "ranked" and row.shown:
                texts.setdefault((row.question, row.turn), set()).add(row.shown)
        if several := sum(len(found) > 1 for found in texts.values()):
            notes.append(
                f"{result.model}: {several:,} of {len(texts):,} questions and turns have grades of different answers: no "
                "repeats of a judgment. The average mixes generations of answers; --answers keeps those of one."
            )
        lost = {
            k: n
            for k, n in result.outcomes.items()
            if k not in ("ranked", *((COPIED, OTHER_ANSWER, OUT_OF_RANGE) if official else ()))
        }
        if lost:
            listed = ", ".join(f"{n:,} {name}" for name, n in sorted(lost.items()))
            notes.append(f"{result.model}: not in the score: {listed}.")
    return notes

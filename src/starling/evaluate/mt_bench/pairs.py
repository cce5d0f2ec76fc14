"""Pairwise grading: how often a model wins against the others or against a baseline, by both of FastChat's rates.

A comparison is two games, each model's answer shown first once. It has a winner where both games name the same one, else it is a
tie: a preference that depends on the order is none. win_rate counts a tie as no win, win_rate_adjusted as half of one, and that
is the score here, in per cent. With an error in either game there is no verdict: FastChat drops such rows, here they are counted
by what became of them. Of comparisons that stand in the files several times the mean counts once under our rule, and every row
under FastChat's; `official` chooses.

The position gap is the share of games won by the answer shown first less that of the other, over comparisons with two verdicts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import sqrt

from starling import stats
from starling.evaluate.mt_bench import cells as by_place
from starling.evaluate.mt_bench import official as fastchat
from starling.evaluate.mt_bench.cells import Place
from starling.evaluate.mt_bench.files import Pair, Question
from starling.evaluate.mt_bench.singles import COPIED, MISSING, OTHER_ANSWER, Table
from starling.evaluate.results import Difference, JudgeFacts, ModelResult, Part
from starling.records import Outcome

UNIT = "% won, ties half"
Cells = dict[Place, list[float]]
"""100 = won, 50 = tied, 0 = lost, by question and turn."""


def outcome_of(row: Pair) -> str:
    """What became of a comparison: `ranked` when both games have a verdict."""
    if row.copy:
        return COPIED
    if row.other:
        return OTHER_ANSWER
    return next((o.value for o in (row.outcome_1, row.outcome_2) if o is not Outcome.ranked), Outcome.ranked.value)


def score_1(row: Pair) -> float:
    """100 when model_1 won, 0 when model_2 did, 50 for a tie; of comparisons without an error."""
    return {"model_1": 100.0, "model_2": 0.0, "tie": 50.0}[fastchat.final_winner(row.g1, row.g2)]


def measure(
    rows: Sequence[Pair],
    *,
    baseline: str = "",
    questions: Mapping[int, Question] | None = None,
    official: bool = False,
    further: Mapping[str, Mapping[str, int]] | None = None,
    resamples: int,
    seed: int,
) -> Table:
    """The table of one judge's comparisons.

    Args:
        rows: the comparisons, whatever became of them.
        baseline: only its games count, and it has no line of its own; every game when empty.
        questions, official, further, resamples, seed: as for `singles.measure`.
    """
    rows = [row for row in rows if not baseline or baseline in (row.model_1, row.model_2)]
    names = [name for row in rows for name in (row.model_1, row.model_2)]
    models = [name for name in dict.fromkeys([*names, *(further or {})]) if name != baseline]
    scored = [row for row in rows if (not _failed(row) if official else outcome_of(row) == "ranked")]
    tallies = fastchat.show_pairs(rows, baseline=baseline or None)
    met = _met(scored)
    results = [
        _result(
            model, {other: met[model, other] for a, other in met if a == model}, tallies.get(model),
            outcomes=_outcomes(model, rows, questions, (further or {}).get(model, {})),
            official=official, questions=questions, resamples=resamples, seed=seed,
        )
        for model in models
    ]  # fmt: skip
    results.sort(key=lambda r: (r.overall.score is None, -(r.overall.score or 0.0), r.model))
    spreads = [value for r in results if (value := r.more["repeat_spread"]) is not None]
    return Table(
        models=tuple(results),
        differences=_differences([r.model for r in results], met, baseline, resamples=resamples, seed=seed),
        spread=sqrt(sum(s * s for s in spreads) / len(spreads)) if spreads else None,
        repeats=max((len(values) for found in met.values() for values in found.values()), default=1),
        outcomes=Counter(o.value for row in rows if not row.copy for o in (row.outcome_1, row.outcome_2)),
        notes=tuple(_notes(results, official)),
    )


def facts(table: Table, judge: str, rows: Sequence[Pair], *, resamples: int, seed: int) -> JudgeFacts:
    """What the comparisons themselves say about their judge."""
    calls, gap = sum(table.outcomes.values()), position_gap(rows, resamples=resamples, seed=seed)
    return JudgeFacts(
        judge=judge,
        calls=calls,
        outcomes=dict(table.outcomes),
        unparsed_share=1 - table.outcomes.get("ranked", 0) / calls if calls else None,
        position_gap=gap.mean if gap else None,
        position_gap_ci=(gap.low, gap.high) if gap and gap.clusters > 1 else None,
        repeat_spread=table.spread,
        repeats=table.repeats,
    )


def position_gap(rows: Iterable[Pair], *, resamples: int, seed: int) -> stats.Interval | None:
    """Share of games that the answer shown first won less the share that the second did, −1 … 1, clustered by question."""
    sums: dict[int, float] = {}
    games: dict[int, int] = {}
    for row in rows:
        if outcome_of(row) == "ranked":
            towards = {"model_1": 1, "model_2": -1, "tie": 0}
            sums[row.question] = sums.get(row.question, 0.0) + towards[row.g1] - towards[row.g2]
            games[row.question] = games.get(row.question, 0) + 2
    if not games:
        return None
    return stats.ratio_interval(list(sums.values()), list(games.values()), resamples=resamples, seed=seed)


def _failed(row: Pair) -> bool:
    return "error" in (row.g1, row.g2)


def _met(rows: Iterable[Pair]) -> dict[tuple[str, str], Cells]:
    """(model, opponent) → the model's scores against it; both ways round."""
    found: dict[tuple[str, str], Cells] = {}
    for row in rows:
        score, place = score_1(row), (row.question, row.turn)
        found.setdefault((row.model_1, row.model_2), {}).setdefault(place, []).append(score)
        found.setdefault((row.model_2, row.model_1), {}).setdefault(place, []).append(100 - score)
    return found


def _together(by_opponent: Mapping[str, Cells], official: bool) -> Cells:
    """A model's scores at each place: one per opponent, the mean of its repeats, or every row."""
    found: Cells = {}
    for cells in by_opponent.values():
        for place, values in cells.items():
            found.setdefault(place, []).extend(values if official else [sum(values) / len(values)])
    return found


def _result(
    model: str, by_opponent: Mapping[str, Cells], tally: fastchat.Tally | None, *, outcomes: Mapping[str, int], official: bool,
    questions: Mapping[int, Question] | None, resamples: int, seed: int,
) -> ModelResult:  # fmt: skip
    cells = _together(by_opponent, official)

    def of(wanted: Cells) -> Part:
        return by_place.part(wanted, by_row=True, resamples=resamples, seed=seed)  # a cell has one value per opponent

    parts = {f"turn_{t}": of({p: v for p, v in cells.items() if p[1] == t}) for t in sorted({turn for _, turn in cells})}
    for category in dict.fromkeys(q.category for q in (questions or {}).values()):
        parts[category] = of(
            {p: v for p, v in cells.items() if questions and p[0] in questions and questions[p[0]].category == category}
        )
    repeats = [values for found in by_opponent.values() for values in found.values()]
    spread = by_place.spread({(i, 0): values for i, values in enumerate(repeats)})
    return ModelResult(
        model=model, overall=of(cells), parts=parts, outcomes=outcomes,
        more={
            "win": tally.win if tally else 0, "loss": tally.loss if tally else 0, "tie": tally.tie if tally else 0,
            "win_rate": tally.win_rate if tally else None, "loss_rate": tally.loss_rate if tally else None,
            "win_rate_adjusted": tally.win_rate_adjusted if tally else None, "repeat_spread": spread,
        },
    )  # fmt: skip


def _outcomes(
    model: str, rows: Sequence[Pair], questions: Mapping[int, Question] | None, further: Mapping[str, int]
) -> dict[str, int]:
    """Comparisons of a model by outcome; `missing` against the opponents that it has met."""
    own = [row for row in rows if model in (row.model_1, row.model_2)]
    counted = Counter(outcome_of(row) for row in own) + Counter(further)
    if questions is not None:
        opponents = {row.model_1 if row.model_2 == model else row.model_2 for row in own}
        expected = len(opponents) * sum(len(q.turns) for q in questions.values())
        there = {(row.question, row.turn, row.model_1 if row.model_2 == model else row.model_2) for row in own}
        if (missing := expected - len(there) - counted["no_answer"]) > 0:
            counted[MISSING] = missing
    return dict(sorted(counted.items()))


def _differences(
    models: Sequence[str], met: Mapping[tuple[str, str], Cells], baseline: str, *, resamples: int, seed: int
) -> tuple[Difference, ...]:
    """Pairs of models in points: from their own comparisons where there are any, else from both against the baseline."""
    gaps: dict[tuple[str, str], dict[Place, float]] = {}
    for i, a in enumerate(models):
        for b in models[i + 1 :]:
            if (a, b) in met:  # 100 = a won always, −100 = b did
                gaps[a, b] = {place: 2 * value - 100 for place, value in by_place.means(met[a, b]).items()}
            elif baseline:
                one, other = (by_place.means(met.get((name, baseline), {})) for name in (a, b))
                gaps[a, b] = {place: one[place] - other[place] for place in one if place in other}
    return by_place.differences_of(gaps, resamples=resamples, seed=seed)


def _notes(results: Sequence[ModelResult], official: bool) -> list[str]:
    notes = [
        "A comparison is won where both orders agree, else tied. win_rate and win_rate_adjusted are FastChat's, over its rows."
    ]
    if official:
        notes.append("Repeated comparisons count as often as they stand in the files, as with FastChat.")
    for result in results:
        if lost := {k: n for k, n in result.outcomes.items() if k not in ("ranked", COPIED, OTHER_ANSWER)}:
            listed = ", ".join(f"{n:,} {name}" for name, n in sorted(lost.items()))
            notes.append(f"{result.model}: comparisons without a verdict: {listed}.")
    return notes

"""Arena-Hard from its judgments: scores against the baseline, per category, as officially computed and as we compute them.

A game gives the model 1, ½ or 0; a strong verdict (>>) counts `strong_weight` times, 3 by the official rule, which users call
arbitrary (lmarena/arena-hard-auto issue 51): the score with weight 1 stands beside it. Two rules for what has no label:

    v2.0   a prompt with a game that has none is left out (show_result.py)
    v0.1   that game alone is left out (show_result.py before v2.0)

Ours is the first, with the games counted by outcome. Score = 100 · Σ weight · score / Σ weight. Intervals:

    ours      95 %, prompts resampled: the games of a prompt and the copies of a strong verdict are not independent
    official  5 and 95 % quantiles (so 90 %, though it is labelled CI) of 100 resamples of single, multiplied verdicts; the score
              shown is the mean of the resamples. Unseeded in the original; here with a seed.
    v0.1      a Bradley–Terry fit by logistic regression to all models' verdicts; 100 resamples, 2.5 and 97.5 %. With nothing but
              games against one baseline its maximum is the score itself, which is how it is computed here; the rating is
              1000 + 400 log10(score / (1 − score)), the baseline's 1000.

Several judges' verdicts are pooled, as in the original's ensemble.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import log10
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from starling import stats
from starling.evaluate.pairwise.arena_hard_files import Judged, Question
from starling.evaluate.pairwise.paired import Compared, Draws, Totals, adjusted, between, over_even, part, totals
from starling.evaluate.results import Difference, JudgeFacts, ModelResult, Part, Result
from starling.records import content_hash

Floats = NDArray[np.float64]
Rule = Literal["v2.0", "v0.1"]
STRONG_WEIGHT = 3.0
OFFICIAL_ROUNDS = 100
_QUANTILES: dict[Rule, tuple[float, float]] = {"v2.0": (0.05, 0.95), "v0.1": (0.025, 0.975)}


@dataclass(frozen=True)
class Games:
    """Games with a label, from the model's side. Shape suffix: G games."""

    prompt_G: NDArray[np.int64]
    score_G: Floats
    strong_G: NDArray[np.bool_]
    outcomes: Mapping[str, int]
    """All games by what became of them: ranked, unparsed, …; `other_game_failed` has a label and is left out."""
    both: int
    """Prompts with both labels."""
    disagree: int
    """Of them, those whose two labels name different winners, or only one of them a winner."""

    def totals(self, weight: float) -> Totals | None:
        """Points and weight per prompt; strong verdicts count `weight` times."""
        weight_G = np.where(self.strong_G, weight, 1.0)
        found = totals(self.prompt_G, self.score_G, weight_G)
        return found if found is None or found.weight_C.sum() > 0 else None


def games(rows: Sequence[Judged], numbers: Mapping[str, int], rule: Rule) -> Games:
    """The games of one model's judgments.

    Args:
        numbers: each prompt's number.
        rule: what is left out; see the file's docstring.
    """
    prompts, scores, strongs = [], [], []
    outcomes: Counter[str] = Counter()
    both = disagree = 0
    for row in rows:
        verdicts = list(row.verdicts())
        whole = all(score is not None for score, *_ in verdicts)
        both += whole
        disagree += whole and len({score for score, *_ in verdicts}) > 1
        for score, strong, _, outcome in verdicts:
            if score is None:
                outcomes[outcome] += 1
            elif rule == "v2.0" and not whole:
                outcomes["other_game_failed"] += 1
            else:
                outcomes["ranked"] += 1
                prompts.append(numbers[row.uid])
                scores.append(score)
                strongs.append(strong)
    return Games(
        np.array(prompts, dtype=np.int64), np.array(scores, dtype=np.float64), np.array(strongs, dtype=np.bool_),
        dict(sorted(outcomes.items())), both, disagree,
    )  # fmt: skip


# ── official ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Official:
    """A line of the official table, in per cent."""

    score: float
    """The mean of the resamples, as show_result.py prints it."""
    low: float
    high: float


def _cells(found: Games, weight: int) -> NDArray[np.int64]:
    """How many verdicts of 0, ½ and 1 there are once strong ones are multiplied."""
    times = np.where(found.strong_G, weight, 1)
    return np.array([int(times[found.score_G == value].sum()) for value in (0.0, 0.5, 1.0)])


_VALUES = np.array([0.0, 0.5, 1.0])


def official(found: Games, *, weight: int = 3, rounds: int = OFFICIAL_ROUNDS, seed: int = 0) -> Official | None:
    """v2.0's line: single verdicts of one model resampled. Drawing n of n verdicts with replacement is a multinomial draw over
    the three values, the same distribution without making the copies. None without a verdict."""
    cells = _cells(found, weight)
    n = int(cells.sum())
    if not n:
        return None
    rng = np.random.Generator(np.random.PCG64(seed))
    means = rng.multinomial(n, cells / n, size=rounds) @ _VALUES / n
    low, high = np.quantile(means, _QUANTILES["v2.0"])
    return Official(100 * float(means.mean()), 100 * float(low), 100 * float(high))


def official_old(
    by_model: Mapping[str, Games], *, weight: int = 3, rounds: int = OFFICIAL_ROUNDS, seed: int = 0
) -> dict[str, Official]:
    """v0.1's table: all models' verdicts resampled together, the Bradley–Terry fit in closed form. The score is the fit's own,
    not the resamples' mean. Models without a verdict are absent."""
    cells_MV = np.array([_cells(found, weight) for found in by_model.values()]).reshape(-1, 3)
    n = int(cells_MV.sum())
    if not n:
        return {}
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn_RMV = rng.multinomial(n, cells_MV.ravel() / n, size=rounds).reshape(rounds, -1, 3)
    lines = {}
    for m, model in enumerate(by_model):
        if cells_MV[m].sum():
            games_R = drawn_RMV[:, m].sum(1)
            shares = (drawn_RMV[:, m] @ _VALUES)[games_R > 0] / games_R[games_R > 0]
            low, high = np.quantile(shares, _QUANTILES["v0.1"])
            score = float(cells_MV[m] @ _VALUES / cells_MV[m].sum())
            lines[model] = Official(100 * score, 100 * float(low), 100 * float(high))
    return lines


def rating(score: float) -> float | None:
    """Rating on v0.1's scale of a model with this score in per cent; None where it is infinite.

    >>> rating(50.0)
    1000.0
    """
    return 1000 + 400 * log10(score / (100 - score)) if 0 < score < 100 else None


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a table is made."""

    strong_weight: float = STRONG_WEIGHT
    rule: Rule = "v2.0"
    official: bool = False
    """Show the official score and interval instead of ours; the official ones need a whole strong_weight."""
    resamples: int = 2000
    seed: int = 0


def measure(
    judgments: Sequence[Judged],
    rules: Rules,
    *,
    questions: Sequence[Question] = (),
    texts: Mapping[str, Mapping[str, str]] | None = None,
    left_out: Mapping[str, int] | None = None,
    judge: JudgeFacts | None = None,
) -> Result:
    """The table of all models. Judgments of several judges, or of one judge asked again (`repeat`), are pooled.

    Args:
        questions: names the subcategories, and says which prompts were never judged; a judgment of another prompt is left out.
        texts: model → uid → its answer, for the average length.
        left_out: rows that could not be read, by reason.
        judge: what is known about the judge beyond the judgments.
    """
    by_uid = {q.uid: q for q in questions}
    kept = [j for j in judgments if not by_uid or j.uid in by_uid]
    numbers = {uid: n for n, uid in enumerate(sorted({j.uid for j in kept}))}
    rows: dict[str, list[Judged]] = {}
    for one in kept:
        rows.setdefault(one.model, []).append(one)
    table = {model: games(rows[model], numbers, rules.rule) for model in sorted(rows)}
    draws = Draws(rules.resamples, rules.seed)
    lines = _official_lines(table, rules)
    models = [_line(model, rows[model], table[model], by_uid, numbers, rules, draws, lines, texts or {}) for model in table]
    baselines = sorted({j.baseline for j in kept})
    if len(baselines) == 1 and baselines[0] not in table:
        n, clusters = sum(m.overall.n for m in models), len(numbers)
        models.append(ModelResult(model=baselines[0], overall=Part(score=50.0, ci=None, n=n, clusters=clusters)))
    notes = _notes(judgments, kept, by_uid, rules, left_out or {}, baselines, table)
    return Result(
        benchmark="arena-hard", title=f"Arena-Hard against {' and '.join(baselines)}", unit="% of weighted verdicts",
        models=tuple(sorted(models, key=lambda m: (m.overall.score is None, -(m.overall.score or 0), m.model))),
        differences=_differences(table, baselines, rules, draws), judge=_facts(kept, rules, judge), notes=tuple(notes),
        settings={
            "strong_weight": rules.strong_weight, "rule": rules.rule, "interval": "official" if rules.official else "clustered",
            "resamples": rules.resamples, "seed": rules.seed, "baselines": baselines,
        },
    )  # fmt: skip


def _official_lines(table: Mapping[str, Games], rules: Rules) -> dict[str, Official]:
    if rules.strong_weight != int(rules.strong_weight):
        return {}
    weight = int(rules.strong_weight)
    if rules.rule == "v0.1":
        return official_old(table, weight=weight, seed=rules.seed)
    lines = {model: official(found, weight=weight, seed=_seed(rules, model)) for model, found in table.items()}
    return {model: line for model, line in lines.items() if line is not None}


def _seed(rules: Rules, *what: str) -> int:
    return int(content_hash(["arena-hard", rules.seed, *what], 12), 16)


def _line(
    model: str,
    rows: Sequence[Judged],
    found: Games,
    by_uid: Mapping[str, Question],
    numbers: Mapping[str, int],
    rules: Rules,
    draws: Draws,
    lines: Mapping[str, Official],
    texts: Mapping[str, Mapping[str, str]],
) -> ModelResult:
    def measured(of: Games, *what: str) -> Part:
        ours = part(of.totals(rules.strong_weight), draws, model, *what)
        if not rules.official:
            return ours
        line = lines.get(model) if not what else official(of, weight=int(rules.strong_weight), seed=_seed(rules, model, *what))
        return ours if line is None else Part(score=line.score, ci=(line.low, line.high), n=ours.n, clusters=ours.clusters)

    groups: dict[str, Callable[[Judged], str]] = {"": lambda row: row.category}
    if any(q.subcategory for q in by_uid.values()):
        groups["sub"] = lambda row: _subcategory(row, by_uid)
    parts: dict[str, Part] = {}
    for of in groups.values():
        named: dict[str, list[Judged]] = {}
        for row in rows:
            named.setdefault(of(row), []).append(row)
        parts |= {name: measured(games(some, numbers, rules.rule), name) for name, some in sorted(named.items()) if name}
    even = found.totals(1.0)
    overall, plain = measured(found), None if even is None else 100 * even.score
    line = lines.get(model)
    lengths = [len(text) for text in texts.get(model, {}).values()]
    more = {
        **{name: float((found.score_G == value).sum()) for name, value in (("won", 1.0), ("tied", 0.5), ("lost", 0.0))},
        "weight_1": plain, "order_disagreement": found.disagree / found.both if found.both else None,
        "official": line.score if line else None, "official_low": line.low if line else None,
        "official_high": line.high if line else None, "rating": None if overall.score is None else rating(overall.score),
        "avg_length": sum(lengths) / len(lengths) if lengths else None,
    }  # fmt: skip
    return ModelResult(model=model, overall=overall, parts=parts, outcomes=found.outcomes, more=more)


def _subcategory(row: Judged, by_uid: Mapping[str, Question]) -> str:
    question = by_uid.get(row.uid)
    return f"{row.category}/{question.subcategory}" if question and question.subcategory else ""


def _differences(table: Mapping[str, Games], baselines: Sequence[str], rules: Rules, draws: Draws) -> tuple[Difference, ...]:
    """All pairs of models, and each with the baseline where there is one for all, which then stands in the table at 50."""
    of_each = {model: found.totals(rules.strong_weight) for model, found in table.items()}
    known = {model: of for model, of in of_each.items() if of is not None}
    found: list[Compared | None] = []
    if len(baselines) == 1:
        found += [over_even(m, baselines[0], of, part(of, draws, m), draws) for m, of in known.items() if m != baselines[0]]
    found += [between(a, b, known[a], known[b], draws) for a, b in combinations(known, 2)]
    return adjusted(found)


def _facts(kept: Sequence[Judged], rules: Rules, judge: JudgeFacts | None) -> JudgeFacts:
    """Outcomes and position gap of the games."""
    outcomes: Counter[str] = Counter()
    leans: dict[str, list[float]] = {}
    for row in kept:
        verdicts = list(row.verdicts())
        outcomes.update(outcome for *_, outcome in verdicts)
        if all(score is not None for score, *_ in verdicts):
            # The model's score 1 means the first shown wins where the model (a) came first.
            lean = sum((2 * (score or 0) - 1) * (1 if first == "a" else -1) for score, _, first, _ in verdicts)
            leans.setdefault(row.uid, []).append(lean)
    calls = sum(outcomes.values())
    names = sorted({row.judge for row in kept if row.judge})
    repeats = max((row.repeat for row in kept), default=0) + 1
    facts = judge or JudgeFacts(judge=" and ".join(names) or "unknown", calls=calls, outcomes={}, unparsed_share=None)
    gap = gap_ci = None
    if leans:
        sums, counts = [sum(found) for found in leans.values()], [2 * len(found) for found in leans.values()]
        gap = sum(sums) / sum(counts)
        if len(sums) > 1:
            at = stats.ratio_interval(sums, counts, resamples=rules.resamples, seed=_seed(rules, "position"))
            gap_ci = (at.low, at.high)
    share = 1 - outcomes["ranked"] / calls if calls else None
    return replace(
        facts, outcomes=dict(sorted(outcomes.items())), unparsed_share=share, position_gap=gap, position_gap_ci=gap_ci,
        repeat_spread=_repeat_spread(kept, rules) if repeats > 1 else None, repeats=repeats,
    )  # fmt: skip


def _repeat_spread(kept: Sequence[Judged], rules: Rules) -> float | None:
    """Standard deviation of a model's score over repeats, root mean square over the models."""
    numbers = {uid: n for n, uid in enumerate(sorted({row.uid for row in kept}))}
    variances = []
    for model in sorted({row.model for row in kept}):
        scores = []
        for repeat in sorted({row.repeat for row in kept}):
            rows = [row for row in kept if row.model == model and row.repeat == repeat]
            found = games(rows, numbers, rules.rule).totals(rules.strong_weight)
            scores += [] if found is None else [100 * found.score]
        if len(scores) > 1:
            variances.append(float(np.var(scores, ddof=1)))
    return float(np.sqrt(np.mean(variances))) if variances else None


def _notes(
    judgments: Sequence[Judged],
    kept: Sequence[Judged],
    by_uid: Mapping[str, Question],
    rules: Rules,
    left_out: Mapping[str, int],
    baselines: Sequence[str],
    table: Mapping[str, Games],
) -> list[str]:
    notes = [f"A strong verdict (>>) counts {rules.strong_weight:g} times; `weight_1` is the score without that."]
    if rules.official:
        low, high = _QUANTILES[rules.rule]
        notes.append(
            f"Official intervals: {100 * low:g} to {100 * high:g} % quantiles of {OFFICIAL_ROUNDS} resamples of single verdicts."
        )
    if len(kept) < len(judgments):
        notes.append(f"{len(judgments) - len(kept):,} judgments are of prompts that the questions do not have.")
    for model in sorted(table) if by_uid else ():
        missing = len(by_uid) - len({row.uid for row in kept if row.model == model})
        if missing:
            notes.append(f"{model}: {missing:,} of {len(by_uid):,} prompts have no judgment.")
    if left_out:
        notes.append("Rows left out: " + ", ".join(f"{n:,} {reason}" for reason, n in left_out.items()) + ".")
    if len(baselines) > 1:
        notes.append("Categories have baselines of their own: the overall score is over all of them, officially there is none.")
    return notes

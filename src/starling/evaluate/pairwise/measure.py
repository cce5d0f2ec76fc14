"""Head to head from votes: win matrix, win rates, paired tests, what the two orders disagree on, ratings.

A meeting (one voter, two answers to one prompt) is scored from its votes:

    hard    a win needs all its votes: one vote for each side, or a tie among them, is a tie (MT-Bench's rule, arXiv 2306.05685,
            section 3.4). A preference that changes with the order is none.
    soft    the mean of its votes' preferences, 0 … 1.

A meeting with a vote that is no verdict has no score and is counted under the vote's outcome, also where the other order has a
verdict. Every interval and every test takes the prompt as its unit. Against a baseline the differences between models are those
of their scores against it, paired by prompt; otherwise those of the models' own meetings (share won minus share lost).

Shape suffixes: N votes, M meetings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from starling import stats
from starling.errors import InputError
from starling.evaluate.judging import human_agreement
from starling.evaluate.pairwise.paired import (
    Compared,
    Draws,
    Totals,
    adjusted,
    between,
    direct,
    mirrored,
    over_even,
    part,
    totals,
)
from starling.evaluate.pairwise.votes import Votes
from starling.evaluate.results import Difference, JudgeFacts, ModelResult, Part, Result
from starling.ratings.battles import Battles, Named
from starling.ratings.bradley_terry import ELO, bradley_terry
from starling.ratings.intervals import FEW_CLUSTERS, sandwich
from starling.records import Outcome
from starling.stats import Interval

Floats = NDArray[np.float64]
_NAMES = tuple(o.value for o in Outcome)
_RANKED = _NAMES.index("ranked")


@dataclass(frozen=True, kw_only=True)
class Meetings:
    """Meetings with what their votes come to; side a comes before side b in the models' order."""

    prompt_M: NDArray[np.int32]
    a_M: NDArray[np.int32]
    b_M: NDArray[np.int32]
    repeat_M: NDArray[np.int32]
    score_b_M: Floats
    """1 = b won, 0 = a won, ½ = a tie; NaN = no score."""
    outcome_M: NDArray[np.int8]
    """Number in `Outcome`: ranked, or what became of the first vote that is none."""
    both_M: NDArray[np.bool_]
    """Whether there are verdicts of both orders."""
    disagree_M: NDArray[np.bool_]
    """Whether two of the votes say different things."""
    lean_M: Floats
    """Sum over votes of +1 for the side shown first, −1 for the other, between for soft ones; NaN where the order is unknown."""
    votes_M: NDArray[np.int64]


def meetings(votes: Votes, *, soft: bool) -> Meetings:
    """The meetings of votes, in their order."""
    starts = np.flatnonzero(np.diff(votes.meeting_N, prepend=-1))
    count = np.diff(np.append(starts, len(votes.meeting_N)))
    preference, hard = votes.preference_b_N, np.sign(votes.preference_b_N - 0.5) / 2 + 0.5
    used = preference if soft else hard
    least, most = np.minimum.reduceat(hard, starts), np.maximum.reduceat(hard, starts)  # NaN wherever one is
    mean = np.add.reduceat(used, starts) / count
    same = least == most
    first = votes.first_N
    towards = np.where(first == 1, 1 - 2 * used, np.where(first == 2, 2 * used - 1, np.nan))
    failed = np.where(votes.outcome_N == _RANKED, len(_NAMES), votes.outcome_N)
    seen_a, seen_b = (np.maximum.reduceat(first == side, starts) for side in (1, 2))
    decided = ~np.isnan(mean)
    outcome = np.minimum.reduceat(failed, starts)
    return Meetings(
        prompt_M=votes.prompt_N[starts], a_M=votes.a_N[starts], b_M=votes.b_N[starts], repeat_M=votes.repeat_N[starts],
        score_b_M=mean if soft else np.where(decided, np.where(same, least, 0.5), np.nan),
        outcome_M=np.where(outcome == len(_NAMES), _RANKED, outcome).astype(np.int8),
        both_M=decided & seen_a & seen_b,
        disagree_M=decided & ~same, lean_M=np.add.reduceat(towards, starts), votes_M=count,
    )  # fmt: skip


def measure(
    votes: Votes,
    *,
    soft: bool = False,
    baseline: str = "",
    resamples: int = 2000,
    seed: int = 0,
    texts: Mapping[str, Mapping[str, str]] | None = None,
    judge: JudgeFacts | None = None,
    people: Votes | None = None,
) -> Result:
    """The table of all models.

    Args:
        soft: see the file's docstring.
        baseline: score every model against this one; empty: against all that it met.
        resamples, seed: of the intervals and tests.
        texts: model → prompt → its answer, where they are known: lengths, and how often the longer answer wins.
        judge: what is known about the judge beyond the votes; position gap and repeat spread come from them.
        people: votes of people on the same pairs.

    Raises:
        InputError: the baseline met nobody.
    """
    if baseline and baseline not in votes.models:
        raise InputError(
            f"The baseline '{baseline}' is in none of the votes",
            where=f"models: {', '.join(votes.models[:8])}",
            cure="name one of these models",
        )
    met, draws = meetings(votes, soft=soft), Draws(resamples, seed)
    table = _Table(votes, met, draws, baseline)
    notes = [*table.notes(), *_longer(votes, met, texts or {}, draws)]
    models = tuple(_with_lengths(one, texts or {}) for one in table.models())
    return Result(
        benchmark="head-to-head", title="Head to head" + (f" against {baseline}" if baseline else ""), unit="% of meetings won",
        models=models, differences=table.differences(), judge=_facts(votes, met, draws, judge, people), notes=tuple(notes),
        settings={"votes": "soft" if soft else "hard", "baseline": baseline, "resamples": resamples, "seed": seed},
    )  # fmt: skip


class _Table:
    """The pairs' totals, and every figure of the table from them."""

    def __init__(self, votes: Votes, met: Meetings, draws: Draws, baseline: str) -> None:
        self._votes, self._met, self._draws, self._baseline = votes, met, draws, baseline
        self._pairs: dict[tuple[int, int], NDArray[np.int64]] = {}
        key = met.a_M.astype(np.int64) * len(votes.models) + met.b_M
        order = np.argsort(key, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
            self._pairs[int(met.a_M[rows[0]]), int(met.b_M[rows[0]])] = rows

    def _totals(self, rows: NDArray[np.int64], model: int) -> Totals | None:
        """Of these meetings, seen from the model."""
        rows = rows[~np.isnan(self._met.score_b_M[rows])]
        score = self._met.score_b_M[rows]
        points = np.where(self._met.b_M[rows] == model, score, 1 - score)
        return totals(self._met.prompt_M[rows], points, np.ones(len(rows)))

    def _rows_of(self, model: int) -> NDArray[np.int64]:
        """Meetings that a model's score is made of: those against the baseline where there is one."""
        rows = [
            rows for (a, b), rows in self._pairs.items()
            if model in (a, b) and (not self._baseline or self._baseline in (self._votes.models[a], self._votes.models[b]))
        ]  # fmt: skip
        return np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)

    def models(self) -> list[ModelResult]:
        ratings, met = self._ratings(), self._met
        decided = ~np.isnan(met.score_b_M)
        found = []
        for number, name in enumerate(self._votes.models):
            even = name == self._baseline
            rows = self._rows_of(number)
            if even:
                overall = Part(score=50.0, ci=None, n=int(decided[rows].sum()), clusters=len(np.unique(met.prompt_M[rows])))
            elif self._baseline:
                overall = self._against(number).get(f"against {self._baseline}", Part(score=None, ci=None, n=0, clusters=0))
            else:
                overall = self._overall(number)
            scores = self._met.score_b_M[rows]
            points = np.where(self._met.b_M[rows] == number, scores, 1 - scores)
            won = {"won": float((points > 0.5).sum()), "tied": float((points == 0.5).sum()), "lost": float((points < 0.5).sum())}
            ended = np.bincount(self._met.outcome_M[rows], minlength=len(_NAMES))
            outcomes = {n: int(c) for n, c in zip(_NAMES, ended, strict=True) if c}
            both = rows[self._met.both_M[rows]]
            disagreement = float(self._met.disagree_M[both].mean()) if len(both) else None
            more = {**won, "order_disagreement": disagreement, **ratings.get(name, {})}
            found.append(ModelResult(model=name, overall=overall, parts=self._against(number), outcomes=outcomes, more=more))
        return sorted(found, key=lambda m: (m.overall.score is None, -(m.overall.score or 0), m.model))

    @cached_property
    def _shown(self) -> dict[tuple[int, int], Part]:
        """Each pair's score from side a's view."""
        names = self._votes.models
        return {(a, b): part(self._totals(rows, a), self._draws, names[a], names[b]) for (a, b), rows in self._pairs.items()}

    def _overall(self, model: int) -> Part:
        """The model's score; that of its one pair where it met no other."""
        pairs = [(a, b) for a, b in self._pairs if model in (a, b)]
        if len(pairs) == 1:
            only = self._shown[pairs[0]]
            return only if pairs[0][0] == model else mirrored(only)
        return part(self._totals(self._rows_of(model), model), self._draws, self._votes.models[model])

    def _against(self, model: int) -> dict[str, Part]:
        """The model's line of the win matrix."""
        names = self._votes.models
        return {
            f"against {names[b if a == model else a]}": shown if a == model else mirrored(shown)
            for (a, b), shown in self._shown.items()
            if model in (a, b)
        }

    def differences(self) -> tuple[Difference, ...]:
        """Of all pairs that met, or with a baseline of all models."""
        names, found = self._votes.models, list[Compared | None]()
        if not self._baseline:
            for (a, b), rows in self._pairs.items():
                if (of := self._totals(rows, a)) is not None:
                    found.append(direct(names[a], names[b], of, self._shown[a, b], self._draws))
            return adjusted(found)
        base = names.index(self._baseline)
        known: dict[str, Totals] = {}
        for i, name in enumerate(names):
            pair = (min(i, base), max(i, base))
            if i == base or pair not in self._pairs or (of := self._totals(self._pairs[pair], i)) is None:
                continue
            known[name] = of
            shown = self._shown[pair] if i < base else mirrored(self._shown[pair])
            found.append(over_even(name, self._baseline, of, shown, self._draws))
        found += [between(a, b, known[a], known[b], self._draws) for a, b in combinations(known, 2)]
        return adjusted(found)

    def _ratings(self) -> dict[str, dict[str, float | None]]:
        """Bradley–Terry ratings (mean 1000) with their 95 % bounds; nothing where the models have no common scale."""
        decided = ~np.isnan(self._met.score_b_M)
        if len(self._votes.models) < 3 or not decided.any():
            return {}
        battles = Battles(
            models=self._votes.models, a_N=self._met.a_M[decided], b_N=self._met.b_M[decided],
            score_a_N=(1 - self._met.score_b_M[decided]).astype(np.float32),
            prompt=Named(names=self._votes.prompts, codes_N=self._met.prompt_M[decided]),
        )  # fmt: skip
        try:
            fit = bradley_terry(battles)
        except InputError:
            return {}
        low_M, high_M = sandwich(fit, battles, cluster="prompt").bounds()
        points = ELO.initial + ELO.per_unit * np.stack([fit.strength_M, low_M, high_M], axis=1)
        return {
            name: {"rating": rating, "rating_low": low, "rating_high": high}
            for name, (rating, low, high) in zip(fit.models, points.tolist(), strict=True)
        }

    def notes(self) -> list[str]:
        votes, met = self._votes, self._met
        notes = []
        if both := int(met.both_M.sum()):
            rows = np.flatnonzero(met.both_M)
            found = totals(met.prompt_M[rows], met.disagree_M[rows].astype(np.float64), np.ones(both))
            share = _said(part(found, self._draws, "orders"))
            notes.append(f"The two orders of a pair disagree in {share} of {both:,} meetings.")
        failed = int((met.outcome_M != _RANKED).sum())
        if failed:
            notes.append(f"{failed:,} of {len(met.a_M):,} meetings have a vote that is no verdict and count nowhere.")
        if votes.left_out:
            listed = ", ".join(f"{n:,} {reason}" for reason, n in votes.left_out.items())
            notes.append(f"Rows left out: {listed}.")
        if 1 < len(votes.prompts) < FEW_CLUSTERS:
            notes.append(f"Only {len(votes.prompts)} prompts: intervals that resample prompts are too narrow then.")
        sizes = {len(rows) for rows in self._pairs.values()}
        whole = len(votes.models) * (len(votes.models) - 1) // 2
        if not self._baseline and (len(self._pairs) < whole or len(sizes) > 1):
            notes.append("Not every model met every other equally often: compare ratings and pairs, not overall win rates.")
        if not self._baseline and len(votes.models) > 1:
            notes.append("A difference is the share of a pair's meetings that the first won minus the share it lost.")
        return notes


def _said(found: Part) -> str:
    interval = "" if found.ci is None else f" [{found.ci[0]:.1f}, {found.ci[1]:.1f}]"
    return f"{found.score:.1f} %{interval}"


def _facts(votes: Votes, met: Meetings, draws: Draws, judge: JudgeFacts | None, people: Votes | None = None) -> JudgeFacts:
    """The judge, or whoever voted, as the votes show them."""
    rows = np.flatnonzero(met.both_M & ~np.isnan(met.lean_M))
    if not len(rows):  # nobody was asked twice: where people are shown a random order, their votes still tell
        rows = np.flatnonzero(~np.isnan(met.lean_M))
    gap = gap_ci = None
    if len(rows):
        _, member = np.unique(met.prompt_M[rows], return_inverse=True)
        lean_C, count_C = np.bincount(member, met.lean_M[rows]), np.bincount(member, met.votes_M[rows])
        gap = float(lean_C.sum() / count_C.sum())
        if len(lean_C) > 1:
            at = stats.ratio_interval(lean_C, count_C, resamples=draws.resamples, seed=draws.seed_for("position"))
            gap_ci = (at.low, at.high)
    if judge is None:
        outcomes = votes.outcomes()
        share = 1 - outcomes.get("ranked", 0) / len(votes.a_N)
        judge = JudgeFacts(judge=_voters(votes), calls=len(votes.a_N), outcomes=outcomes, unparsed_share=share)
    agreed = None if people is None else _agreement(votes, met, people, draws)
    return replace(
        judge, position_gap=gap, position_gap_ci=gap_ci, repeat_spread=_repeat_spread(votes, met),
        repeats=int(votes.repeat_N.max()) + 1, human_agreement=None if agreed is None else agreed.mean,
        human_agreement_ci=None if agreed is None else (agreed.low, agreed.high), human_votes=0 if agreed is None else agreed.n,
    )  # fmt: skip


def _agreement(votes: Votes, met: Meetings, people: Votes, draws: Draws) -> Interval | None:
    """Share of people's votes that say what the judge says about the pair; None without a common pair."""
    said: dict[tuple[str, str, str], float] = {}
    for m in np.flatnonzero(~np.isnan(met.score_b_M)):
        key = (votes.prompts[met.prompt_M[m]], votes.models[met.a_M[m]], votes.models[met.b_M[m]])
        said.setdefault(key, float(met.score_b_M[m]))
    judged, voted, prompts = [], [], []
    for n in np.flatnonzero(~np.isnan(people.preference_b_N)):
        key = (people.prompts[people.prompt_N[n]], people.models[people.a_N[n]], people.models[people.b_N[n]])
        judged.append(said.get(key))
        voted.append(float(people.preference_b_N[n]))
        prompts.append(key[0])
    found = human_agreement(judged, voted, prompts, resamples=draws.resamples, seed=draws.seed_for("people"))
    return None if found is None else found.share


def _voters(votes: Votes) -> str:
    named = [v for v in votes.voters if v]
    return named[0] if len(named) == 1 else f"{len(named):,} voters" if named else "unknown"


def _repeat_spread(votes: Votes, met: Meetings) -> float | None:
    """Standard deviation of a model's score over repeated judging, root mean square over the models, in points of a per cent."""
    repeats = int(votes.repeat_N.max()) + 1
    if repeats < 2:
        return None
    variances = []
    for model in range(len(votes.models)):
        scores = []
        for repeat in range(repeats):
            rows = (met.repeat_M == repeat) & ((met.a_M == model) | (met.b_M == model)) & ~np.isnan(met.score_b_M)
            if rows.any():
                score = met.score_b_M[rows]
                scores.append(100 * float(np.where(met.b_M[rows] == model, score, 1 - score).mean()))
        if len(scores) > 1:
            variances.append(float(np.var(scores, ddof=1)))
    return float(np.sqrt(np.mean(variances))) if variances else None


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _with_lengths(one: ModelResult, texts: Mapping[str, Mapping[str, str]]) -> ModelResult:
    answers = texts.get(one.model)
    if not answers:
        return one
    return replace(one, more=dict(one.more) | {"avg_length": sum(map(len, answers.values())) / len(answers)})


def _longer(votes: Votes, met: Meetings, texts: Mapping[str, Mapping[str, str]], draws: Draws) -> list[str]:
    """How often the longer answer wins: a judge's taste for length, or the models', as a note."""
    rows, wins, both = [], [], 0
    for m in np.flatnonzero(~np.isnan(met.score_b_M)) if texts else ():
        prompt = votes.prompts[met.prompt_M[m]]
        a, b = (texts.get(votes.models[side[m]], {}).get(prompt) for side in (met.a_M, met.b_M))
        if a is None or b is None:
            continue
        both += 1
        if len(a) != len(b):
            rows.append(m)
            wins.append(met.score_b_M[m] if len(b) > len(a) else 1 - met.score_b_M[m])
    if not rows:
        return ["None of the votes is about an answer in the files."] if texts and not both else []
    found = totals(met.prompt_M[np.array(rows)], np.array(wins), np.ones(len(rows)))
    return [f"The longer answer scores {_said(part(found, draws, 'longer'))} in {len(rows):,} meetings of unequal lengths."]

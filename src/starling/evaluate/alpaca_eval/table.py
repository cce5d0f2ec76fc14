"""AlpacaEval's table of models: who is better than whom on the same instructions, and what the judge's order was worth.

Departure: the official leaderboard has neither paired tests nor a word about the order in which the judge was shown the answers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from starling import stats
from starling.evaluate.alpaca_eval.files import Judged
from starling.evaluate.alpaca_eval.length_control import Floats
from starling.evaluate.alpaca_eval.measure import CIPair, Measured, interval
from starling.evaluate.results import Difference, JudgeFacts, ModelResult, Part, Result
from starling.stats_comparisons import holm, sign_flip_p

WORD = "alpaca-eval"


# ── models against each other ────────────────────────────────────────────────────────────────────────────────────────


def differences(lines: Sequence[Measured], *, resamples: int, seed: int) -> list[Difference]:
    """Every pair of models on the instructions that both have: mean of first − second in points, by the length-controlled rate
    where all have one, else by the plain one. Interval: the same resamples of instructions for both. p: random signs, adjusted by
    Holm over all pairs. Pairs with fewer than two instructions in common are left out."""
    lines = [line for line in lines if line.scores]
    texts = list(dict.fromkeys(text for line in lines for text in line.scores))
    if len(lines) < 2 or len(texts) < 2:
        return []
    which = 1 if all(line.controlled is not None for line in lines) else 0
    value_CM = np.array([[line.scores[text][which] if text in line.scores else np.nan for line in lines] for text in texts])
    pairs = [(i, j) for i in range(len(lines)) for j in range(i + 1, len(lines))]
    gap_CP = value_CM[:, [i for i, _ in pairs]] - value_CM[:, [j for _, j in pairs]]
    there_CP = ~np.isnan(gap_CP)
    sums_CP, counts_CP = np.where(there_CP, gap_CP, 0.0), there_CP.astype(np.float64)
    draws = [(times @ sums_CP, times @ counts_CP) for times in stats.times_drawn(len(texts), resamples, seed)]
    with np.errstate(invalid="ignore"):
        means_RP = np.concatenate([sums / counts for sums, counts in draws])
    kept = [p for p in range(len(pairs)) if there_CP[:, p].sum() > 1]
    p_values = [_sign_p(gap_CP[there_CP[:, p], p], seed) for p in kept]
    return [
        Difference(
            first=lines[pairs[p][0]].model,
            second=lines[pairs[p][1]].model,
            difference=float(sums_CP[:, p].sum() / counts_CP[:, p].sum()),
            ci=interval(means_RP[:, p]),
            p=p_value,
            p_adjusted=adjusted,
        )
        for p, p_value, adjusted in zip(kept, p_values, holm(p_values), strict=True)
    ]


def _sign_p(gaps: Floats, seed: int) -> float:
    """p-value of the sum under random signs; from 200 instructions on that sum is as good as normal."""
    if len(gaps) < 200:
        return sign_flip_p(gaps, seed=seed, flips=10_000)
    spread = math.sqrt(2 * float(gaps @ gaps))
    return math.erfc(abs(float(gaps.sum())) / spread) if spread else 1.0


def judge_facts(lines: Sequence[Measured], judged: Sequence[Judged], *, resamples: int, seed: int) -> JudgeFacts:
    """The annotator of the files as a judge: its rows are its calls, all models' preferences together give its position gap."""
    outcomes = Counter[str]()
    for one in judged:
        outcomes.update(one.outcomes)
    calls = sum(outcomes.values())
    gap = position_gap(lines, resamples=resamples, seed=seed)
    return JudgeFacts(
        judge=", ".join(sorted({one.annotator or "unnamed" for one in judged})),
        calls=calls,
        outcomes=dict(outcomes),
        unparsed_share=1 - outcomes["ranked"] / calls if calls else None,
        position_gap=gap[0] if gap else None,
        position_gap_ci=gap[1] if gap else None,
        dollars=math.fsum(one.dollars for one in judged) or None,
        seconds=math.fsum(one.seconds for one in judged) or None,
    )


def position_gap(lines: Sequence[Measured], *, resamples: int, seed: int) -> tuple[float, CIPair] | None:
    """The gap over all models with its interval, clustered by instruction; None where one order never came."""
    if len(lines) == 1:  # measured already, from the same resamples
        gap, ci = lines[0].position_gap, lines[0].position_gap_ci
        return None if gap is None or ci is None else (gap, ci)
    sums: dict[str, Floats] = {}
    for line in lines:
        for text, four in line.orders.items():
            sums[text] = sums.get(text, np.zeros(4)) + np.array(four)
    table_CX = np.array(list(sums.values())).reshape(-1, 4)
    total_X = table_CX.sum(0)
    if not total_X[1] or not total_X[3]:
        return None
    totals_RX = np.concatenate([times @ table_CX for times in stats.times_drawn(len(table_CX), resamples, seed)])
    with np.errstate(invalid="ignore"):
        draws = totals_RX[:, 0] / totals_RX[:, 1] - totals_RX[:, 2] / totals_RX[:, 3]
    return float(total_X[0] / total_X[1] - total_X[2] / total_X[3]), interval(draws)


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


def result(
    lines: Sequence[Measured],
    *,
    settings: Mapping[str, Any],
    judge: JudgeFacts | None = None,
    differences: Sequence[Difference] = (),
    notes: Sequence[str] = (),
) -> Result:
    """The benchmark's table, best first: by the length-controlled rate where all have one, else by the plain one."""
    controlled = bool(lines) and all(line.lc_win_rate is not None for line in lines)

    def key(line: Measured) -> tuple[bool, float, str]:
        score = line.lc_win_rate if controlled else line.plain.win_rate
        return score is None, -(score or 0.0), line.model

    baselines = sorted({line.baseline for line in lines if line.baseline})
    said: dict[str, list[str]] = {}
    for line in lines:
        for note in (*line.notes, *([f"no length-controlled win rate: {line.lc_reason}"] if line.lc_reason else [])):
            said.setdefault(note, []).append(line.model)
    gathered = [
        note if len(models) == len(lines) else f"{', '.join(models[:5])}{', …' if len(models) > 5 else ''}: {note}"
        for note, models in said.items()
    ]
    by_controlled = ("The order and the differences are by the length-controlled rate; the score is the plain one.",)
    return Result(
        benchmark=WORD,
        title=f"AlpacaEval: win rate over {' and '.join(baselines) or 'the baseline'}",
        unit="% of comparisons won",
        models=tuple(_model_result(line) for line in sorted(lines, key=key)),
        differences=tuple(differences),
        judge=judge,
        notes=(*notes, *(by_controlled if controlled and len(lines) > 1 else ()), *gathered),
        settings=settings,
    )


def _model_result(line: Measured) -> ModelResult:
    n, clusters = line.plain.n_total, line.clusters
    parts = {"length-controlled": Part(score=line.lc_win_rate, ci=line.lc_ci, n=n, clusters=clusters)}
    plain = line.plain
    return ModelResult(
        model=line.model,
        overall=Part(score=plain.win_rate, ci=line.win_rate_ci, n=n, clusters=clusters),
        parts=parts,
        outcomes=line.outcomes,
        more={
            "lc_win_rate": line.lc_win_rate, "lc_standard_error": line.lc_standard_error,
            "standard_error": plain.standard_error, "discrete_win_rate": plain.discrete_win_rate, "avg_length": line.avg_length,
            "position_gap": line.position_gap,
        },
    )  # fmt: skip

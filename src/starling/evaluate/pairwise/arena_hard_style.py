"""Arena-Hard's scores with style held equal: length and density of headers, lists and bold.

Features as show_result.py has them: length (a − b) / (a + b), and of densities d = count / (tokens + 1) the difference
(d_a − d_b) / (d_a + d_b + 1); a Bradley–Terry model with them, fitted to single verdicts, strong ones `weight` times. The score
is the chance to beat the baseline where both answers have the same style.

Departures: the original takes the mean off its features, so its scores are those at the mean difference of style of all verdicts
of the table, and move when another model joins; that score is given as `official`, to compare with published tables. Maximum
likelihood by `starling.ratings.style` instead of the median of 100 bootstrap fits; 95 % intervals by the sandwich with prompts as
clusters; the length's denominator has a 1 added, as the others. Each category has its own fit, since its baseline is its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from starling.errors import InputError
from starling.evaluate.pairwise.arena_hard_files import Judged, style_of
from starling.evaluate.pairwise.paired import Floats
from starling.ratings.battles import Battles, Named
from starling.ratings.style import style_control


@dataclass(frozen=True)
class StyleScores:
    """Scores of one category with style held equal, in per cent, and what style is worth."""

    category: str
    scores: Mapping[str, tuple[float, float, float]]
    """Model → score, low, high."""
    official: Mapping[str, float]
    """Model → score at the table's mean style, as show_result.py has it."""
    coefficients: Mapping[str, float]
    """What one spread more of a feature adds to the log-odds of an answer."""
    unknown: int
    """Verdicts left out because one of the two answers is not in the files."""


def style_scores(
    judgments: Sequence[Judged], texts: Mapping[str, Mapping[str, str]], *, category: str, weight: int
) -> StyleScores:
    """The scores of a category.

    Args:
        texts: model → uid → its answer, the baseline's too.
        weight: copies of a strong verdict.

    Raises:
        InputError: there is no verdict with both answers, several baselines, or no maximum; see `style_control`.
    """
    rows = [row for row in judgments if row.category == category]
    baselines = {row.baseline for row in rows}
    if len(baselines) != 1:
        raise InputError(
            f"Style control needs one baseline, and the category '{category}' has {len(baselines)}",
            where="--judgments",
            cure="give judgments against one baseline",
        )
    models = sorted({row.model for row in rows} | baselines)
    number = {name: i for i, name in enumerate(models)}
    uids = sorted({row.uid for row in rows})
    place = {uid: i for i, uid in enumerate(uids)}
    styles = {(name, uid): _features(text) for name in models for uid, text in texts.get(name, {}).items() if uid in place}
    battles: list[tuple[int, int, float, int, Floats, Floats]] = []
    unknown = 0
    for row in rows:
        verdicts = [v for v in row.verdicts() if v[0] is not None]
        if len(verdicts) < len(row.games):
            continue
        ours, theirs = styles.get((row.model, row.uid)), styles.get((row.baseline, row.uid))
        if ours is None or theirs is None:
            unknown += len(verdicts)
            continue
        for score, strong, _, _ in verdicts:
            one = (number[row.model], number[row.baseline], float(score or 0), place[row.uid], ours, theirs)
            battles += [one] * (weight if strong else 1)
    if not battles:
        raise InputError(
            f"No verdict of the category '{category}' has both answers",
            where="--answers",
            cure="give the model_answer files of the models and of the baseline",
        )
    return _fitted(category, battles, models, uids, number[next(iter(baselines))], unknown)


def _features(text: str) -> Floats:
    """Tokens, and headers, lists and bold per token."""
    style = style_of(text)
    tokens = style["token_len"]
    counts = (sum(style[name].values()) for name in ("header_count", "list_count", "bold_count"))
    return np.array([tokens, *(count / (tokens + 1) for count in counts)], dtype=np.float64)


def _fitted(
    category: str,
    battles: Sequence[tuple[int, int, float, int, Floats, Floats]],
    models: Sequence[str],
    uids: Sequence[str],
    baseline: int,
    unknown: int,
) -> StyleScores:
    a, b, score, prompt, ours, theirs = zip(*battles, strict=True)
    found = style_control(
        Battles(
            models=tuple(models), a_N=np.array(a, dtype=np.int32), b_N=np.array(b, dtype=np.int32),
            score_a_N=np.array(score, dtype=np.float32),
            prompt=Named(names=tuple(uids), codes_N=np.array(prompt, dtype=np.int32)),
            style_a_NF=np.array(ours, dtype=np.float32), style_b_NF=np.array(theirs, dtype=np.float32),
        ),
        cluster="prompt",
    )  # fmt: skip
    low_M, high_M = found.uncertainty.bounds(found.models.index(models[baseline]))
    level = found.strength_M[found.models.index(models[baseline])]
    points = 100 / (1 + np.exp(level - np.stack([found.strength_M, low_M, high_M], axis=1)))
    a_NF, b_NF = np.array(ours), np.array(theirs)
    mean_F = ((a_NF - b_NF) / (a_NF + b_NF + 1)).mean(0)
    shift = float(found.coefficient_F @ (mean_F / found.spread_F))
    centred = 100 / (1 + np.exp(level - found.strength_M - shift))
    others = [i for i, name in enumerate(found.models) if name != models[baseline]]
    return StyleScores(
        category=category,
        scores={found.models[i]: (float(points[i, 0]), float(points[i, 1]), float(points[i, 2])) for i in others},
        official={found.models[i]: float(centred[i]) for i in others},
        coefficients=dict(zip(found.features, found.coefficient_F.tolist(), strict=True)),
        unknown=unknown,
    )

"""Ratings with style held equal: how models would stand if their answers were as long and as marked up as their opponents'.

Bradley–Terry strengths and the effects of style are fitted together (LMArena's style control, August 2024):

    P(a wins) = σ(s_a − s_b + Σ_f β_f x_f)        x_f = (a_f − b_f) / (a_f + b_f + 1) / its spread

for the counts a_f, b_f of the two answers: tokens, headers, items of lists, bold. Ties are half wins, as everywhere.

Where we depart from FastChat's `compute_style_control` by default: x is divided by its root mean square, but no mean is taken
off, so that exchanging the two answers of any battle changes nothing (in FastChat the log's mean difference acts as a bonus for
the first answer); there is no penalty (FastChat's draws ratings together, with little data much); and the maximum is reached, not
approached in 100 steps. `ridge="fastchat"` gives FastChat's own objective, at its true optimum; `ridge="coefficients"` that of
LMArena's arena-rank, whose penalty is so strong (1 on the mean loss) that coefficients come out several times smaller.

Intervals: the sandwich of `intervals.py` with the features as further columns, of battles or of clusters of them; or percentiles
of a bootstrap that draws battles (or clusters) again and goes to the maximum in each round.

Shape suffixes: N battles, M models, F features, P = M + F, K clusters, R rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from starling.errors import InputError
from starling.progress import SILENT, Progress
from starling.ratings.battles import STYLE_FEATURES, Battles
from starling.ratings.bradley_terry import ELO, Array, Fit, bradley_terry
from starling.ratings.intervals import Z95, Cluster, Uncertainty, members, sandwich
from starling.ratings.style_fit import Design, Maximum, derivatives, filled, make_design, maximise
from starling.ratings.style_intervals import redraw, sandwich_covariance

Ridge = Literal["none", "coefficients", "fastchat"]
_FASTCHAT = 0.5
"""λ on coefficients, and on ratings in units of log10; scikit-learn's C = 1, of battles that the first version counted twice."""
_UNTOLD = 1e-9
"""A feature of which no more than this share remains once models and other features are known has no effect of its own."""


@dataclass(frozen=True, kw_only=True)
class StyleRatings:
    """Ratings with and without style control, and what style is worth; strengths and coefficients in natural-log units."""

    models: tuple[str, ...]
    strength_M: Array
    """With style held equal; they sum to 0."""
    uncertainty: Uncertainty
    """Of those strengths."""
    without: Fit
    """The same battles without style control."""
    without_uncertainty: Uncertainty
    """Its sandwich."""
    features: tuple[str, ...]
    coefficient_F: Array
    """What a feature that is one spread larger adds to the log-odds of the answer."""
    coefficient_interval_F2: Array
    spread_F: Array
    """One spread of x, e.g. 0.33: the root mean square, or with FastChat's centring the standard deviation."""
    mean_F: Array
    """Taken off x; 0 unless the objective is another tool's."""
    ridge: Ridge
    battles: int
    """In both fits."""
    style_unknown: int
    """Battles in neither fit: a count of one of the two answers is missing."""
    gradient: float
    """Largest entry of the objective's gradient at the optimum, in battles."""

    @property
    def rating_M(self) -> Array:
        """The strengths on Elo's scale; their mean is 1000."""
        return ELO.initial + ELO.per_unit * self.strength_M

    @property
    def rating_interval_M2(self) -> Array:
        """95 % intervals of the ratings."""
        return ELO.initial + ELO.per_unit * np.stack(self.uncertainty.bounds(), axis=1)

    @property
    def coefficient_points_F(self) -> Array:
        """The coefficients in points of rating: what an answer that is one spread longer gains."""
        return ELO.per_unit * self.coefficient_F


def style_control(
    battles: Battles,
    features: Sequence[str] = STYLE_FEATURES,
    *,
    ridge: Ridge = "none",
    plus_one: bool = True,
    cluster: Cluster | None = None,
    rounds: int = 0,
    seed: int = 0,
    progress: Progress = SILENT,
) -> StyleRatings:
    """Rate models with the style of their answers held equal.

    Args:
        battles: with style counts; those in which a count is NaN are left out and counted.
        features: which of STYLE_FEATURES.
        ridge: the penalty: "none" (maximum likelihood), "fastchat" (λ = 0.5 on ratings in log10 units and on coefficients,
            features with their mean taken off), "coefficients" (arena-rank's: λ = number of battles on coefficients alone,
            mean taken off).
        plus_one: add 1 to the denominator a + b of a feature, as FastChat; without it, 0 of 0 is no difference.
        cluster: what is drawn again and what the sandwich sums over; None takes battles for independent.
        rounds: bootstrap rounds; 0 gives the sandwich's intervals.
        progress: hears of bootstrap rounds.

    Raises:
        InputError: no counts; a feature that never differs or that models and other features already tell (names it); models
            that cannot be put on one scale; or votes that style and models predict without error, so that there is no maximum.
        ValueError: an unknown feature or ridge, one round, or battles without the cluster's column.
    """
    if ridge not in ("none", "coefficients", "fastchat") or rounds in (1,) or rounds < 0:
        raise ValueError(f"no such ridge as {ridge!r}, or no such number of rounds as {rounds}")
    known, unknown = _with_counts(battles, features)
    if cluster is not None:
        members(known, cluster)  # raises before the work rather than after it
    x_NF = _differences(known, features, plus_one)
    spread_F, mean_F = _standardise(x_NF, features, centred=ridge != "none")
    without = bradley_terry(known)
    design = make_design(known, x_NF)
    penalty_P = _penalty(ridge, len(known), len(known.models), len(features))
    found = _maximum(design, without, penalty_P, features)
    models = len(known.models)
    if rounds:
        draws_RP, redone = redraw(design, known, found.theta_P, penalty_P, cluster, rounds=rounds, seed=seed, progress=progress)
        covariance_PP = np.atleast_2d(np.cov(draws_RP.T))
        interval_F2 = np.quantile(draws_RP[:, models:], [0.025, 0.975], axis=0, method="weibull").T  # as Uncertainty.bounds
    else:
        draws_RP, redone = None, 0
        covariance_PP = sandwich_covariance(design, known, found, cluster)
        half_F = Z95 * np.sqrt(np.diag(covariance_PP)[models:])
        interval_F2 = np.stack([found.theta_P[models:] - half_F, found.theta_P[models:] + half_F], axis=1)
    return StyleRatings(
        models=known.models,
        strength_M=found.theta_P[:models],
        uncertainty=Uncertainty(
            method="bootstrap" if rounds else "sandwich",
            center_M=found.theta_P[:models],
            covariance_MM=covariance_PP[:models, :models],
            draws_RM=None if draws_RP is None else draws_RP[:, :models],
            clusters=len(known) if cluster is None else members(known, cluster)[1],
            cluster=cluster,
            without_maximum=redone,
        ),
        without=without,
        without_uncertainty=sandwich(without, known, cluster=cluster),
        features=tuple(features),
        coefficient_F=found.theta_P[models:],
        coefficient_interval_F2=interval_F2,
        spread_F=spread_F,
        mean_F=mean_F,
        ridge=ridge,
        battles=len(known),
        style_unknown=unknown,
        gradient=found.gradient,
    )


# ── features ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _with_counts(battles: Battles, features: Sequence[str]) -> tuple[Battles, int]:
    """The battles whose counts of these features are known, and how many are not."""
    missing = [name for name in features if name not in STYLE_FEATURES]
    if missing or len(set(features)) < len(features) or not features:
        raise ValueError(f"features are some of {', '.join(STYLE_FEATURES)}, each once, not {', '.join(features) or 'none'}")
    cure = "give a log with conv_metadata or with the conversations, from which style is counted, or rate without style control"
    if battles.style_a_NF is None or battles.style_b_NF is None:
        raise InputError("The votes do not tell the style of the answers", where="the votes given", cure=cure)
    columns = [STYLE_FEATURES.index(name) for name in features]
    known_N = np.ones(len(battles), dtype=bool)
    for counts_NF in (battles.style_a_NF, battles.style_b_NF):
        for f in columns:
            column_N = counts_NF[:, f]
            known_N &= np.isfinite(column_N)
            if (column_N < 0).any():
                raise InputError(
                    f"The answers' {STYLE_FEATURES[f]} is below 0 in {int((column_N < 0).sum()):,} battles",
                    where=f"battle {int(np.flatnonzero(column_N < 0)[0]) + 1} of {len(battles):,}",
                    cure="correct the counts of style: they are numbers of tokens, headers, list items and bold passages",
                )
    unknown = int((~known_N).sum())
    if unknown == len(battles):
        raise InputError(f"None of the {unknown:,} votes tells the style of both answers", where="the votes given", cure=cure)
    return (battles.kept(known_N) if unknown else battles), unknown


def _differences(battles: Battles, features: Sequence[str], plus_one: bool) -> Array:
    """(a − b) / (a + b + 1) of each feature, by columns."""
    assert battles.style_a_NF is not None
    assert battles.style_b_NF is not None
    x_NF = np.zeros((len(battles), len(features)), order="F")
    for f, name in enumerate(features):
        column = STYLE_FEATURES.index(name)
        a_N, b_N = battles.style_a_NF[:, column].astype(np.float64), battles.style_b_NF[:, column].astype(np.float64)
        total_N = a_N + b_N
        if plus_one:
            total_N += 1
        np.divide(a_N - b_N, total_N, out=x_NF[:, f], where=total_N > 0)
    return x_NF


def _standardise(x_NF: Array, features: Sequence[str], *, centred: bool) -> tuple[Array, Array]:
    """Divide each column by its spread, in place; returns spreads and the means taken off."""
    mean_F: Array = x_NF.mean(0)
    deviation_F: Array = x_NF.std(0)
    for name, deviation, mean in zip(features, deviation_F, mean_F, strict=True):
        if deviation <= 1e-12 * max(1.0, abs(mean)):
            raise InputError(
                f"The answers' {name} differs equally in all battles, so that its effect cannot be told",
                where=f"{len(x_NF):,} battles, (a − b) / (a + b) = {mean:.3g}",
                cure=f"leave {name} out of the style features",
            )
    if not centred:
        mean_F = np.zeros(len(features))
        deviation_F = np.sqrt(np.einsum("nf,nf->f", x_NF, x_NF) / len(x_NF))
    for column_N, mean, deviation in zip(x_NF.T, mean_F, deviation_F, strict=True):
        column_N -= mean
        column_N /= deviation
    return deviation_F, mean_F


# ── the fit ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _penalty(ridge: Ridge, battles: int, models: int, features: int) -> Array:
    on_strengths, on_coefficients = {
        "none": (0.0, 0.0),
        "coefficients": (0.0, float(battles)),
        "fastchat": (_FASTCHAT / np.log(10) ** 2, _FASTCHAT),
    }[ridge]
    return np.asarray(np.r_[np.full(models, on_strengths), np.full(features, on_coefficients)])


def _maximum(design: Design, without: Fit, penalty_P: Array, features: Sequence[str]) -> Maximum:
    """The optimum, from the ratings without style control.

    Raises:
        InputError: features that are told by others, or no maximum.
    """
    start_P = np.r_[without.strength_M, np.zeros(len(features))]
    _check_told_apart(filled(derivatives(design, start_P).matrix(), penalty_P, design.models), features)
    found = maximise(design, start_P, penalty_P)
    if not found.settled:
        raise InputError(
            "Style and models together predict the votes without error, or nearly: effects of style run to infinity",
            where=f"{len(design.score_N):,} battles of {design.models} models, {', '.join(features)}",
            cure='collect more votes, take fewer style features, or ask for a ridge ("coefficients" or "fastchat")',
        )
    return found


def _check_told_apart(curvature_PP: Array, features: Sequence[str]) -> None:
    """Refuse a feature that the models and the features before it tell, by the pivots of the curvature's elimination."""
    models = len(curvature_PP) - len(features)
    cross_MF = curvature_PP[:models, models:]
    left_FF = curvature_PP[models:, models:] - cross_MF.T @ np.linalg.solve(curvature_PP[:models, :models], cross_MF)
    for f, name in enumerate(features):
        if left_FF[f, f] <= _UNTOLD * curvature_PP[models + f, models + f]:
            before = f" and by {', '.join(features[:f])}" if f else ""
            raise InputError(
                f"The effect of {name} cannot be told: in these battles it is given by which models meet{before}",
                where=f"{models} models, {', '.join(features)}",
                cure=f"leave {name} out of the style features, or ask for a ridge",
            )
        left_FF = left_FF - np.outer(left_FF[:, f], left_FF[f]) / left_FF[f, f]

"""New models rated against old votes: the old models' ratings stay as they were saved, only the new ones are fitted.

A leaderboard grows by one model without moving all others, and without the old votes at hand. The new strengths maximise the
Bradley–Terry likelihood of the battles in which they take part, the old ones held fixed; battles between old models say nothing
then, and are counted. Their interval is the sandwich's on the block of the new models, to which the error of the old
ratings is added where it was saved, as if those errors were independent of each other (they sum to zero, so that this is a
little too wide): variance = H⁻¹ G H⁻¹ + J diag(sd²) Jᵀ, J = H⁻¹ W the pull of each old rating on the new ones.

Shape suffixes: M models, K known ones, F new ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from starling.errors import InputError
from starling.ratings.battles import Battles
from starling.ratings.bradley_terry import ELO, Array, Fit, Scale, check_connected, pair_sums
from starling.ratings.intervals import Cluster, chances, curvature, score_covariance

_STEPS, _SETTLED = 200, 1e-9


@dataclass(frozen=True, kw_only=True)
class KnownRatings:
    """Ratings as saved by `starling ratings --json`, or a plain object of model → rating on Elo's scale."""

    rating: Mapping[str, float]
    """Points by model."""
    sd: Mapping[str, float]
    """Points; only of models whose error was saved."""
    ci: Mapping[str, tuple[float, float]]
    scale: Scale = ELO
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class NewFit:
    """All models' strengths, known ones as they were (natural units, (rating − initial) / per_unit), and the new ones' errors."""

    fit: Fit
    """Of the models of the battles."""
    new_M: np.ndarray[Any, np.dtype[np.bool_]]
    """True means that the model is new and was fitted."""
    sd_M: Array
    """Natural units; of known models as saved, NaN where that is not known."""
    between_known: int
    """Battles between known models, which say nothing here."""


def read_known(path: Path) -> KnownRatings:
    """The saved ratings of a file.

    Raises:
        InputError: no such file, or no ratings in it.
    """
    try:
        saved = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError("The file of saved ratings does not exist", where=str(path), cure="check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"The saved ratings cannot be read: {error}", where=str(path), cure=_CURE) from None
    try:
        if isinstance(saved, dict) and isinstance(saved.get("ratings"), list):
            rows = [(str(row["model"]), row) for row in saved["ratings"]]
            scale = Scale(**saved["scale"]) if saved.get("scale") else ELO
        else:
            rows = [(str(name), {"rating": rating}) for name, rating in saved.items()]
            scale = ELO
        rating = {name: float(row["rating"]) for name, row in rows}
        sd = {name: float(row["sd"]) for name, row in rows if row.get("sd") is not None}
        ci = {name: (float(row["ci"][0]), float(row["ci"][1])) for name, row in rows if row.get("ci")}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"The file holds no saved ratings ({type(error).__name__}: {error})", where=str(path), cure=_CURE
        ) from None
    if not rating or not np.isfinite(list(rating.values())).all():
        raise InputError("The file of saved ratings is empty or holds a rating that is no number", where=str(path), cure=_CURE)
    return KnownRatings(rating=rating, sd=sd, ci=ci, scale=scale, source=str(path))


_CURE = "give what `starling ratings … --json` printed, or an object of model: rating"


def rate_new(battles: Battles, known: KnownRatings, *, cluster: Cluster | None = None) -> NewFit:
    """Strengths of the models that `known` does not rate.

    Raises:
        InputError: there is no new model, or new ones cannot be put on the scale of the known ones; named.
    """
    names = battles.models
    new_M = np.array([name not in known.rating for name in names], dtype=bool)
    if not new_M.any():
        raise InputError(
            "Every model of the votes has a saved rating already", where=known.source or "the saved ratings", cure=_NOTHING_NEW
        )
    scale = known.scale
    fixed_M = np.array([(known.rating.get(n, scale.initial) - scale.initial) / scale.per_unit for n in names])
    pairs = pair_sums(battles)
    _check_on_scale(pairs.won_MM, new_M, names, known)
    # The new ones begin at the mean of the known ones that took part.
    strength_M = np.where(new_M, fixed_M[~new_M].mean(), fixed_M)
    games_MM, won_M = pairs.battles_MM, pairs.won_MM.sum(1)
    for _ in range(_STEPS):
        slope_F = (won_M - (games_MM * chances(strength_M)).sum(1))[new_M]
        curvature_FF = curvature(strength_M, pairs)[np.ix_(new_M, new_M)]
        step_F = np.linalg.solve(curvature_FF, slope_F)
        change = max(0.0, float(step_F.max())) - min(0.0, float(step_F.min()))  # the known ones do not move
        strength_M[new_M] += step_F * (np.log1p(change) / change if change > 1e-12 else 1.0)
        if change <= _SETTLED:
            break
    fit = Fit(models=names, strength_M=strength_M, pairs=pairs)
    whole_MM = curvature(strength_M, pairs)
    inverse_FF = np.linalg.inv(whole_MM[np.ix_(new_M, new_M)])
    score_FF = score_covariance(fit, battles, cluster)[1][np.ix_(new_M, new_M)]
    sd_M = np.array([known.sd.get(n, np.nan) for n in names]) / scale.per_unit
    pull_FK = -inverse_FF @ whole_MM[np.ix_(new_M, ~new_M)]
    variance_F = np.diag(inverse_FF @ score_FF @ inverse_FF) + pull_FK**2 @ np.nan_to_num(sd_M[~new_M]) ** 2
    sd_M[new_M] = np.sqrt(variance_F)
    between = games_MM[np.ix_(~new_M, ~new_M)].sum() / 2
    return NewFit(fit=fit, new_M=new_M, sd_M=sd_M, between_known=round(float(between)))


_NOTHING_NEW = "rate all models together without --ratings, or add votes on a new model"


def _check_on_scale(won_MM: Array, new_M: np.ndarray[Any, Any], names: tuple[str, ...], known: KnownRatings) -> None:
    """The known models count as one: it must reach every new model along wins, and be reached from it."""
    if new_M.all():
        raise InputError(
            "None of the models with a saved rating takes part in the votes",
            where=known.source or "the saved ratings",
            cure="check the models' names, or rate the votes without --ratings",
        )
    group_M = np.where(new_M, np.cumsum(new_M), 0)
    joined = np.zeros((group_M.max() + 1, len(names)))
    joined[group_M, np.arange(len(names))] = 1
    wins = joined @ won_MM @ joined.T
    np.fill_diagonal(wins, 0)
    check_connected(wins, ["the models already rated", *(n for n, new in zip(names, new_M, strict=True) if new)])

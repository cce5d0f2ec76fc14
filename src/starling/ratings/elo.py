"""Online Elo: ratings that move after every battle, in the order in which the battles were fought.

    E = 1 / (1 + base^((R_b − R_a)/scale))        R_a += K (S − E)        R_b −= K (S − E)

Constants as in FastChat's `compute_elo`: everybody starts at 1000, K = 4, scale 400, base 10, and a tie is half a win. The result
depends on the order, and forgets: with K = 4 a battle has lost half its weight after about 120 more of the same model
against equals. For models that do not change, Bradley–Terry is the better estimate; Elo is here to be compared with.

The interval is a bootstrap that keeps the order: each battle counts as often as a Poisson variable with mean 1 says (nearly the
multinomial of drawing all anew, and needs no list of drawn battles), with one update of that weight. FastChat also shuffles
the battles, so that its median is a rating of battles in no order.

Shape suffixes: N battles, M models, R rounds.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from starling.errors import InputError
from starling.ratings.battles import Battles
from starling.ratings.bradley_terry import ELO, Fit, Scale, pair_sums
from starling.ratings.intervals import Uncertainty

K = 4.0
_CHUNK = 1 << 16
"""Battles whose weights are drawn at once."""


def elo(battles: Battles, *, k: float = K, scale: Scale = ELO) -> Fit:
    """Elo ratings after all battles, as strengths in natural units around the initial rating.

    Args:
        k: points that a sure winner's loss would cost.

    Raises:
        InputError: there is no battle.
    """
    if not len(battles):
        raise InputError("There is no battle to rate models from", where="the votes given", cure="check files and filters")
    step = k / scale.per_unit
    strengths = [0.0] * len(battles.models)
    order_N = order(battles)
    for start in range(0, len(battles), _CHUNK):
        rows = order_N[start : start + _CHUNK]
        exp = math.exp
        for a, b, score in zip(
            battles.a_N[rows].tolist(), battles.b_N[rows].tolist(), battles.score_a_N[rows].tolist(), strict=True
        ):
            moved = step * (score - 1 / (1 + exp(strengths[b] - strengths[a])))
            strengths[a] += moved
            strengths[b] -= moved
    return Fit(models=battles.models, strength_M=np.array(strengths), pairs=pair_sums(battles))


def order(battles: Battles) -> NDArray[np.int64]:
    """Row numbers in the order of time; that of the file where a battle has no time. Battles of one instant keep the file's."""
    if not in_time(battles):
        return np.arange(len(battles))
    return np.argsort(battles.time_N, kind="stable")  # type: ignore[arg-type]


def in_time(battles: Battles) -> bool:
    """Whether every battle says when it was."""
    return battles.time_N is not None and not bool(np.isnan(battles.time_N).any())


def elo_bootstrap(
    fit: Fit, battles: Battles, *, rounds: int = 1000, seed: int = 0, k: float = K, scale: Scale = ELO
) -> Uncertainty:
    """Elo ratings of `rounds` reweighted sets of battles; see the file's docstring.

    Raises:
        ValueError: fewer than two rounds.
    """
    if rounds < 2:
        raise ValueError("a bootstrap needs at least two rounds")
    rng = np.random.Generator(np.random.PCG64(seed))
    step = k / scale.per_unit
    strength_MR = np.zeros((len(battles.models), rounds))
    order_N = order(battles)
    chunk = max(1, _CHUNK * 64 // rounds)
    for start in range(0, len(battles), chunk):
        rows = order_N[start : start + chunk]
        weight_NR = step * rng.poisson(1.0, (len(rows), rounds))
        a_N, b_N, score_N = battles.a_N[rows].tolist(), battles.b_N[rows].tolist(), battles.score_a_N[rows].tolist()
        for a, b, score, weight_R in zip(a_N, b_N, score_N, weight_NR, strict=True):
            moved_R = weight_R * (score - 1 / (1 + np.exp(strength_MR[b] - strength_MR[a])))
            strength_MR[a] += moved_R
            strength_MR[b] -= moved_R
    return Uncertainty(
        method="bootstrap",
        center_M=fit.strength_M,
        covariance_MM=np.atleast_2d(np.cov(strength_MR)),
        draws_RM=np.ascontiguousarray(strength_MR.T),
        clusters=len(battles),
    )

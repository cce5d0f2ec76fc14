"""How sure ratings with style control are: the sandwich covariance and the bootstrap of `intervals.py`, with features.

Sandwich: H⁻¹ G H⁻¹ with H the curvature at the optimum, and G = Σ over battles, or clusters of them, of the outer product of
their scores (S − P) φ, times K/(K−1). A penalty counts in H alone.

Bootstrap: every round draws as many battles (or clusters) again as there are, which is one whole number per battle, and goes to
the optimum for these weights (`style_fit.Redrawn`). FastChat's rounds are of the same kind: it copies the drawn battles and
starts from 0.
A round in which the drawn battles have no maximum is fitted with a small ridge and counted, as in `intervals.py`.

Shape suffixes: N battles, M models, F features, P = M + F, C pairs that met, K clusters, R rounds.
"""

from __future__ import annotations

import numpy as np

from starling.progress import SILENT, Progress
from starling.ratings.battles import Battles
from starling.ratings.bradley_terry import Array
from starling.ratings.intervals import Cluster, connected, members
from starling.ratings.style_fit import Design, Maximum, Redrawn, Totals, chances, maximise

_SMALL_RIDGE = 0.01
"""Of a round without a maximum, on every parameter."""
_NUMBERS = 1 << 22
"""Numbers held at once beside the battles: 32 MB."""


def sandwich_covariance(design: Design, battles: Battles, found: Maximum, cluster: Cluster | None) -> Array:
    """The covariance of all parameters [P, P], on the plane where strengths sum to 0.

    Raises:
        ValueError: the battles have no such column.
    """
    if cluster is None:
        clusters, score_PP = len(battles), _squares(design, found.theta_P)
    else:
        clusters, score_PP = _clustered_squares(design, battles, found.theta_P, cluster)
    inverse_PP = np.linalg.inv(found.curvature_PP)
    return np.asarray(inverse_PP @ score_PP @ inverse_PP * (clusters / max(clusters - 1, 1)))


def _squares(design: Design, theta_P: Array) -> Array:
    """Σ (S − P)² φ φᵀ."""
    totals = Totals(design, "all")
    for block in design.blocks:
        error = design.score_N[block.rows] - chances(design, block, theta_P)
        totals.add(block, error, error**2)
    return totals.matrix()


def _clustered_squares(design: Design, battles: Battles, theta_P: Array, cluster: Cluster) -> tuple[int, Array]:
    """The number of clusters, and Σ over clusters of the outer product of their scores; so many clusters at a time as fit."""
    models, parameters = design.models, len(theta_P)
    member_N, clusters = members(battles, cluster)
    error_N = np.empty(len(battles))
    for block in design.blocks:
        error_N[block.rows] = design.score_N[block.rows] - chances(design, block, theta_P)
    pairs = np.diff(design.starts_C, append=len(battles))
    low_N, high_N = np.repeat(design.low_C.astype(np.int32), pairs), np.repeat(design.high_C.astype(np.int32), pairs)
    member_N = member_N[design.order_N]
    by_cluster_N = np.argsort(member_N, kind="stable")
    starts_K = np.searchsorted(member_N[by_cluster_N], np.arange(clusters + 1))
    total_PP, most = np.zeros((parameters, parameters)), max(1, _NUMBERS // parameters)
    for first in range(0, clusters, most):
        last = min(first + most, clusters)
        rows = by_cluster_N[starts_K[first] : starts_K[last]]
        place, error = (member_N[rows] - first).astype(np.int64), error_N[rows]
        score_KP = np.empty((last - first, parameters))
        size = (last - first) * models
        won, lost = (
            np.bincount(place * models + low_N[rows], error, size),
            np.bincount(place * models + high_N[rows], error, size),
        )
        score_KP[:, :models] = (won - lost).reshape(-1, models)
        for f, x_N in enumerate(design.x_FN):
            score_KP[:, models + f] = np.bincount(place, error * x_N[rows], last - first)
        total_PP += score_KP.T @ score_KP
    return clusters, total_PP


def redraw(
    design: Design,
    battles: Battles,
    whole_P: Array,
    penalty_P: Array,
    cluster: Cluster | None,
    *,
    rounds: int,
    seed: int,
    progress: Progress = SILENT,
) -> tuple[Array, int]:
    """Optima [R, P] of redrawn battles or clusters of them, and how many rounds had no maximum of their own.

    Args:
        whole_P: the optimum of all battles.

    Raises:
        ValueError: the battles have no such column.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    near = Redrawn(design, whole_P, penalty_P)
    member_N, units = (None, len(battles)) if cluster is None else members(battles, cluster)
    if member_N is not None:
        member_N = member_N[design.order_N]
    draws_RP, without = np.empty((rounds, len(whole_P))), 0
    progress.start("redrawn battles", rounds)
    for draw_P in draws_RP:
        times = np.bincount(rng.integers(0, units, units), minlength=units)
        weight_N = (times if member_N is None else times[member_N]).astype(np.float64)
        found_P = near.maximum(weight_N)
        if found_P is None and (penalty_P[0] or _connected(design, weight_N)):
            far = maximise(design, whole_P, penalty_P, weight_N)
            found_P = far.theta_P if far.settled else None
        if found_P is None:
            without += 1
            found_P = maximise(design, whole_P, penalty_P + _SMALL_RIDGE, weight_N).theta_P
        draw_P[:] = found_P
        progress.advance()
    progress.finish()
    return draws_RP, without


def _connected(design: Design, weight_N: Array) -> bool:
    """Whether every model of the drawn battles reaches every other along wins, without which there is no maximum."""
    won_C, met_C = np.zeros((2, len(design.low_C)))
    for block in design.blocks:
        weight = weight_N[block.rows]
        met_C[block.pairs] += np.add.reduceat(weight, block.starts)
        won_C[block.pairs] += np.add.reduceat(weight * design.score_N[block.rows], block.starts)
    won_MM = np.zeros((1, design.models, design.models))
    won_MM[0, design.low_C, design.high_C], won_MM[0, design.high_C, design.low_C] = won_C, met_C - won_C
    return bool(connected(won_MM)[0])

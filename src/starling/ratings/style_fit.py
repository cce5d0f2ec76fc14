"""The likelihood of votes that depends on models and on features of the two answers, and its maximum.

    P(a wins) = σ(s_a − s_b + β · x)        maximise  Σ w [S log P + (1 − S) log(1 − P)] − ½ Σ λ θ²,   θ = (s, β)

A column of the design has two entries ±1 for the models and F for the features. Nothing of size N × M is ever made: battles are
sorted by pair once, and one pass over them gives, per pair, the sums of which gradient and curvature are made: an M × M table,
an M × F and an F × F part. A pass goes through blocks that stay in the processor's cache; 200,000 battles of 100 models with four
features take 2 ms.

Newton steps are damped by ln(1 + d)/d, d a bound on the change of any battle's logit: that converges from anywhere (Sun and
Tran-Dinh 2019, generalized self-concordant functions, ν = 2). A bootstrap round starts at the maximum of all battles, where
chances need not be computed again: its first step is linear in the weights. Its steps are undamped, with the models' table of the
drawn battles, renewed at the first two steps and every other one after, and the features' parts of all battles. They end when the
next one would change no logit by more than about 3e-6 (5e-4 points), usually after three or four; a round for which that fails is
solved anew with damped steps.

Shape suffixes: N battles, M models, F features, P = M + F, C pairs that met, K clusters, R rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, log1p
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from starling.ratings.battles import Battles
from starling.ratings.bradley_terry import Array

_BLOCK = 8192
"""Battles of one block. Its dozen columns fit the second-level cache, and products this short are not split among threads."""
_STEPS, _SETTLED = 200, 1e-9
"""Damped steps at most, and the change of every logit at which they end."""
_ROUND_STEPS, _ROUND_LEFT = 12, 3e-6
"""Undamped steps of a bootstrap round at most, and the estimated error of any logit at which they end."""


@dataclass(frozen=True)
class _Block:
    rows: slice
    pairs: slice
    """Pairs that have battles in it; the first and the last may go on in the neighbouring blocks."""
    starts: NDArray[np.intp]
    """Where each of the pairs begins, from the block's first row."""
    lengths: NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Design:
    """Battles sorted by pair, each seen from the model with the smaller number."""

    models: int
    low_C: NDArray[np.intp]
    high_C: NDArray[np.intp]
    """The two models of each pair."""
    starts_C: NDArray[np.intp]
    """Its first row."""
    score_N: Array
    """The share of the model with the smaller number."""
    x_FN: Array
    """Features of its answer against the other's; they change sign with the side."""
    order_N: NDArray[np.intp]
    """Which battle of the log stands in each row."""
    blocks: tuple[_Block, ...]

    @property
    def reach_F(self) -> Array:
        """The largest value of each feature: how far a coefficient can move a logit."""
        return np.asarray(np.abs(self.x_FN).max(1, initial=0))


def make_design(battles: Battles, x_NF: Array) -> Design:
    """Sort the battles by pair.

    Args:
        x_NF: features of the first answer against the second.
    """
    models, count = len(battles.models), len(battles)
    key_N = np.minimum(battles.a_N, battles.b_N).astype(np.int64) * models + np.maximum(battles.a_N, battles.b_N)
    if models <= 256:
        key_N = key_N.astype(np.uint16)  # numpy sorts 16 bits by counting
    order_N = np.argsort(key_N, kind="stable")
    key_N = key_N[order_N].astype(np.int64)
    flipped_N = (battles.a_N > battles.b_N)[order_N]
    score_N = battles.score_a_N[order_N].astype(np.float64)
    np.subtract(1, score_N, out=score_N, where=flipped_N)
    x_FN = np.empty((x_NF.shape[1], count))
    for x_N, column_N in zip(x_FN, x_NF.T, strict=True):
        x_N[:] = column_N[order_N]
        np.negative(x_N, out=x_N, where=flipped_N)
    starts_C = np.flatnonzero(np.r_[True, key_N[1:] != key_N[:-1]]) if count else np.zeros(0, np.intp)
    low_C, high_C = np.divmod(key_N[starts_C], models)
    return Design(
        models=models,
        low_C=low_C,
        high_C=high_C,
        starts_C=starts_C,
        score_N=score_N,
        x_FN=x_FN,
        order_N=order_N,
        blocks=_blocks(starts_C, count),
    )


def _blocks(starts_C: NDArray[np.intp], count: int) -> tuple[_Block, ...]:
    found = []
    for first in range(0, count, _BLOCK):
        last = min(first + _BLOCK, count)
        pairs = slice(int(np.searchsorted(starts_C, first, side="right")) - 1, int(np.searchsorted(starts_C, last)))
        starts = np.maximum(starts_C[pairs] - first, 0)
        found.append(_Block(slice(first, last), pairs, starts, np.diff(starts, append=last - first)))
    return tuple(found)


# ── one pass over the battles ────────────────────────────────────────────────────────────────────────────────────────


Curvature = Literal["all", "pairs", "none"]
"""What of Σ v φ φᵀ is wanted: all, the models' M × M table alone, or nothing."""


class Totals:
    """Σ u φ and Σ v φ φᵀ over battles, φ being a battle's row of the design, gathered block by block."""

    def __init__(self, design: Design, wanted: Curvature) -> None:
        features, pairs = len(design.x_FN), len(design.low_C)
        self._design, self._wanted = design, wanted
        self._u_C, self._ux_F = np.zeros(pairs), np.zeros(features)
        self._v_C = np.zeros(pairs)
        if wanted == "all":
            self._vx_FC, self._vxx_FF = np.zeros((features, pairs)), np.zeros((features, features))
        self._buffer = np.empty(_BLOCK)

    def add(self, block: _Block, u: Array, v: Array | None) -> None:
        """A block's battles with their weights u in the vector and v in the matrix."""
        x_FB = self._design.x_FN[:, block.rows]
        self._u_C[block.pairs] += np.add.reduceat(u, block.starts)
        for f, x in enumerate(x_FB):
            self._ux_F[f] += np.dot(u, x)
        if v is not None:
            self._v_C[block.pairs] += np.add.reduceat(v, block.starts)
        if v is not None and self._wanted == "all":
            vx = self._buffer[: len(v)]
            for f, x in enumerate(x_FB):
                np.multiply(v, x, out=vx)
                self._vx_FC[f, block.pairs] += np.add.reduceat(vx, block.starts)
                for g in range(f + 1):
                    self._vxx_FF[f, g] += np.dot(vx, x_FB[g])

    def vector(self) -> Array:
        """Σ u φ [P]."""
        return np.asarray(np.r_[self._per_model(self._u_C), self._ux_F])

    def table(self) -> Array:
        """The models' part of Σ v φ φᵀ [M, M]."""
        design = self._design
        found_MM = np.zeros((design.models, design.models))
        found_MM[design.low_C, design.high_C] = found_MM[design.high_C, design.low_C] = -self._v_C
        np.fill_diagonal(found_MM, -found_MM.sum(1))
        return found_MM

    def matrix(self) -> Array:
        """Σ v φ φᵀ [P, P]."""
        models, features = self._design.models, len(self._ux_F)
        found_PP: Array = np.zeros((models + features, models + features))
        found_PP[:models, :models] = self.table()
        for f in range(features):
            found_PP[:models, models + f] = found_PP[models + f, :models] = self._per_model(self._vx_FC[f])
            for g in range(f + 1):
                found_PP[models + f, models + g] = found_PP[models + g, models + f] = self._vxx_FF[f, g]
        return found_PP

    def _per_model(self, sum_C: Array) -> Array:
        design = self._design
        won_M, lost_M = np.bincount(design.low_C, sum_C, design.models), np.bincount(design.high_C, sum_C, design.models)
        return won_M.astype(np.float64) - lost_M


def chances(design: Design, block: _Block, theta_P: Array) -> Array:
    """P(the model with the smaller number wins) of a block's battles."""
    low_C, high_C = design.low_C[block.pairs], design.high_C[block.pairs]
    found = np.repeat(theta_P[high_C] - theta_P[low_C], block.lengths)
    part = np.empty(len(found))
    for beta, x in zip(theta_P[design.models :].tolist(), design.x_FN[:, block.rows], strict=True):
        np.multiply(x, beta, out=part)
        found -= part
    with np.errstate(over="ignore"):  # a chance of 0 is a chance
        np.exp(found, out=found)
    found += 1
    return np.reciprocal(found, out=found)


def derivatives(design: Design, theta_P: Array, weight_N: Array | None = None, wanted: Curvature = "all") -> Totals:
    """Gradient (as the vector) and, if wanted, the negative second derivative of the log-likelihood without its penalty."""
    totals = Totals(design, wanted)
    for block in design.blocks:
        chance = chances(design, block, theta_P)
        error = design.score_N[block.rows] - chance
        spread = None
        if wanted != "none":
            spread = 1 - chance
            spread *= chance
        if weight_N is not None:
            weight = weight_N[block.rows]
            error *= weight
            if spread is not None:
                spread *= weight
        totals.add(block, error, spread)
    return totals


# ── maxima ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Maximum:
    """Where the penalised likelihood is largest."""

    theta_P: Array
    """Strengths in natural units, summing to 0, then coefficients."""
    curvature_PP: Array
    """There, with the penalty; the direction that adds one number to all strengths is filled up."""
    gradient: float
    """The largest entry of the gradient there."""
    settled: bool
    """False where the steps did not end: there is no maximum, or it lies beyond the precision of floating-point numbers."""


def maximise(design: Design, start_P: Array, penalty_P: Array, weight_N: Array | None = None) -> Maximum:
    """Damped Newton steps from `start_P`.

    Args:
        penalty_P: λ of each parameter, at least 0.
        weight_N: how often each row counts; once, if None.
    """
    theta_P, settled, models, reach_F = start_P.copy(), False, design.models, design.reach_F
    for _ in range(_STEPS):
        totals = derivatives(design, theta_P, weight_N)
        gradient_P, curvature_PP = totals.vector() - penalty_P * theta_P, filled(totals.matrix(), penalty_P, models)
        try:
            step_P = np.asarray(np.linalg.solve(curvature_PP, gradient_P), np.float64)
        except np.linalg.LinAlgError:
            break
        change = _change(step_P, models, reach_F)
        if settled or not isfinite(change):  # settled: this pass was for the derivatives at the maximum
            break
        theta_P = theta_P + step_P * (log1p(change) / change if change > 1e-12 else 1.0)
        theta_P[:models] -= theta_P[:models].mean()
        settled = bool(change <= _SETTLED)
    return Maximum(theta_P=theta_P, curvature_PP=curvature_PP, gradient=float(np.abs(gradient_P).max()), settled=settled)


def filled(matrix_PP: Array, penalty_P: Array, models: int) -> Array:
    """The matrix with the penalty, and with ones added, as large as the rest, where strengths only move together."""
    found_PP = matrix_PP + np.diag(penalty_P)
    found_PP[:models, :models] += np.trace(matrix_PP[:models, :models]) / models**2 + 1e-300
    return found_PP


def _change(step_P: Array, models: int, reach_F: Array) -> float:
    """No battle's logit changes by more than this."""
    return float(np.ptp(step_P[:models]) + np.abs(step_P[models:]) @ reach_F)


class Redrawn:
    """Maxima for other weights of the battles, near the maximum of all of them."""

    def __init__(self, design: Design, whole_P: Array, penalty_P: Array) -> None:
        self._design, self._whole_P, self._penalty_P = design, whole_P, penalty_P
        self._reach_F = design.reach_F
        self._error_N, self._spread_N = np.empty((2, len(design.score_N)))
        for block in design.blocks:
            chance = chances(design, block, whole_P)
            self._error_N[block.rows] = design.score_N[block.rows] - chance
            self._spread_N[block.rows] = chance * (1 - chance)
        self._matrix_PP = derivatives(design, whole_P).matrix()

    def maximum(self, weight_N: Array) -> Array | None:
        """The parameters [P], or None if undamped steps do not get there."""
        design, models = self._design, self._design.models
        totals = Totals(design, "pairs")
        for block in design.blocks:
            weight = weight_N[block.rows]
            totals.add(block, weight * self._error_N[block.rows], weight * self._spread_N[block.rows])
        theta_P, before = self._whole_P, 0.0
        for step in range(_ROUND_STEPS):
            fresh = step == 0 or step % 2 == 1  # the third, fifth, … step keeps the table of the one before
            if step:
                totals = derivatives(design, theta_P, weight_N, "pairs" if fresh else "none")
            if fresh:
                curvature_PP = self._curvature(totals)
            gradient_P = totals.vector() - self._penalty_P * theta_P
            try:
                step_P = np.asarray(np.linalg.solve(curvature_PP, gradient_P), np.float64)
            except np.linalg.LinAlgError:
                return None
            theta_P = theta_P + step_P
            change = _change(step_P, models, self._reach_F)
            # Steps shrink at least as fast as from the last one to this one; what is left is of the size of the next.
            if change * change <= _ROUND_LEFT * before and change < before:
                theta_P[:models] -= theta_P[:models].mean()
                return theta_P if _definite(curvature_PP) else None
            before = change
        return None

    def _curvature(self, totals: Totals) -> Array:
        """The models' table of these weights; what regards features is that of all battles, which hardly differs and only decides
        how fast the steps shrink."""
        matrix_PP, models = self._matrix_PP.copy(), self._design.models
        matrix_PP[:models, :models] = totals.table()
        return filled(matrix_PP, self._penalty_P, models)


def _definite(curvature_PP: Array) -> bool:
    """Whether it bends in every direction; it does not where models were not drawn, or groups of them never met."""
    try:
        pivots = np.diag(np.linalg.cholesky(curvature_PP)) ** 2
    except np.linalg.LinAlgError:
        return False
    return bool((pivots > 1e-9 * np.diag(curvature_PP)).all())

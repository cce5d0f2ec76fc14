"""How sure ratings are: the sandwich covariance, and the bootstrap, of battles or of clusters of them.

Sandwich (Huber 1967; used by LMArena's arena-rank): cov = H⁻¹ G H⁻¹, H the curvature Σ n p(1−p) over pairs, G = Σ (S−p)² over
battles, both as Laplacians. The plain inverse H⁻¹ of textbooks takes every battle for a coin: with ties, half wins by our rule,
it is too wide, with several votes on one prompt too narrow. Votes about one prompt, or by one judge, are not independent:
with a cluster, G = Σ over clusters of the outer product of their summed scores, times C/(C−1).

Bootstrap: battles drawn again, that is, numbers of the distinct cells (pair, score) from a multinomial, as in FastChat; or whole
clusters. Each round is fitted to its own maximum, from the maximum of all, many rounds at once.

An interval of a rating needs a point that counts as fixed. That is the mean of the ratings, unless a model is named. FastChat
moves every round to the anchor's rating, and so lays the anchor's noise on every model (lm-sys/FastChat issue 3377); here an
anchor only moves the whole table.

Shape suffixes: N battles, M models, C clusters, R rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from starling.ratings.battles import Battles
from starling.ratings.bradley_terry import Array, Fit, PairSums, newton

Cluster = Literal["prompt", "judge"]
Z95 = 1.959963984540054
FEW_CLUSTERS = 40
"""Below about so many clusters an interval is too narrow (Cameron and Miller 2015, section VI)."""
_SMALL_RIDGE = 0.01
"""Of a round without a maximum: a model that won five of five battles comes to stand about 800 points above the others."""
_NUMBERS = 1 << 22
"""Numbers held at once beside the battles: 32 MB."""


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """What is known about the error of strengths: a covariance, or draws. Natural units, relative to the strengths' mean."""

    method: Literal["sandwich", "bootstrap"]
    center_M: Array
    covariance_MM: Array
    draws_RM: Array | None = None
    clusters: int
    """Independent units behind it: battles, prompts or judges."""
    cluster: Cluster | None = None
    without_maximum: int = 0
    """Rounds whose battles had no maximum (a model that only won, say); they were fitted with a small ridge."""

    def sd_M(self, reference: int | None = None) -> Array:
        """Standard deviations relative to the mean, or to the model with that number."""
        variance_M = np.diag(self.covariance_MM).copy()
        if reference is not None:
            variance_M += variance_M[reference] - 2 * self.covariance_MM[reference]
        return np.sqrt(np.maximum(variance_M, 0))

    def bounds(self, reference: int | None = None) -> tuple[Array, Array]:
        """95 % bounds of the strengths, relative to their mean, or to the model with that number: its bounds are its strength."""
        if self.draws_RM is None:
            half_M = Z95 * self.sd_M(reference)
            return self.center_M - half_M, self.center_M + half_M
        draws_RM = self.draws_RM
        if reference is not None:
            draws_RM = draws_RM - draws_RM[:, [reference]] + self.center_M[reference]
        # Of R draws the i-th covers i / (R + 1) on average; numpy's usual quantile would lose a point of coverage at 200 rounds.
        low_M, high_M = np.quantile(draws_RM, [0.025, 0.975], axis=0, method="weibull")
        return low_M, high_M


# ── sandwich ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def sandwich(fit: Fit, battles: Battles, *, cluster: Cluster | None = None) -> Uncertainty:
    """The sandwich covariance of a fit; see the file's docstring.

    Args:
        battles: those of the fit.
        cluster: None takes battles for independent.

    Raises:
        ValueError: the battles have no such column.
    """
    models = len(fit.models)
    curvature_MM = curvature(fit.strength_M, fit.pairs) + fit.ridge * np.eye(models)
    clusters, score_MM = score_covariance(fit, battles, cluster)
    # The inverse on the plane of strengths that sum to 0.
    inverse_MM = np.linalg.inv(curvature_MM + np.trace(curvature_MM) / models**2) if models > 1 else np.zeros((1, 1))
    return Uncertainty(
        method="sandwich",
        center_M=fit.strength_M,
        covariance_MM=inverse_MM @ score_MM @ inverse_MM,
        clusters=clusters,
        cluster=cluster,
    )


def curvature(strength_M: Array, pairs: PairSums) -> Array:
    """Minus the second derivative of the log-likelihood: the Laplacian of n p(1−p)."""
    chance_MM = chances(strength_M)
    return laplacian(pairs.battles_MM * chance_MM * chance_MM.T)


def score_covariance(fit: Fit, battles: Battles, cluster: Cluster | None) -> tuple[int, Array]:
    """The number of independent units C, and the covariance of the log-likelihood's slope [M, M] with its factor C/(C−1)."""
    if cluster is None:
        chance_MM, won_MM = chances(fit.strength_M), fit.pairs.won_MM
        spread_MM = fit.pairs.squared_MM - 2 * chance_MM * won_MM + chance_MM**2 * fit.pairs.battles_MM
        clusters, score_MM = len(battles), laplacian(spread_MM)
    else:
        clusters, score_MM = _clustered(fit, battles, cluster)
    return clusters, score_MM * (clusters / max(clusters - 1, 1))


def chances(strength_M: Array) -> Array:
    """P(row's model beats column's) [M, M]."""
    return np.asarray(1 / (1 + np.exp(np.clip(strength_M[None, :] - strength_M[:, None], -700, 700))))


def laplacian(weight_MM: Array) -> Array:
    """diag of the row sums minus the weights themselves; the weights' diagonal does not matter."""
    return np.diag(weight_MM.sum(1)) - weight_MM


def _clustered(fit: Fit, battles: Battles, cluster: Cluster) -> tuple[int, Array]:
    """The number of clusters, and Σ over clusters of the outer product of their scores [M, M]."""
    models = len(fit.models)
    member_N, clusters = members(battles, cluster)
    order_N = np.argsort(member_N, kind="stable").astype(np.int32 if len(battles) < 2**31 else np.int64)
    starts_C = np.searchsorted(member_N[order_N], np.arange(clusters + 1))
    total_MM = np.zeros((models, models))
    for first, last in _blocks(starts_C, max(1, _NUMBERS // models)):
        rows = order_N[starts_C[first] : starts_C[last]]
        a, b = battles.a_N[rows], battles.b_N[rows]
        error = battles.score_a_N[rows] - 1 / (1 + np.exp(fit.strength_M[b] - fit.strength_M[a]))
        place = (member_N[rows] - first).astype(np.int64) * models
        size = (last - first) * models
        score_CM = np.bincount(place + a, error, size) - np.bincount(place + b, error, size)
        score_CM = score_CM.reshape(-1, models)
        total_MM += score_CM.T @ score_CM
    return clusters, total_MM


def _blocks(starts_C: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Runs of clusters (first, past the last): at most `most` of them, and few battles unless one cluster alone has many."""
    first, clusters = 0, len(starts_C) - 1
    while first < clusters:
        enough = int(np.searchsorted(starts_C, starts_C[first] + _NUMBERS, side="right")) - 1
        last = max(first + 1, min(first + most, enough, clusters))
        yield first, last
        first = last


def members(battles: Battles, cluster: Cluster) -> tuple[NDArray[np.int32], int]:
    """Each battle's cluster by a number without gaps, and how many clusters there are.

    Raises:
        ValueError: the battles have no such column.
    """
    column = getattr(battles, cluster)
    if column is None:
        raise ValueError(f"the battles do not say their {cluster}")
    present = np.bincount(column.codes_N, minlength=len(column.names)) > 0
    number = (np.cumsum(present) - 1).astype(np.int32)
    return number[column.codes_N], int(present.sum())


# ── bootstrap ────────────────────────────────────────────────────────────────────────────────────────────────────────


def bootstrap(fit: Fit, battles: Battles, *, rounds: int = 1000, seed: int = 0, cluster: Cluster | None = None) -> Uncertainty:
    """Strengths of `rounds` redrawn sets of battles, or of clusters of battles.

    Raises:
        ValueError: fewer than two rounds, or the battles have no such column.
    """
    if rounds < 2:
        raise ValueError("a bootstrap needs at least two rounds")
    rng = np.random.Generator(np.random.PCG64(seed))
    models = len(fit.models)
    draw, clusters = _draws_of_battles(battles) if cluster is None else _draws_of_clusters(battles, cluster)
    block = max(1, min(rounds, _NUMBERS // 16 // models**2))
    draws_RM, without = np.empty((rounds, models)), 0
    for start in range(0, rounds, block):
        won_RMM = draw(rng, min(block, rounds - start))
        strength_RM = np.tile(fit.strength_M, (len(won_RMM), 1))
        alone_R = ~connected(won_RMM) if not fit.ridge else np.zeros(len(won_RMM), dtype=bool)
        for chosen_R, ridge in ((~alone_R, fit.ridge), (alone_R, _SMALL_RIDGE)):
            if chosen_R.any():
                strength_RM[chosen_R], _ = newton(won_RMM[chosen_R], strength_RM[chosen_R], ridge=ridge)
        without += int(alone_R.sum())
        draws_RM[start : start + len(won_RMM)] = strength_RM
    return Uncertainty(
        method="bootstrap",
        center_M=fit.strength_M,
        covariance_MM=np.atleast_2d(np.cov(draws_RM.T)),
        draws_RM=draws_RM,
        clusters=clusters,
        cluster=cluster,
        without_maximum=without,
    )


_Draw = Callable[[np.random.Generator, int], Array]
"""Tables of wins [R, M, M] of so many redrawn sets."""


def _draws_of_battles(battles: Battles) -> tuple[_Draw, int]:
    models, count = len(battles.models), len(battles)
    pair_K, score_K, count_K = cells(battles)
    share_K = count_K / count
    starts_P = np.flatnonzero(np.r_[True, pair_K[1:] != pair_K[:-1]])
    i_P, j_P = np.divmod(pair_K[starts_P], models)

    def draw(rng: np.random.Generator, rounds: int) -> Array:
        won_RMM = np.zeros((rounds, models, models))
        few = max(1, _NUMBERS // len(pair_K))
        for start in range(0, rounds, few):
            rows = slice(start, min(start + few, rounds))
            drawn_RK = rng.multinomial(count, share_K, size=rows.stop - rows.start).astype(np.float64)
            games_RP = np.add.reduceat(drawn_RK, starts_P, axis=1)
            won_RP = np.add.reduceat(drawn_RK * score_K, starts_P, axis=1)
            won_RMM[rows, i_P, j_P], won_RMM[rows, j_P, i_P] = won_RP, games_RP - won_RP
        return won_RMM

    return draw, count


def cells(battles: Battles) -> tuple[NDArray[np.int64], Array, Array]:
    """The distinct battles, sorted by pair: i · M + j with i < j, the score of i, and how many there are."""
    models = len(battles.models)
    a_N, b_N, score_N = battles.a_N, battles.b_N, battles.score_a_N
    pair_N = np.minimum(a_N, b_N).astype(np.int64) * models + np.maximum(a_N, b_N)
    first_N = np.where(a_N < b_N, score_N, 1 - score_N)
    doubled_N = (2 * first_N).astype(np.int8)
    if (doubled_N == 2 * first_N).all():  # wins, losses and ties only: no sorting
        count_K = np.bincount(pair_N * 3 + doubled_N, minlength=1)
        kept_K = np.flatnonzero(count_K)
        return kept_K // 3, kept_K % 3 / 2, count_K[kept_K].astype(np.float64)
    levels_L, level_N = np.unique(first_N, return_inverse=True)
    key_K, count_K = np.unique(pair_N * len(levels_L) + level_N, return_counts=True)
    return key_K // len(levels_L), levels_L[key_K % len(levels_L)].astype(np.float64), count_K.astype(np.float64)


def _draws_of_clusters(battles: Battles, cluster: Cluster) -> tuple[_Draw, int]:
    models = len(battles.models)
    member_N, clusters = members(battles, cluster)
    a_N, b_N, score_N = battles.a_N, battles.b_N, battles.score_a_N.astype(np.float64)
    pair_N = np.minimum(a_N, b_N).astype(np.int64) * models + np.maximum(a_N, b_N)
    # What one cluster says about one pair is one entry, however many battles it is.
    key_E, entry_N = np.unique(member_N * models**2 + pair_N, return_inverse=True)
    games_E = np.bincount(entry_N).astype(np.float64)
    won_E = np.bincount(entry_N, np.where(a_N < b_N, score_N, 1 - score_N))
    member_E, pair_E = np.divmod(key_E, models**2)

    def draw(rng: np.random.Generator, rounds: int) -> Array:
        won_RMM = np.empty((rounds, models, models))
        for won_MM in won_RMM:
            times_E = np.bincount(rng.integers(0, clusters, clusters), minlength=clusters)[member_E]
            upper = np.bincount(pair_E, times_E * won_E, models**2).reshape(models, models)
            games = np.bincount(pair_E, times_E * games_E, models**2).reshape(models, models)
            won_MM[:] = upper + (games - upper).T
        return won_RMM

    return draw, clusters


def connected(won_RMM: Array) -> NDArray[np.bool_]:
    """For each table whether its maximum exists: every model reaches every other along wins; see `bradley_terry.components`."""
    beats_RMM = (won_RMM > 0).astype(np.float32)
    whole_R = np.ones(len(beats_RMM), dtype=bool)
    for steps_RMM in (beats_RMM, beats_RMM.transpose(0, 2, 1)):
        reached_RM = np.zeros(beats_RMM.shape[:2], dtype=bool)
        reached_RM[:, 0] = True
        while True:
            grown_RM = reached_RM | (np.matmul(reached_RM[:, None].astype(np.float32), steps_RMM)[:, 0] > 0)
            if (grown_RM == reached_RM).all():
                break
            reached_RM = grown_RM
        whole_R &= reached_RM.all(1)
    return whole_R

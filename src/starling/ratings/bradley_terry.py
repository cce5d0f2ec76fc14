"""Bradley–Terry strengths of models from battles: the maximum of the likelihood, by Newton's method on the table of pairs.

    P(i beats j) = σ(s_i − s_j)          log-likelihood = Σ over battles of S log P + (1 − S) log(1 − P)

S is the first model's share of the battle: 1, 0, ½ for a tie, anything between for a soft verdict. The sum depends on battles
only through W_ij = Σ S of i against j, so ten million of them are one M × M table, and a Newton step is one solve. Source:
Bradley and Terry 1952; ties as half wins as in FastChat (`elo_analysis`), whose L-BFGS is stopped after 100 steps, up to a point
from the maximum that it looks for; ours goes to it. The steps are damped by ln(1 + d)/d, d being the largest change of a
difference: that converges from anywhere (Sun and Tran-Dinh 2019, generalized self-concordant functions, ν = 2), without a line
search.

The maximum exists exactly when every model can be reached from every other along wins (Ford 1957). Otherwise ratings run to
infinity, or two groups have no common scale: that is refused with the groups named, unless a ridge is asked for.

Shape suffixes: N battles, M models, R rounds (tables fitted together).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from starling.errors import InputError
from starling.ratings.battles import Battles

Array = NDArray[np.float64]

_CHUNK = 1 << 20
"""Battles that are added to a table at once: bounds the memory beside the battles themselves."""
MOST_MODELS = 5000
"""A table of more models would be larger than 200 MB; so many names are mostly a wrong column."""
_STEPS, _SETTLED = 200, 1e-9
"""Newton steps at most, and the change of every difference (natural units; 1.7e-7 points) at which they end."""


@dataclass(frozen=True)
class Scale:
    """What a strength looks like in a table: `initial + points / ln(base) · strength`. The defaults are Elo's and FastChat's."""

    points: float = 400.0
    base: float = 10.0
    initial: float = 1000.0

    @property
    def per_unit(self) -> float:
        """Points per natural unit of strength: 173.7 on Elo's scale."""
        return float(self.points / np.log(self.base))


ELO = Scale()


@dataclass(frozen=True)
class PairSums:
    """What a likelihood needs of the battles: per pair of models the sums over their battles, seen from the row's model."""

    won_MM: Array
    """Σ S; won + its transpose is the number of battles."""
    squared_MM: Array
    """Σ S²: with ties or soft verdicts the spread of S is smaller than that of a coin."""

    @property
    def battles_MM(self) -> Array:
        """Battles of each pair, symmetric."""
        return self.won_MM + self.won_MM.T

    @property
    def battles(self) -> float:
        """All battles."""
        return float(self.won_MM.sum())


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Strengths in natural-log units, summing to 0, and the table that they were fitted to."""

    models: tuple[str, ...]
    strength_M: Array
    pairs: PairSums
    ridge: float = 0.0

    @property
    def rating_M(self) -> Array:
        """The strengths on Elo's scale; their mean is 1000."""
        return ELO.initial + ELO.per_unit * self.strength_M


def pair_sums(battles: Battles) -> PairSums:
    """The table of the battles.

    Raises:
        InputError: there are more models than a table holds.
    """
    models = len(battles.models)
    if models > MOST_MODELS:
        raise InputError(
            f"There are {models:,} models; a table of pairs holds {MOST_MODELS:,}",
            where=f"models such as {', '.join(battles.models[:3])}",
            cure="check which columns hold the models' names",
        )
    ahead_MM, ahead2_MM, behind_MM, behind2_MM = (np.zeros((models, models)) for _ in range(4))
    for start in range(0, len(battles), _CHUNK):
        part = slice(start, start + _CHUNK)
        pair_N = battles.a_N[part].astype(np.int64) * models + battles.b_N[part]
        score_N = battles.score_a_N[part].astype(np.float64)
        for table_MM, weight_N in (
            (ahead_MM, score_N),
            (ahead2_MM, score_N**2),
            (behind_MM, 1 - score_N),
            (behind2_MM, (1 - score_N) ** 2),
        ):
            table_MM += np.bincount(pair_N, weight_N, models * models).reshape(models, models)
    return PairSums(won_MM=ahead_MM + behind_MM.T, squared_MM=ahead2_MM + behind2_MM.T)


def bradley_terry(battles: Battles, *, ridge: float = 0.0) -> Fit:
    """Maximum-likelihood strengths of the models.

    Args:
        ridge: λ of the penalty λ/2 Σ s² (natural units) that is taken off the log-likelihood. With λ > 0 the maximum always
            exists, at the price of ratings drawn together; 1 weighs about as much as four ties of each model with the mean.

    Raises:
        InputError: without a ridge, the models cannot be put on one scale; names the groups. Or there is no battle.
    """
    if not len(battles):
        raise InputError("There is no battle to rate models from", where="the votes given", cure="check files and filters")
    pairs = pair_sums(battles)
    return Fit(models=battles.models, strength_M=strengths(pairs.won_MM, battles.models, ridge=ridge), pairs=pairs, ridge=ridge)


def strengths(wins: ArrayLike, names: Sequence[str] = (), *, ridge: float = 0.0) -> Array:
    """Bradley–Terry strengths [M] in natural-log units, summing to 0, of a table of wins.

    Args:
        wins: [M, M]; entry (i, j) is how often i beat j, a tie counting half to each; the diagonal is ignored.
        names: the models' names, for messages.
        ridge: see `bradley_terry`.

    Raises:
        ValueError: the matrix is not square, or has negative or non-finite entries.
        InputError: the maximum does not exist (names the groups), or lies beyond the precision of floating-point numbers.
    """
    wins_MM = np.array(wins, dtype=np.float64)
    if wins_MM.ndim != 2 or not wins_MM.size or wins_MM.shape[0] != wins_MM.shape[1]:
        raise ValueError(f"wins must be a square matrix of finite counts, not {wins_MM.shape}")
    if not np.isfinite(wins_MM).all() or (wins_MM < 0).any() or ridge < 0:
        raise ValueError("wins must be a square matrix of finite counts, and a ridge at least 0")
    if not ridge:
        check_connected(wins_MM, names)
    try:
        strength_RM, settled_R = newton(wins_MM[None], np.zeros((1, len(wins_MM))), ridge=ridge)
    except np.linalg.LinAlgError:  # a chance so near to 0 that its curvature is lost
        settled_R = np.zeros(1, dtype=bool)
    if not settled_R[0]:
        raise InputError(
            "The ratings cannot be computed: the wins are too lopsided for floating-point numbers",
            where=f"{len(wins_MM)} models in the table of wins",
            cure="leave out models that hardly ever win or lose, or ask for a ridge",
        )
    return np.asarray(strength_RM[0])


def newton(won_RMM: Array, start_RM: Array, *, ridge: float = 0.0) -> tuple[Array, NDArray[np.bool_]]:
    """Maxima of many likelihoods at once.

    Args:
        won_RMM: a table of wins per round, its diagonal 0.
        start_RM: where to begin, e.g. the strengths of the whole.

    Returns:
        strengths [R, M], each summing to 0; and [R] whether the steps ended. They do not where there is no maximum.
    """
    rounds, models = start_RM.shape
    strength_RM, settled_R = start_RM.astype(np.float64), np.zeros(rounds, dtype=bool)
    open_R = np.arange(rounds)
    diagonal = np.arange(models)
    for _ in range(_STEPS):
        won, strength = won_RMM[open_R], strength_RM[open_R]
        chance = 1 / (1 + np.exp(np.clip(strength[:, None, :] - strength[:, :, None], -700, 700)))
        games = won + won.transpose(0, 2, 1)
        expected = games * chance
        gradient = (won - expected).sum(2) - ridge * strength
        curvature = -(expected * chance.transpose(0, 2, 1))
        weight = -curvature.sum(2)
        # Adding a constant to all strengths changes nothing; ones, as large as the rest, take that direction out.
        curvature += weight.mean(1)[:, None, None] / models + 1e-300
        curvature[:, diagonal, diagonal] += weight + ridge
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        change = step.max(1) - step.min(1)
        damped = np.where(change > 1e-12, np.log1p(change) / np.maximum(change, 1e-12), 1.0)
        moved = strength + damped[:, None] * step
        strength_RM[open_R] = moved - moved.mean(1, keepdims=True)
        done = change <= _SETTLED
        settled_R[open_R[done]] = True
        open_R = open_R[~done]
        if not len(open_R):
            break
    return strength_RM, settled_R


# ── whether there is a maximum ───────────────────────────────────────────────────────────────────────────────────────


def components(wins: ArrayLike) -> list[NDArray[np.int64]]:
    """Groups of models with a common scale: inside one, each reaches each along wins. Winners first, where groups met.

    One group means that the Bradley–Terry maximum exists.
    """
    beats_MM = np.asarray(wins) > 0
    left_M = np.ones(len(beats_MM), dtype=bool)
    found: list[NDArray[np.int64]] = []
    above: list[int] = []
    while left_M.any():
        first = int(np.flatnonzero(left_M)[0])
        down_M, up_M = _reached(beats_MM, first), _reached(beats_MM.T, first)
        group_M = down_M & up_M
        found.append(np.flatnonzero(group_M))
        above.append(int(up_M.sum()))  # a group that beats another is reached upwards by fewer
        left_M &= ~group_M
    return [found[i] for i in sorted(range(len(found)), key=lambda i: (above[i], -len(found[i])))]


def _reached(steps_MM: NDArray[np.bool_], first: int) -> NDArray[np.bool_]:
    reached_M = np.zeros(len(steps_MM), dtype=bool)
    new_M = reached_M.copy()
    new_M[first] = True
    while new_M.any():
        reached_M |= new_M
        new_M = steps_MM[new_M].any(0) & ~reached_M
    return reached_M


def check_connected(wins: ArrayLike, names: Sequence[str] = ()) -> None:
    """Refuse a table without a maximum, and say which groups it falls into.

    Raises:
        InputError: there is more than one group.
    """
    wins_MM = np.asarray(wins)
    groups = components(wins_MM)
    if len(groups) == 1:
        return
    names = names or [str(i) for i in range(len(wins_MM))]
    islands = sorted(components(wins_MM + wins_MM.T), key=len, reverse=True)
    if len(islands) > 1:
        what = f"{len(islands)} groups never met: {_listed(islands, names)}"
    else:
        what = f"none of a later group ever beat one of an earlier: {_listed(groups, names)}"
        if len(groups) == 2:
            what = f"none of {_listed(groups[1:], names)} ever beat one of {_listed(groups[:1], names)}"
    raise InputError(
        f"The models cannot be put on one scale: {what}",
        where=f"{len(wins_MM)} models in the table of wins",
        cure="collect more battles between the groups, rate each alone, leave models out, or ask for a ridge",
    )


def _listed(groups: Sequence[NDArray[np.int64]], names: Sequence[str]) -> str:
    shown = []
    for group in groups[:6]:
        more = f", … {len(group) - 5} more" if len(group) > 5 else ""
        shown.append(f"({', '.join(names[i] for i in group[:5])}{more})")
    return ", ".join(shown) + (f", … {len(groups) - 6} more groups" if len(groups) > 6 else "")

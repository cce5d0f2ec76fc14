"""The table of ratings: ranks with intervals, anchors, win rates; of all votes, by category or language, and for new models.

Rank: 1 + the number of models whose lower bound lies above one's own upper bound (FastChat's rule, with intervals of 95 %). Its
interval runs from there to the last place that the intervals leave open. Ranks always come from intervals relative to the mean
of the models: relative to an anchor every interval carries the anchor's noise as well, and nearly all would overlap.

An anchor moves the whole table so that one model has a given rating; every difference, interval width and rank stays.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from starling.errors import InputError, UsageError
from starling.ratings.battles import Battles, Named
from starling.ratings.bradley_terry import ELO, Array, Fit, PairSums, Scale, bradley_terry
from starling.ratings.elo import K, elo, elo_bootstrap, in_time
from starling.ratings.intervals import FEW_CLUSTERS, Cluster, Uncertainty, bootstrap, chances, sandwich
from starling.ratings.newcomers import KnownRatings, rate_new
from starling.ratings.style import Ridge, StyleRatings, style_control

Method = Literal["bradley-terry", "elo"]
Interval = Literal["sandwich", "bootstrap", "none"]
MEAN = "mean"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How to rate."""

    method: Method = "bradley-terry"
    interval: Interval = "sandwich"
    rounds: int = 1000
    seed: int = 0
    cluster: Cluster | None = None
    ridge: float = 0.0
    k: float = K
    scale: Scale = ELO
    anchor: tuple[str, float] | None = None
    """A model and the rating that it is to have."""
    relative_to: str = MEAN
    """What counts as fixed in the intervals: the mean, or a model."""
    style: tuple[str, ...] = ()
    """Features of style that are held equal; none for plain ratings."""
    style_ridge: Ridge = "none"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One model's line."""

    rank: int | None
    rank_ci: tuple[int, int] | None
    model: str
    rating: float
    ci: tuple[float, float] | None
    """95 %; None where there is no telling."""
    sd: float | None
    battles: int
    win_rate: float | None
    """Share of its battles, a tie counting half."""
    expected_win_rate: float | None
    """Predicted mean share against each other model of the table: unlike the win rate, not a matter of whom it met."""
    without_style: float | None = None
    """Of a table with style control: the plain rating of the same battles."""
    known: bool = False
    """The rating is a saved one."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """All models, best first."""

    standings: tuple[Standing, ...]
    battles: int
    method: str
    interval: str
    clusters: int | None
    cluster: str | None
    relative_to: str
    scale: Scale
    style: tuple[dict[str, Any], ...] = ()
    """Of a table with style control: what each feature is worth, in points for an answer with one spread more of it."""
    notes: tuple[str, ...] = ()
    """What a reader must know, one sentence each."""

    def as_json(self) -> dict[str, Any]:
        """Plain data: `ratings` first."""
        found = {"ratings": [asdict(one) for one in self.standings], **asdict(replace(self, standings=()))}
        found.pop("standings")
        return found


def rate(battles: Battles, wanted: Wanted) -> Table:
    """The table of some battles.

    Raises:
        InputError: there is no battle, or the models cannot be put on one scale.
        UsageError: an anchor or reference that is no model of the votes, or settings that do not go together.
    """
    _check(wanted)
    if wanted.style:
        return _rate_with_style(battles, wanted)
    notes: list[str] = []
    if wanted.method == "elo":
        fit = elo(battles, k=wanted.k, scale=wanted.scale)
        if not in_time(battles):
            notes.append("not every vote says when it was cast: Elo takes them in the order of the file")
    else:
        fit = bradley_terry(battles, ridge=wanted.ridge)
        if wanted.ridge:
            notes.append(f"a ridge of {wanted.ridge:g} draws the ratings together; intervals do not show that bias")
    uncertainty = _uncertainty(fit, battles, wanted)
    if uncertainty is not None:
        notes += _notes(uncertainty, battles, wanted)
    return tabulate(fit, uncertainty, wanted, notes=notes)


def _check(wanted: Wanted) -> None:
    if wanted.method == "elo" and (wanted.interval == "sandwich" or wanted.cluster or wanted.ridge or wanted.style):
        raise UsageError(
            "Elo depends on the order of the battles: it has no sandwich interval, clusters, ridge or style control",
            where="--method elo",
            cure="use --interval bootstrap or none, without --cluster, --ridge and --style",
        )
    if wanted.style and wanted.ridge:
        raise UsageError("Style control has its own penalties", where="--ridge", cure="use --style-ridge")


def _rate_with_style(battles: Battles, wanted: Wanted) -> Table:
    _check_cluster(battles, wanted)
    rounds = wanted.rounds if wanted.interval == "bootstrap" else 0
    found = style_control(
        battles, wanted.style, ridge=wanted.style_ridge, cluster=wanted.cluster, rounds=rounds, seed=wanted.seed
    )
    notes = []
    if found.style_unknown:
        notes.append(f"{found.style_unknown:,} battles do not tell the style of both answers and are left out")
    if wanted.style_ridge != "none":
        notes.append(f"the penalty of {wanted.style_ridge!r} draws the coefficients together; intervals do not show that bias")
    fit = Fit(models=found.models, strength_M=found.strength_M, pairs=found.without.pairs)
    uncertainty = None if wanted.interval == "none" else found.uncertainty
    if uncertainty is not None:
        notes += _notes(uncertainty, battles, wanted)
    table = tabulate(fit, uncertainty, wanted, notes=notes)
    plain = tabulate(found.without, None, wanted)
    before = {one.model: one.rating for one in plain.standings}
    standings = tuple(replace(one, without_style=before[one.model]) for one in table.standings)
    return replace(table, standings=standings, style=_effects(found, wanted))


def _effects(found: StyleRatings, wanted: Wanted) -> tuple[dict[str, Any], ...]:
    points = wanted.scale.per_unit
    rows = zip(found.features, found.coefficient_F, found.coefficient_interval_F2, found.spread_F, strict=True)
    return tuple(
        {
            "feature": name,
            "coefficient": float(c),
            "points": float(points * c),
            "ci": [float(points * e) for e in ci],
            "spread": float(s),
        }
        for name, c, ci, s in rows
    )


def _check_cluster(battles: Battles, wanted: Wanted) -> None:
    if wanted.cluster is not None and getattr(battles, wanted.cluster) is None:
        raise InputError(
            f"The votes do not say their {wanted.cluster}",
            where="the votes given",
            cure="leave out --cluster, or give files that do",
        )


def _uncertainty(fit: Fit, battles: Battles, wanted: Wanted) -> Uncertainty | None:
    if wanted.interval == "none" or len(fit.models) < 2:
        return None
    _check_cluster(battles, wanted)
    if wanted.method == "elo":
        return elo_bootstrap(fit, battles, rounds=wanted.rounds, seed=wanted.seed, k=wanted.k, scale=wanted.scale)
    if wanted.interval == "bootstrap":
        return bootstrap(fit, battles, rounds=wanted.rounds, seed=wanted.seed, cluster=wanted.cluster)
    return sandwich(fit, battles, cluster=wanted.cluster)


def _notes(uncertainty: Uncertainty, battles: Battles, wanted: Wanted) -> list[str]:
    notes = []
    unit = f"{uncertainty.cluster}s" if uncertainty.cluster else "battles"
    if uncertainty.clusters < FEW_CLUSTERS:
        notes.append(f"only {uncertainty.clusters:,} {unit}: the intervals are too narrow")
    if uncertainty.without_maximum:
        notes.append(
            f"{uncertainty.without_maximum:,} of {wanted.rounds:,} rounds drew battles that put the models on no common scale: "
            "fitted with a small ridge, they stand far out"
        )
    column: Named | None = getattr(battles, uncertainty.cluster) if uncertainty.cluster else None
    if column is not None and "" in (column.names if len(column.names) < 10**6 else ()):
        nameless = int((column.codes_N == list(column.names).index("")).sum())
        if nameless:
            notes.append(f"{nameless:,} votes do not say their {uncertainty.cluster}: they count as one cluster")
    return notes


def tabulate(fit: Fit, uncertainty: Uncertainty | None, wanted: Wanted, *, notes: list[str] | None = None) -> Table:
    """The table of a fit with its uncertainty, also of one made elsewhere (style control)."""
    names, per_unit = fit.models, wanted.scale.per_unit
    for name in {wanted.anchor[0] if wanted.anchor else MEAN, wanted.relative_to} - {MEAN}:
        if name not in names:
            raise UsageError(
                f"No vote is about {name}", where="--anchor or --relative-to", cure=f"name one of the models, such as {names[0]}"
            )
    rating_M = wanted.scale.initial + per_unit * fit.strength_M
    shift = wanted.anchor[1] - rating_M[names.index(wanted.anchor[0])] if wanted.anchor else 0.0
    rating_M = rating_M + shift
    bounds = ranks = sd_M = None
    if uncertainty is not None:
        low_M, high_M = uncertainty.bounds()
        ranks = ranked(low_M, high_M)
        reference = None if wanted.relative_to == MEAN else names.index(wanted.relative_to)
        low_M, high_M = uncertainty.bounds(reference)
        bounds = [wanted.scale.initial + shift + per_unit * edge_M for edge_M in (low_M, high_M)]
        sd_M = per_unit * uncertainty.sd_M(reference)
    return Table(
        standings=_standings(fit, rating_M, bounds, sd_M, ranks),
        battles=round(fit.pairs.battles),
        method=wanted.method,
        interval="none" if uncertainty is None else uncertainty.method,
        clusters=None if uncertainty is None else uncertainty.clusters,
        cluster=None if uncertainty is None else uncertainty.cluster,
        relative_to=wanted.relative_to,
        scale=wanted.scale,
        notes=tuple(notes or ()),
    )


def ranked(low_M: Array, high_M: Array) -> tuple[list[int], list[int]]:
    """The first and the last rank of each model that the intervals leave open.

    >>> ranked(np.array([10.0, 4.0, 0.0]), np.array([12.0, 11.0, 3.0]))
    ([1, 1, 3], [2, 2, 3])
    """
    lows, highs = np.sort(low_M), np.sort(high_M)
    above = len(low_M) - np.searchsorted(lows, high_M, side="right")
    below = np.searchsorted(highs, low_M, side="left")
    return (1 + above).tolist(), (len(low_M) - below).tolist()


def _standings(
    fit: Fit, rating_M: Array, bounds: list[Array] | None, sd_M: Array | None, ranks: tuple[list[int], list[int]] | None
) -> tuple[Standing, ...]:
    games_M, won_M = fit.pairs.battles_MM.sum(1), fit.pairs.won_MM.sum(1)
    chance_MM = chances(fit.strength_M)
    others = len(rating_M) - 1
    found = [
        Standing(
            rank=ranks[0][i] if ranks else None,
            rank_ci=(ranks[0][i], ranks[1][i]) if ranks else None,
            model=name,
            rating=float(rating_M[i]),
            ci=(float(bounds[0][i]), float(bounds[1][i])) if bounds else None,
            sd=float(sd_M[i]) if sd_M is not None else None,
            battles=round(float(games_M[i])),
            win_rate=float(won_M[i] / games_M[i]) if games_M[i] else None,
            expected_win_rate=float((chance_MM[i].sum() - 0.5) / others) if others else None,
        )
        for i, name in enumerate(fit.models)
    ]
    return tuple(sorted(found, key=lambda one: -one.rating))


# ── parts, new models, pairs ─────────────────────────────────────────────────────────────────────────────────────────


def rate_parts(battles: Battles, by: str, wanted: Wanted) -> dict[str, Table | str]:
    """A table for each category, language or turn, those with most votes first; where there is none, the reason.

    Raises:
        InputError: the votes do not say it.
    """
    column: Named | None = getattr(battles, by)
    if column is None:
        raise InputError(
            f"The votes do not say their {by}", where="the votes given", cure=f"leave out --by {by}, or give files that do"
        )
    count_C = np.bincount(column.codes_N, minlength=len(column.names))
    found: dict[str, Table | str] = {}
    for code in np.argsort(-count_C, kind="stable").tolist():
        if not count_C[code]:
            continue
        part = battles.kept(column.codes_N == code)
        inside = {name: name in part.models for name in (wanted.anchor[0] if wanted.anchor else MEAN, wanted.relative_to)}
        missing = [name for name, there in inside.items() if not there and name != MEAN]
        try:
            if missing:
                raise InputError(f"{missing[0]} has no vote here", where=by, cure="rate without it")
            found[column.names[code] or "unknown"] = rate(part, wanted)
        except InputError as error:
            found[column.names[code] or "unknown"] = error.what
    return found


def check_against(wanted: Wanted, by: str | None = None) -> None:
    """Refuse what does not go with saved ratings.

    Raises:
        UsageError: another method or interval, parts, style control, an anchor or a ridge.
    """
    odd = {
        "--method": wanted.method != "bradley-terry",
        "--interval": wanted.interval == "bootstrap",
        "--by": by is not None,
        "--style": bool(wanted.style),
        "--anchor": wanted.anchor is not None,
        "--relative-to": wanted.relative_to != MEAN,
        "--ridge": bool(wanted.ridge),
    }
    if any(odd.values()):
        raise UsageError(
            f"{', '.join(name for name, given in odd.items() if given)} does not go with saved ratings, which stay as they are",
            where="--ratings",
            cure="leave one of them out",
        )


def rate_against(battles: Battles, known: KnownRatings, wanted: Wanted) -> Table:
    """The saved table with the new models of the votes in it; see `newcomers`.

    Raises:
        InputError: there is no new model, or it cannot be put on the saved scale.
    """
    found = rate_new(battles, known, cluster=wanted.cluster)
    scale, fit = known.scale, found.fit
    games_M, won_M = fit.pairs.battles_MM.sum(1), fit.pairs.won_MM.sum(1)
    number = {name: i for i, name in enumerate(fit.models)}
    names = [*known.rating, *(name for name, new in zip(fit.models, found.new_M, strict=True) if new)]
    rating_M = np.array([known.rating[n] if n in known.rating else _points(scale, fit.strength_M[number[n]]) for n in names])
    half = 1.959963984540054 * scale.per_unit
    bounds = np.full((len(names), 2), np.nan)
    sds: list[float | None] = []
    for i, name in enumerate(names):
        if name in known.rating:
            bounds[i] = known.ci.get(name, (np.nan, np.nan))
            sds.append(known.sd.get(name))
        else:
            sds.append(float(found.sd_M[number[name]] * scale.per_unit))
            bounds[i] = rating_M[i] - half * found.sd_M[number[name]], rating_M[i] + half * found.sd_M[number[name]]
    # A saved rating without an interval is taken for exact.
    ranks = ranked(*(np.where(np.isnan(edge_M), rating_M, edge_M) for edge_M in bounds.T))
    chance_MM = chances((rating_M - scale.initial) / scale.per_unit)
    standings = []
    for i, name in enumerate(names):
        at = number.get(name)
        games = 0.0 if at is None else float(games_M[at])
        standings.append(
            Standing(
                rank=ranks[0][i],
                rank_ci=(ranks[0][i], ranks[1][i]),
                model=name,
                rating=float(rating_M[i]),
                ci=None if np.isnan(bounds[i]).any() else (float(bounds[i, 0]), float(bounds[i, 1])),
                sd=sds[i],
                battles=round(games),
                win_rate=float(won_M[at]) / games if at is not None and games else None,
                expected_win_rate=float((chance_MM[i].sum() - 0.5) / (len(names) - 1)),
                known=name in known.rating,
            )
        )
    notes = ["saved ratings stay as they are; only new models are fitted, on their own battles"]
    if found.between_known:
        notes.append(f"{found.between_known:,} votes between models already rated say nothing here")
    if any(name in known.rating and name not in known.sd for name in fit.models):
        notes.append("some saved ratings come without their error: the new intervals take them for exact")
    return Table(
        standings=tuple(sorted(standings, key=lambda one: -one.rating)),
        battles=len(battles),
        method="bradley-terry",
        interval="sandwich",
        clusters=None,
        cluster=wanted.cluster,
        relative_to=known.source,
        scale=scale,
        notes=tuple(notes),
    )


def _points(scale: Scale, strength: float) -> float:
    return float(scale.initial + scale.per_unit * strength)


def win_matrix(battles: Battles, table: Table, pairs: PairSums) -> dict[str, Any]:
    """Pair by pair, in the table's order: battles, the row's share of them (None where there are none), the predicted share."""
    order = [battles.models.index(one.model) for one in table.standings if one.model in set(battles.models)]
    rating = {one.model: one.rating for one in table.standings}
    strength_M = np.array([rating[battles.models[i]] / table.scale.per_unit for i in order])
    games_MM, won_MM = (matrix[np.ix_(order, order)] for matrix in (pairs.battles_MM, pairs.won_MM))
    shares: list[list[float | None]] = [
        [float(w / g) if g else None for w, g in zip(won_M, games_M, strict=True)]
        for won_M, games_M in zip(won_MM, games_MM, strict=True)
    ]
    return {
        "models": [battles.models[i] for i in order],
        "battles": np.rint(games_MM).astype(int).tolist(),
        "won": shares,
        "predicted": chances(strength_M).tolist(),
    }

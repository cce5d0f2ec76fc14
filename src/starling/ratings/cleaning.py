"""Which votes count: FastChat's clean-up rules, each by option, with what it removed counted.

The rules of `elo_analysis`, in its order: languages, excluded models, anonymous votes only, no ties, the first votes of a judge
and day, judges who are outliers. Departures: days are those of UTC (there, of the machine's time zone), so that a file gives the
same everywhere; the votes of one day are taken in the order of time; and ties are no evidence either way (there, a tie on a pair
whose decided votes all agree has the p-value 0, which alone makes its judge an outlier).

Outlier judges: each decided vote of a judge on a pair has two p-values, the shares of all decided votes on that pair that are at
most, and at least, as much in favour of its first model. If he votes like the others, the product of 1/(2p) over his votes is
seldom large: above 1/α at any time with a chance of about α (a betting martingale; Shafer 2021). Whoever goes above on either
side within his first 100 decided votes is left out; judges with fewer than five votes are not tested.

Shape suffixes: N battles, J judges, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starling.errors import InputError, UsageError
from starling.ratings.battles import Battles, Keep, Named

LEAST_VOTES, MOST_VOTES = 5, 100
"""Votes below which a judge is not tested, and those of him that are looked at: FastChat's numbers."""
ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is kept; the defaults keep everything."""

    anonymous: bool = False
    """Only votes of people who did not see the models' names."""
    languages: Sequence[str] = ()
    """Only votes in one of these, in any case; empty for all."""
    known_language: bool = False
    """Only votes whose language is known."""
    without: Sequence[str] = ()
    """Models that are left out."""
    ties: bool = True
    daily: int | None = None
    """At most so many votes of a judge and day, the first of them."""
    outliers: bool = False
    """Leave out judges whose votes are unlike the others'."""


def clean(battles: Battles, rules: Rules) -> tuple[Battles, dict[str, int]]:
    """The battles that count, and how many each rule removed, in the order of the rules; only rules that were asked for.

    Raises:
        InputError: a rule needs a column that the votes do not have.
        UsageError: a model that is to be left out is not there.
    """
    removed: dict[str, int] = {}

    def keep(what: str, keep_N: Keep) -> None:
        nonlocal battles
        removed[what] = int((~keep_N).sum())
        battles = battles.kept(keep_N)

    if rules.languages:
        wanted = {language.casefold() for language in rules.languages}
        keep("language", _named(battles, "language", lambda name: name.casefold() in wanted))
    if rules.known_language:
        keep("unknown_language", _named(battles, "language", lambda name: bool(name) and "unknown" not in name.casefold()))
    if rules.without:
        missing = [name for name in rules.without if name not in battles.models]
        if missing:
            raise UsageError(
                f"No vote is about {', '.join(missing)}", where="--without", cure=f"name models such as {battles.models[0]}"
            )
        out_M = np.array([name in set(rules.without) for name in battles.models])
        keep("model", ~(out_M[battles.a_N] | out_M[battles.b_N]))
    if rules.anonymous:
        if battles.anonymous_N is None:
            raise _lacks("whether the voter saw the models' names (anony)")
        keep("not_anonymous", battles.anonymous_N)
    if not rules.ties:
        keep("tie", battles.score_a_N != 0.5)
    if rules.daily is not None:
        keep("daily_cap", within_cap(battles, rules.daily))
    if rules.outliers:
        out_J = outliers(battles)
        judge = _column(battles, "judge")
        removed["outlier_judges"] = int(out_J.sum())
        keep("outlier_judges_votes", ~out_J[judge.codes_N])
    return battles, removed


def _column(battles: Battles, name: str) -> Named:
    column: Named | None = getattr(battles, name)
    if column is None:
        raise _lacks(f"their {name}")
    return column


def _lacks(what: str) -> InputError:
    return InputError(f"The votes do not say {what}", where="the votes given", cure="leave the rule out, or give files that do")


def _named(battles: Battles, name: str, holds: Callable[[str], bool]) -> Keep:
    column = _column(battles, name)
    yes = np.array([holds(n) for n in column.names], dtype=bool)
    return np.asarray(yes[column.codes_N])


def within_cap(battles: Battles, most: int) -> Keep:
    """True for the first `most` votes of each judge and UTC day. Votes whose judge or time is not known are all kept.

    Raises:
        InputError: the votes do not say judge or time at all.
    """
    judge, time_N = _column(battles, "judge"), battles.time_N
    if time_N is None:
        raise _lacks("when they were cast (tstamp)")
    known_N = ~np.isnan(time_N) & _named(battles, "judge", bool)
    rows = np.flatnonzero(known_N)
    day_N = np.floor(time_N[rows] / 86400).astype(np.int64)
    order_N = np.lexsort((time_N[rows], day_N, judge.codes_N[rows]))  # stable: votes of one instant in the file's order
    judges, days = judge.codes_N[rows][order_N], day_N[order_N]
    new_N = np.r_[True, (judges[1:] != judges[:-1]) | (days[1:] != days[:-1])] if len(rows) else np.zeros(0, dtype=bool)
    first_N = np.flatnonzero(new_N)
    place_N = np.arange(len(rows)) - np.repeat(first_N, np.diff(np.r_[first_N, len(rows)]))
    keep_N = np.ones(len(battles), dtype=bool)
    keep_N[rows[order_N]] = place_N < most
    return keep_N


def outliers(battles: Battles, alpha: float = ALPHA) -> NDArray[np.bool_]:
    """For each judge [J] whether his votes are unlike the others'; see the file's docstring. The judge "" is nobody, and kept.

    Raises:
        InputError: the votes do not say their judge.
    """
    judge = _column(battles, "judge")
    votes_J = np.bincount(judge.codes_N, minlength=len(judge.names))
    decided_N = battles.score_a_N != 0.5
    rows = np.flatnonzero(decided_N)
    models = len(battles.models)
    a_N, b_N, code_N = battles.a_N[rows], battles.b_N[rows], judge.codes_N[rows]
    pair_N = np.minimum(a_N, b_N).astype(np.int64) * models + np.maximum(a_N, b_N)
    _, pair_N = np.unique(pair_N, return_inverse=True)
    won_N = np.where(a_N < b_N, battles.score_a_N[rows] > 0.5, battles.score_a_N[rows] < 0.5)
    wins_P, all_P = np.bincount(pair_N, won_N), np.bincount(pair_N)
    share_N = (wins_P / all_P)[pair_N]
    # A vote is one of its pair's, so that no share is 0.
    up_N, down_N = np.where(won_N, 1.0, 1 - share_N), np.where(won_N, share_N, 1.0)
    out_J = np.zeros(len(judge.names), dtype=bool)
    order_N = np.argsort(code_N, kind="stable")
    starts_J = np.searchsorted(code_N[order_N], np.arange(len(judge.names) + 1))
    for code in np.flatnonzero(votes_J >= LEAST_VOTES).tolist():
        own = order_N[starts_J[code] : starts_J[code + 1]][:MOST_VOTES]
        if judge.names[code] == "":
            continue
        for p_N in (up_N[own], down_N[own]):
            out_J[code] |= bool((np.cumsum(-np.log(2 * p_N)) > -np.log(alpha)).any())
    return out_J

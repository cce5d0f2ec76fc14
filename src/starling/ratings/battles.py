"""Votes in memory: one row per battle, names as whole numbers, so that ten million fit and fits are table look-ups.

Shape suffixes: N battles, M models, F style features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int32]
Keep = NDArray[np.bool_]
STYLE_FEATURES = ("length", "headers", "lists", "bold")


@dataclass(frozen=True, kw_only=True)
class Named:
    """A column of names as numbers: row n has the name `names[codes_N[n]]`."""

    names: Sequence[str]
    """A tuple, or, where there may be millions, something that makes a text only of the name asked for. "" is not known."""
    codes_N: Codes


@dataclass(frozen=True, kw_only=True)
class Battles:
    """Battles with a verdict, in the order of their file; what has no verdict is counted by whoever reads.

    Raises:
        ValueError: columns of different lengths, a code without a name, a model against itself, or a score that is no share.
    """

    models: tuple[str, ...]
    a_N: Codes
    """Number of the first model of each battle in `models`."""
    b_N: Codes
    score_a_N: NDArray[np.float32]
    """1 = the first model won, 0 = the second did, 0.5 = a tie of any kind; soft verdicts lie between."""
    judge: Named | None = None
    """Who voted."""
    prompt: Named | None = None
    """What was asked: the cluster of intervals."""
    category: Named | None = None
    language: Named | None = None
    turn: Named | None = None
    """Which turn of the conversation the vote is about, e.g. "1"."""
    time_N: NDArray[np.float64] | None = None
    """Seconds since 1970."""
    style_a_NF: NDArray[np.float32] | None = None
    """Counts of the first answer: tokens, headers, lists, bold (STYLE_FEATURES); NaN where they are not known."""
    style_b_NF: NDArray[np.float32] | None = None
    anonymous_N: Keep | None = None
    """True means that the voter did not see the models' names before voting."""

    def __post_init__(self) -> None:
        lengths = {len(column) for column in self._columns()}
        if len(lengths) > 1:
            raise ValueError(f"the columns of battles differ in length: {sorted(lengths)}")
        if not len(self):
            return
        if not np.isfinite(self.score_a_N).all() or self.score_a_N.min() < 0 or self.score_a_N.max() > 1:
            raise ValueError("a battle's score must lie between 0 and 1")
        for codes_N in (self.a_N, self.b_N):
            if codes_N.min() < 0 or codes_N.max() >= len(self.models):
                raise ValueError("a battle names a model that is not there")
        if (self.a_N == self.b_N).any():
            raise ValueError("a model cannot meet itself")

    def __len__(self) -> int:
        return len(self.a_N)

    def _columns(self) -> list[NDArray[np.generic]]:
        found = [getattr(self, f.name) for f in fields(self) if f.name != "models"]
        return [column.codes_N if isinstance(column, Named) else column for column in found if column is not None]

    def kept(self, keep_N: Keep) -> Battles:
        """The battles of the rows that are True, in the same order, with only the models that still take part."""
        changed: dict[str, object] = {}
        for f in fields(self):
            column = getattr(self, f.name)
            if isinstance(column, Named):
                changed[f.name] = Named(names=column.names, codes_N=column.codes_N[keep_N])
            elif f.name != "models" and column is not None:
                changed[f.name] = column[keep_N]
        return replace(self, **changed).without_idle_models()  # type: ignore[arg-type]

    def without_idle_models(self) -> Battles:
        """The same battles; models that take part in none of them have no number any more."""
        active_M = np.zeros(len(self.models), dtype=bool)
        active_M[self.a_N] = active_M[self.b_N] = True
        if active_M.all():
            return self
        number_M = (np.cumsum(active_M) - 1).astype(np.int32)
        names = tuple(name for name, active in zip(self.models, active_M, strict=True) if active)
        return replace(self, models=names, a_N=number_M[self.a_N], b_N=number_M[self.b_N])


def of_scores(triples: Sequence[tuple[str, str, float]]) -> Battles:
    """Battles from (first model, second model, score of the first), e.g. [("x", "y", 1.0), ("y", "x", 0.5)]."""
    number: dict[str, int] = {}
    a_N = np.array([number.setdefault(a, len(number)) for a, _, _ in triples], dtype=np.int32)
    b_N = np.array([number.setdefault(b, len(number)) for _, b, _ in triples], dtype=np.int32)
    scores_N = np.array([score for _, _, score in triples], dtype=np.float32)
    return Battles(models=tuple(number), a_N=a_N, b_N=b_N, score_a_N=scores_N)
